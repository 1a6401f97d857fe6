import { Text } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useEffect } from "react";
import { useApi } from "@/api/clients";
import { Failed, Loading } from "@/ui/states";
import { Row, Rows } from "@/ui/Rows";
import { useAccountOrders } from "./AccountOrdersProvider";
import { OrderStateBadge } from "./OrdersTable";
import { GROUP_ROLES, priceText, SIDES, TYPES } from "./words";

/** A group has ten orders at most. */
const GROUP_MAX = 10;

/** The orders that depend on each other, as they are now. */
export function OrderGroup({ accountId, groupId, ownId }: { accountId: string; groupId: string; ownId: string }) {
  const { orders } = useApi();
  const { known, takeAnnotated } = useAccountOrders();
  const query = useQuery({
    queryKey: ["orders", accountId, "group", groupId],
    queryFn: async ({ signal }) => (await orders.listOrders({ accountId, groupId, pageSize: GROUP_MAX }, { signal })).orders,
    staleTime: Infinity,
  });
  useEffect(() => {
    if (query.data) takeAnnotated(query.data);
  }, [query.data, takeAnnotated]);
  const members = (query.data ?? []).map((order) => known.orders.get(order.orderId) ?? order).sort((left, right) => (left.orderId < right.orderId ? -1 : 1));
  return (
    <section aria-label="Its group">
      <Text size="xs" fw={600} component="h3" mt={0} mb={0}>
        Its group
      </Text>
      {query.isPending ? (
        <Loading what="its group" />
      ) : query.isError ? (
        <Failed what="its group" error={query.error} onRetry={() => void query.refetch()} />
      ) : (
        <Rows label="Orders of the group">
          {members.map((order) => (
            <Row
              key={order.orderId}
              title={
                <>
                  {GROUP_ROLES[order.groupRole]}
                  {order.orderId === ownId && " (this one)"}
                  <OrderStateBadge order={order} />
                </>
              }
              details={`${SIDES[order.side]} ${order.quantity?.value ?? ""} · ${TYPES[order.orderType]} · ${priceText(order)}`}
            />
          ))}
        </Rows>
      )}
    </section>
  );
}
