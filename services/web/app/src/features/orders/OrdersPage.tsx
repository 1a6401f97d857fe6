import { Button, Center, SegmentedControl } from "@mantine/core";
import { useState } from "react";
import { useAccount } from "@/features/accounts/account";
import { Panel } from "@/ui/Panel";
import { Empty, Failed, Loading } from "@/ui/states";
import { useAccountOrders } from "./AccountOrdersProvider";
import { doneOrdersOf, newestFirst, openOrdersOf } from "./accountOrders";
import { OrdersTable } from "./OrdersTable";
import { useOrderList } from "./useOrderList";

type Which = "all" | "open" | "done";

export function OrdersPage() {
  const { account } = useAccount();
  const { known } = useAccountOrders();
  const list = useOrderList(account.accountId);
  const [which, setWhich] = useState<Which>("all");
  const orders =
    which === "open" ? openOrdersOf(known) : which === "done" ? doneOrdersOf(known) : [...known.orders.values()].sort(newestFirst);

  return (
    <Panel
      title="Orders"
      aside={
        <SegmentedControl
          size="xs"
          aria-label="Which orders"
          value={which}
          onChange={(value) => setWhich(value as Which)}
          data={[
            { value: "all", label: "All" },
            { value: "open", label: "Open" },
            { value: "done", label: "Done" },
          ]}
        />
      }
    >
      {list.isPending ? (
        <Loading what="your orders" />
      ) : list.isError && orders.length === 0 ? (
        <Failed what="your orders" error={list.error} onRetry={() => void list.refetch()} />
      ) : orders.length === 0 ? (
        <Empty title={which === "open" ? "No open orders" : "No orders yet"}>Place one on the page Trade.</Empty>
      ) : (
        <>
          <OrdersTable orders={orders} label="Orders" />
          {list.hasNextPage && (
            <Center p="sm">
              <Button size="xs" variant="default" loading={list.isFetchingNextPage} onClick={() => void list.fetchNextPage()}>
                Show older orders
              </Button>
            </Center>
          )}
        </>
      )}
    </Panel>
  );
}
