import { Button, Center, Group, Select } from "@mantine/core";
import type { ParentOrderState } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { useState } from "react";
import { useAccount } from "@/features/accounts/account";
import { Panel } from "@/ui/Panel";
import { Empty, Failed, Loading } from "@/ui/states";
import { ParentsTable } from "./ParentsTable";
import { useParents } from "./useParents";
import { LIVE_STATES, STATES } from "./words";

const CHOICES = [
  { value: "all", label: "All" },
  { value: "underWay", label: "Under way" },
  ...Object.entries(STATES)
    .filter(([state]) => Number(state) !== 0 && !LIVE_STATES.includes(Number(state)))
    .map(([state, { label }]) => ({ value: state, label })),
];

function statesOf(which: string): readonly ParentOrderState[] {
  if (which === "all") return [];
  return which === "underWay" ? LIVE_STATES : [Number(which)];
}

/** All parent orders of the account, newest first. */
export function ParentOrders() {
  const { account } = useAccount();
  const [which, setWhich] = useState("all");
  const query = useParents(account.accountId, statesOf(which));
  const parents = query.data?.pages.flatMap((page) => page.parentOrders) ?? [];
  return (
    <Panel title="Parent orders">
      <Group p="sm" gap="xs" role="search" aria-label="Filter parent orders">
        <Select
          label="State"
          size="xs"
          flex="1 1 140px"
          maw={200}
          allowDeselect={false}
          value={which}
          onChange={(value) => setWhich(value ?? "all")}
          data={CHOICES}
        />
      </Group>
      {query.isPending ? (
        <Loading what="your parent orders" />
      ) : query.isError && parents.length === 0 ? (
        <Failed what="your parent orders" error={query.error} onRetry={() => void query.refetch()} />
      ) : (
        <>
          <ParentsTable
            parents={parents}
            label="Parent orders"
            empty={
              <Empty title={which === "all" ? "No parent orders yet" : "No parent orders like that"}>
                A TWAP, an iceberg or a DCA works a large order in small ones. Place one on the page Trade.
              </Empty>
            }
          />
          {query.isError && <Failed what="older parent orders" error={query.error} onRetry={() => void query.fetchNextPage()} />}
          {query.hasNextPage && !query.isError && (
            <Center p="sm">
              <Button size="xs" variant="default" loading={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
                Show older parent orders
              </Button>
            </Center>
          )}
        </>
      )}
    </Panel>
  );
}
