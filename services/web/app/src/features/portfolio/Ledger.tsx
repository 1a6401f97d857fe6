import { Button, Center, Group, ScrollArea, Select, Table } from "@mantine/core";
import { useInfiniteQuery } from "@tanstack/react-query";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { shown, signOf } from "@/lib/decimal";
import { exactTime } from "@/lib/time";
import { Empty, Failed, Loading } from "@/ui/states";
import { transactionsOf } from "./ledger";
import classes from "./tables.module.css";

const ENTRIES_PAGE = 100;
const ALL = "all";

/** Every change of what the account holds, to the last digit, by transaction. */
export function Ledger({ accountId, assets }: { accountId: string; assets: readonly string[] }) {
  const { portfolio } = useApi();
  const [asset, setAsset] = useState(ALL);
  const query = useInfiniteQuery({
    queryKey: ["ledger", accountId, asset],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      portfolio.listLedgerEntries(
        { accountId, asset: asset === ALL ? "" : asset, pageSize: ENTRIES_PAGE, pageToken: pageParam },
        { signal },
      ),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
  const transactions = transactionsOf(query.data?.pages.flatMap((page) => page.entries) ?? []);
  return (
    <>
      <Group p="xs">
        <Select
          label="Asset"
          size="xs"
          w={140}
          allowDeselect={false}
          value={asset}
          onChange={(value) => setAsset(value ?? ALL)}
          data={[{ value: ALL, label: "All" }, ...assets]}
        />
      </Group>
      {query.isPending ? (
        <Loading what="the ledger" />
      ) : query.isError && transactions.length === 0 ? (
        <Failed what="the ledger" error={query.error} onRetry={() => void query.refetch()} />
      ) : transactions.length === 0 ? (
        <Empty title="Nothing is booked" />
      ) : (
        <ScrollArea type="scroll">
          <Table className={classes.table!} aria-label="Ledger">
            <Table.Thead>
              <Table.Tr>
                <Table.Th>Time</Table.Th>
                <Table.Th>What</Table.Th>
                <Table.Th>Book</Table.Th>
                <Table.Th className="number">Amount</Table.Th>
                <Table.Th>Asset</Table.Th>
                <Table.Th>Transaction</Table.Th>
              </Table.Tr>
            </Table.Thead>
            {transactions.map(({ transactionId, kind, time, entries }) => (
              <Table.Tbody key={transactionId} className={classes.transaction!} aria-label={`${kind} ${transactionId}`}>
                {entries.map((entry, index) => (
                  <Table.Tr key={String(entry.entryId)}>
                    <Table.Td c="dimmed">{index === 0 && exactTime(time)}</Table.Td>
                    <Table.Td>{index === 0 && kind}</Table.Td>
                    <Table.Td>{entry.book}</Table.Td>
                    <Table.Td className={`number ${signOf(entry.amount?.value ?? "0") < 0 ? "falling" : "rising"}`}>
                      {shown(entry.amount?.value, 2, 18)}
                    </Table.Td>
                    <Table.Td>{entry.asset}</Table.Td>
                    <Table.Td c="dimmed" ff="monospace" fz="xs">
                      {index === 0 && transactionId}
                    </Table.Td>
                  </Table.Tr>
                ))}
              </Table.Tbody>
            ))}
          </Table>
        </ScrollArea>
      )}
      {query.isError && transactions.length > 0 && (
        <Failed what="older entries" error={query.error} onRetry={() => void query.fetchNextPage()} />
      )}
      {query.hasNextPage && !query.isError && (
        <Center p="sm">
          <Button size="xs" variant="default" loading={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
            Show older entries
          </Button>
        </Center>
      )}
    </>
  );
}
