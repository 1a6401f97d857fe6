import { SimpleGrid, Stack } from "@mantine/core";
import { OrderState } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useAccount } from "@/features/accounts/account";
import { useAccountOrders } from "@/features/orders/AccountOrdersProvider";
import { openOrdersOf } from "@/features/orders/accountOrders";
import { OrdersTable } from "@/features/orders/OrdersTable";
import { useOrderList } from "@/features/orders/useOrderList";
import type { OrderFilter } from "@/features/orders/orderFilter";
import { Panel } from "@/ui/Panel";
import { Empty, Failed, Loading } from "@/ui/states";
import { ExternalOrders } from "./ExternalOrders";
import { Key } from "./Key";
import { Reconciliations } from "./Reconciliations";
import { Standing } from "./Standing";
import { isLive } from "./words";

/** A live account and its venue: whether it trades, by which key, and whether both have the same record. */
export function LivePage() {
  const { account } = useAccount();
  if (!isLive(account)) {
    return <Empty title={`“${account.name}” is a paper account`}>Its money is not real. Open a live account in the menu of accounts, above.</Empty>;
  }
  return (
    <Stack gap="xs" key={account.accountId}>
      <SimpleGrid cols={{ base: 1, md: 2 }} spacing="xs">
        <Standing account={account} />
        <Key account={account} />
      </SimpleGrid>
      <Reconciliations account={account} />
      <ExternalOrders account={account} />
      <Unsettled accountId={account.accountId} />
    </Stack>
  );
}

const UNSETTLED: OrderFilter = { states: [OrderState.UNKNOWN], instrumentId: "", tag: "" };

/** Orders whose outcome at the venue is not known yet. */
function Unsettled({ accountId }: { accountId: string }) {
  const { known } = useAccountOrders();
  const list = useOrderList(accountId, UNSETTLED);
  const orders = openOrdersOf(known).filter(({ state }) => state === OrderState.UNKNOWN);
  return (
    <Panel title="Orders whose outcome is not known">
      {orders.length > 0 ? (
        <OrdersTable orders={orders} label="Orders whose outcome is not known" />
      ) : list.isPending ? (
        <Loading what="these orders" />
      ) : list.isError ? (
        <Failed what="these orders" error={list.error} onRetry={() => void list.refetch()} />
      ) : (
        <Empty title="None">Where the venue's answer to an order was lost, it stands here until the venue's own record settles it. It is never sent twice.</Empty>
      )}
    </Panel>
  );
}
