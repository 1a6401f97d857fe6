import { SegmentedControl, Tabs } from "@mantine/core";
import { useState } from "react";
import { Navigate, useNavigate, useParams } from "react-router";
import { tradePath } from "@/app/paths";
import { useAccount } from "@/features/accounts/account";
import { CandleChart } from "@/features/market/CandleChart";
import { Depth } from "@/features/market/Depth";
import { MarketBar } from "@/features/market/MarketBar";
import { Trades } from "@/features/market/Trades";
import { useInstrument, useInstruments } from "@/features/market/useInstruments";
import { useTape } from "@/features/market/useTape";
import { useAccountOrders } from "@/features/orders/AccountOrdersProvider";
import { doneOrdersOf, openOrdersOf } from "@/features/orders/accountOrders";
import { CancelAll } from "@/features/orders/CancelAll";
import { OrdersTable } from "@/features/orders/OrdersTable";
import { OrderTicket } from "@/features/orders/OrderTicket";
import { useOrderList } from "@/features/orders/useOrderList";
import { ParentsTable } from "@/features/parentOrders/ParentsTable";
import { ParentTicket } from "@/features/parentOrders/ParentTicket";
import { useParentsUnderWay } from "@/features/parentOrders/useParents";
import { BalancesTable } from "@/features/portfolio/BalancesTable";
import { PositionsTable } from "@/features/portfolio/PositionsTable";
import { usePortfolio } from "@/features/portfolio/usePortfolio";
import { placesOf } from "@/lib/decimal";
import { Panel } from "@/ui/Panel";
import { Empty, Failed, Loading } from "@/ui/states";
import classes from "./TradePage.module.css";

/** What the page opens with when nobody chose and this is there. */
const FIRST_CHOICE = "SIM:BTCUSDT";

/** One instrument: its market, a ticket, and what the account has in it. */
export function TradePage() {
  const { instrumentId } = useParams();
  return instrumentId === undefined ? <FirstInstrument /> : <Trading key={instrumentId} instrumentId={instrumentId} />;
}

function FirstInstrument() {
  const all = useInstruments("");
  if (all.isPending) return <Loading what="instruments" />;
  if (all.isError) return <Failed what="the instruments" error={all.error} onRetry={() => void all.refetch()} />;
  const first = all.data.find((instrument) => instrument.instrumentId === FIRST_CHOICE) ?? all.data[0];
  if (!first) return <Empty title="There are no instruments yet">A running feed, or an import, brings them.</Empty>;
  return <Navigate to={tradePath(first.instrumentId)} replace />;
}

function Trading({ instrumentId }: { instrumentId: string }) {
  const navigate = useNavigate();
  const query = useInstrument(instrumentId);
  const instrument = query.data;
  const { tape, stream } = useTape(instrument ? instrumentId : null);
  const [chosenPrice, setChosenPrice] = useState<{ price: number; ticket: "order" | "parent" }>();
  const [ticket, setTicket] = useState<"order" | "parent">("order");

  if (query.isPending) return <Loading what={instrumentId} />;
  if (!instrument) return <Failed what={instrumentId} error={query.error} onRetry={() => void query.refetch()} />;
  const places = placesOf(instrument.tickSize?.value ?? "0.01");

  return (
    <div className={classes.page}>
      <div className={classes.market}>
        <MarketBar instrument={instrument} tape={tape} stream={stream} onChoose={(id) => void navigate(tradePath(id))} />
      </div>
      <div className={classes.chart}>
        <CandleChart instrument={instrument} />
      </div>
      <div className={classes.book}>
        <Panel title="Order book" className={classes.depth!}>
          <Depth
            tape={tape}
            places={places}
            hasBook={instrument.hasBook}
            onChoose={(price) => setChosenPrice({ price, ticket })}
          />
        </Panel>
        <Panel title="Market trades" className={classes.trades!}>
          <Trades tape={tape} places={places} />
        </Panel>
      </div>
      <div className={classes.ticket}>
        <Panel
          title="Place an order"
          className={classes.whole!}
          aside={
            <SegmentedControl
              size="xs"
              aria-label="At once or in parts"
              value={ticket}
              onChange={(value) => setTicket(value as typeof ticket)}
              data={[
                { value: "order", label: "At once" },
                { value: "parent", label: "In parts" },
              ]}
            />
          }
        >
          {/* What was typed, or is being sent, stays while the other one is looked at. */}
          <div hidden={ticket !== "order"}>
            <OrderTicket instrument={instrument} lastPrice={tape.lastPrice} chosenPrice={chosenPrice?.ticket === "order" ? chosenPrice : undefined} />
          </div>
          <div hidden={ticket !== "parent"}>
            <ParentTicket instrument={instrument} chosenPrice={chosenPrice?.ticket === "parent" ? chosenPrice : undefined} />
          </div>
        </Panel>
      </div>
      <div className={classes.account}>
        <AccountTabs />
      </div>
    </div>
  );
}

