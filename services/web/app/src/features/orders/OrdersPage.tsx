import { Autocomplete, Button, Center, Group, Select, Tabs, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { OrderState } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useMemo, useState } from "react";
import { useLocation, useNavigate } from "react-router";
import { PATHS } from "@/app/paths";
import { useAccount } from "@/features/accounts/account";
import { ParentOrders } from "@/features/parentOrders/ParentOrders";
import { Panel } from "@/ui/Panel";
import { Empty, Failed, Loading } from "@/ui/states";
import { useAccountOrders } from "./AccountOrdersProvider";
import { openOrdersOf } from "./accountOrders";
import { CancelAll } from "./CancelAll";
import { DONE_STATES, filtered, OPEN_STATES, type OrderFilter } from "./orderFilter";
import { OrdersTable } from "./OrdersTable";
import { useOrderList } from "./useOrderList";
import { STATES } from "./words";

/** Between the last letter and the asking. */
const TYPING_MILLISECONDS = 300;
const INSTRUMENT_LENGTH_MAX = 49;
const TAG_LENGTH_MAX = 32;

const GROUPS: Record<string, readonly OrderState[]> = { all: [], open: OPEN_STATES, done: DONE_STATES };

const choiceOf = (state: OrderState) => ({ value: String(state), label: STATES[state].label });
const CHOICES = [
  { value: "all", label: "All" },
  { value: "open", label: "Open" },
  { value: "done", label: "Done" },
  { group: "Open", items: OPEN_STATES.map(choiceOf) },
  { group: "Done", items: DONE_STATES.map(choiceOf) },
];

const TABS = { [PATHS.orders]: "Orders", [PATHS.parentOrders]: "Parent orders" };

/** What was ordered: one by one, and in schedules. */
export function OrdersPage() {
  const navigate = useNavigate();
  const { pathname } = useLocation();
  const shown = pathname === PATHS.parentOrders ? PATHS.parentOrders : PATHS.orders;
  return (
    <Tabs value={shown} onChange={(path) => path && void navigate(path)} keepMounted={false}>
      <Tabs.List aria-label="Which orders" mb="xs">
        {Object.entries(TABS).map(([path, label]) => (
          <Tabs.Tab key={path} value={path}>
            {label}
          </Tabs.Tab>
        ))}
      </Tabs.List>
      <Tabs.Panel value={PATHS.orders}>
        <Orders />
      </Tabs.Panel>
      <Tabs.Panel value={PATHS.parentOrders}>
        <ParentOrders />
      </Tabs.Panel>
    </Tabs>
  );
}

function Orders() {
  const { account } = useAccount();
  const { known } = useAccountOrders();
  const [which, setWhich] = useState("all");
  const [typedInstrument, setTypedInstrument] = useState("");
  const [typedTag, setTypedTag] = useState("");
  const [instrumentId] = useDebouncedValue(typedInstrument.trim().toUpperCase(), TYPING_MILLISECONDS);
  const [tag] = useDebouncedValue(typedTag.trim().toLowerCase(), TYPING_MILLISECONDS);
  const filter = useMemo<OrderFilter>(() => ({ states: GROUPS[which] ?? [Number(which)], instrumentId, tag }), [which, instrumentId, tag]);
  const list = useOrderList(account.accountId, filter);
  const orders = filtered(known, list.data?.pages.flatMap((page) => page.orders) ?? [], filter);
  const isNarrowed = which !== "all" || instrumentId !== "" || tag !== "";
  const open = openOrdersOf(known).filter((order) => instrumentId === "" || order.instrumentId === instrumentId);

  return (
    <Panel title="Orders" aside={<CancelAll instrumentId={instrumentId} openCount={open.length} />}>
      <Group p="sm" gap="xs" role="search" aria-label="Filter orders">
        <Select
          label="State"
          size="xs"
          flex="1 1 140px"
          maw={200}
          allowDeselect={false}
          value={which}
          onChange={(value) => setWhich(String(value ?? "all"))}
          data={CHOICES}
        />
        <Autocomplete
          label="Instrument"
          size="xs"
          flex="1 1 140px"
          maw={220}
          placeholder="all"
          maxLength={INSTRUMENT_LENGTH_MAX}
          value={typedInstrument}
          onChange={setTypedInstrument}
          data={[...new Set([...known.orders.values()].map((order) => order.instrumentId))].sort()}
        />
        <TextInput
          label="Tag"
          size="xs"
          flex="1 1 100px"
          maw={160}
          placeholder="all"
          maxLength={TAG_LENGTH_MAX}
          value={typedTag}
          onChange={(event) => setTypedTag(event.currentTarget.value)}
        />
      </Group>
      {list.isPending ? (
        <Loading what="your orders" />
      ) : list.isError && orders.length === 0 ? (
        <Failed what="your orders" error={list.error} onRetry={() => void list.refetch()} />
      ) : orders.length === 0 ? (
        <Empty title={isNarrowed ? "No orders like that" : "No orders yet"}>Place one on the page Trade.</Empty>
      ) : (
        <>
          <OrdersTable orders={orders} label="Orders" />
          {list.isError && <Failed what="older orders" error={list.error} onRetry={() => void list.fetchNextPage()} />}
          {list.hasNextPage && !list.isError && (
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
