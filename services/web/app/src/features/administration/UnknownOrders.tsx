import { useInfiniteQuery } from "@tanstack/react-query";
import { useApi } from "@/api/clients";
import { UNKNOWN_ORDERS_KEY } from "@/features/live/useLive";
import { dayAndClock } from "@/lib/time";
import { Panel } from "@/ui/Panel";
import { PagedRows, Row } from "@/ui/Rows";
import { Empty } from "@/ui/states";
import { Tag } from "@/ui/Tag";

const UNKNOWN_PAGE = 50;
const LOOK_MILLISECONDS = 5_000;

/** Orders of everybody whose outcome at their venue is not known, the longest waiting first. */
export function UnknownOrders() {
  const { execution } = useApi();
  const query = useInfiniteQuery({
    queryKey: UNKNOWN_ORDERS_KEY,
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) => execution.listUnknownOrders({ pageSize: UNKNOWN_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: LOOK_MILLISECONDS,
  });
  return (
    <Panel title="Orders whose outcome is not known">
      <PagedRows
        what="the orders whose outcome is not known"
        query={query}
        items={query.data?.pages.flatMap((page) => page.orders) ?? []}
        empty={<Empty title="None">Where a venue's answer was lost, the order stands here until the venue's own record settles it.</Empty>}
        more="Show more of them"
      >
        {(order) => (
          <Row
            key={order.orderId}
            title={
              <>
                {order.instrumentId} at {order.venue}
                {order.alerted && <Tag color="red">Too long: look at the venue</Tag>}
              </>
            }
            details={[order.reason, `since ${dayAndClock(order.sendTime)}`, `order ${order.orderId}`, `account ${order.accountId}`, `user ${order.userId}`]
              .filter(Boolean)
              .join(" · ")}
          />
        )}
      </PagedRows>
    </Panel>
  );
}
