import { Button, Center, ScrollArea, Table } from "@mantine/core";
import { useInfiniteQuery } from "@tanstack/react-query";
import { OrderSide } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useApi } from "@/api/clients";
import { SIDES } from "@/features/orders/words";
import { shown } from "@/lib/decimal";
import { dayAndClock } from "@/lib/time";
import { Empty, Failed, Loading } from "@/ui/states";
import classes from "./tables.module.css";

const FILLS_PAGE = 50;

/** What has traded, newest first. */
export function Fills({ accountId }: { accountId: string }) {
  const { orders } = useApi();
  const query = useInfiniteQuery({
    queryKey: ["executions", accountId],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) => orders.listExecutions({ accountId, pageSize: FILLS_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
  const fills = query.data?.pages.flatMap((page) => page.executions) ?? [];
  if (query.isPending) return <Loading what="fills" />;
  if (query.isError && fills.length === 0) return <Failed what="the fills" error={query.error} onRetry={() => void query.refetch()} />;
  if (fills.length === 0) return <Empty title="Nothing has traded yet" />;
  return (
    <>
      <ScrollArea type="scroll">
        <Table className={classes.table!} aria-label="Fills">
          <Table.Thead>
            <Table.Tr>
              <Table.Th>Time</Table.Th>
              <Table.Th>Instrument</Table.Th>
              <Table.Th>Side</Table.Th>
              <Table.Th className="number">Quantity</Table.Th>
              <Table.Th className="number">Price</Table.Th>
              <Table.Th className="number">Fee</Table.Th>
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {fills.map((fill) => (
              <Table.Tr key={fill.executionId}>
                <Table.Td c="dimmed">{dayAndClock(fill.time)}</Table.Td>
                <Table.Td>{fill.instrumentId}</Table.Td>
                <Table.Td className={fill.side === OrderSide.BUY ? "rising" : "falling"}>{SIDES[fill.side]}</Table.Td>
                <Table.Td className="number">{shown(fill.quantity?.value, 0)}</Table.Td>
                <Table.Td className="number">{shown(fill.price?.value)}</Table.Td>
                <Table.Td className="number">
                  {shown(fill.fee?.value, 2, 6)} {fill.feeAsset}
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </ScrollArea>
      {query.hasNextPage && (
        <Center p="sm">
          <Button size="xs" variant="default" loading={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
            Show older fills
          </Button>
        </Center>
      )}
    </>
  );
}
