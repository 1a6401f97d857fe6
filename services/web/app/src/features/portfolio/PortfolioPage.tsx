import { Button, Center, Group, Paper, ScrollArea, SimpleGrid, Stack, Table, Text } from "@mantine/core";
import { useInfiniteQuery } from "@tanstack/react-query";
import { OrderSide } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useApi } from "@/api/clients";
import { useAccount } from "@/features/accounts/account";
import { SIDES } from "@/features/orders/words";
import { shown } from "@/lib/decimal";
import { dayAndClock } from "@/lib/time";
import { Panel } from "@/ui/Panel";
import { Empty, Failed, Loading } from "@/ui/states";
import { BalancesTable } from "./BalancesTable";
import { PositionsTable } from "./PositionsTable";
import classes from "./tables.module.css";
import { usePortfolio } from "./usePortfolio";

const FILLS_PAGE = 50;

export function PortfolioPage() {
  const { account } = useAccount();
  const portfolio = usePortfolio(account.accountId);
  if (portfolio.isPending) return <Loading what="the portfolio" />;
  if (!portfolio.data) {
    return <Failed what="the portfolio" error={portfolio.error} onRetry={() => void portfolio.refetch()} />;
  }
  const { balances, positions, equity } = portfolio.data;
  return (
    <Stack gap="xs">
      <SimpleGrid cols={{ base: 1, xs: 2, md: 4 }} spacing="xs">
        {equity.map(({ asset, amount }) => (
          <Paper key={asset} withBorder p="sm" radius="md" bg="var(--panel)">
            <Text size="xs" c="dimmed">
              Worth in {asset}
            </Text>
            <Text size="xl" fw={600} data-testid={`equity-${asset}`}>
              {shown(amount?.value, 2, 2)}
            </Text>
          </Paper>
        ))}
      </SimpleGrid>
      <Panel title="Positions">
        <PositionsTable positions={positions} />
      </Panel>
      <Panel title="Balances">
        <BalancesTable balances={balances} />
      </Panel>
      <Fills accountId={account.accountId} />
    </Stack>
  );
}

function Fills({ accountId }: { accountId: string }) {
  const { orders } = useApi();
  const query = useInfiniteQuery({
    queryKey: ["executions", accountId],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) => orders.listExecutions({ accountId, pageSize: FILLS_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
  const fills = query.data?.pages.flatMap((page) => page.executions) ?? [];
  return (
    <Panel title="Fills">
      {query.isPending ? (
        <Loading what="fills" />
      ) : query.isError && fills.length === 0 ? (
        <Failed what="the fills" error={query.error} onRetry={() => void query.refetch()} />
      ) : fills.length === 0 ? (
        <Empty title="Nothing has traded yet" />
      ) : (
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
              <Group>
                <Button size="xs" variant="default" loading={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
                  Show older fills
                </Button>
              </Group>
            </Center>
          )}
        </>
      )}
    </Panel>
  );
}