/** What the account has and had. */
function AccountTabs() {
  const { account } = useAccount();
  const { known } = useAccountOrders();
  const list = useOrderList(account.accountId);
  const portfolio = usePortfolio(account.accountId);
  const underWay = useParentsUnderWay(account.accountId);
  const parents = underWay.data?.pages.flatMap((page) => page.parentOrders) ?? [];
  const open = openOrdersOf(known);
  const done = doneOrdersOf(known);

  const holdings = (show: (data: NonNullable<typeof portfolio.data>) => React.ReactNode) =>
    portfolio.data ? (
      show(portfolio.data)
    ) : portfolio.isError ? (
      <Failed what="the portfolio" error={portfolio.error} onRetry={() => void portfolio.refetch()} />
    ) : (
      <Loading what="the portfolio" />
    );

  /** Nobody is told that there is nothing before it is known. */
  const without = (title: string) =>
    list.isPending ? (
      <Loading what="your orders" />
    ) : list.isError ? (
      <Failed what="your orders" error={list.error} onRetry={() => void list.refetch()} />
    ) : (
      <Empty title={title} />
    );

  return (
    <Tabs defaultValue="open" className={classes.tabs!} keepMounted={false}>
      <div className={classes.tabHead}>
        <Tabs.List className={classes.tabList!} aria-label="Account">
          <Tabs.Tab value="open">Open orders ({open.length})</Tabs.Tab>
          <Tabs.Tab value="parents">
            Parent orders ({parents.length}
            {underWay.hasNextPage && "+"})
          </Tabs.Tab>
          <Tabs.Tab value="done">History</Tabs.Tab>
          <Tabs.Tab value="positions">Positions ({portfolio.data?.positions.length ?? 0})</Tabs.Tab>
          <Tabs.Tab value="balances">Balances</Tabs.Tab>
        </Tabs.List>
        <CancelAll instrumentId="" openCount={open.length} />
      </div>
      <Tabs.Panel value="open" className={classes.tabPanel!}>
        {open.length ? <OrdersTable orders={open} label="Open orders" /> : without("No open orders")}
      </Tabs.Panel>
      <Tabs.Panel value="parents" className={classes.tabPanel!}>
        <ParentsTable
          parents={parents}
          label="Parent orders under way"
          empty={
            underWay.isPending ? (
              <Loading what="your parent orders" />
            ) : underWay.isError ? (
              <Failed what="your parent orders" error={underWay.error} onRetry={() => void underWay.refetch()} />
            ) : (
              <Empty title="No parent orders are under way" />
            )
          }
        />
      </Tabs.Panel>
      <Tabs.Panel value="done" className={classes.tabPanel!}>
        {done.length ? <OrdersTable orders={done} label="Order history" /> : without("No orders yet")}
      </Tabs.Panel>
      <Tabs.Panel value="positions" className={classes.tabPanel!}>
        {holdings((data) => (
          <PositionsTable positions={data.positions} />
        ))}
      </Tabs.Panel>
      <Tabs.Panel value="balances" className={classes.tabPanel!}>
        {holdings((data) => (
          <BalancesTable balances={data.balances} />
        ))}
      </Tabs.Panel>
    </Tabs>
  );
}
