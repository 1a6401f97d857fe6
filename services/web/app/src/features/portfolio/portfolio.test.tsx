import { create } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import {
  AccountSchema,
  EquityPointSchema,
  EquityResolution,
  LedgerEntrySchema,
  OrderService,
  PortfolioService,
  type ClosePositionRequest,
  type GetEquityHistoryRequest,
  type ListLedgerEntriesRequest,
} from "@gen/tradeloom/orders/v1/orders_pb.js";
import { screen, waitFor, within } from "@testing-library/react";
import { expect, test } from "vitest";
import { AccountContext } from "@/features/accounts/account";
import { AccountOrdersProvider } from "@/features/orders/AccountOrdersProvider";
import { refused, signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { drawnOf, startOf } from "./equity";
import { transactionsOf } from "./ledger";
import { PortfolioPage } from "./PortfolioPage";

const ACCOUNT = create(AccountSchema, { accountId: "a1", name: "Paper" });

function held(worth: string, revision: bigint) {
  return {
    revision,
    balances: [{ asset: "USDT", total: { value: worth } }],
    positions: [
      {
        instrumentId: "SIM:BTCUSDT",
        quantity: { value: "0.5" },
        unrealizedProfit: { value: "12.5" },
        realizedProfit: { value: "-3" },
      },
    ],
    equity: [{ asset: "USDT", amount: { value: worth } }],
  };
}

const isWorth = (text: string) => waitFor(() => expect(screen.getByTestId("equity-USDT").textContent).toBe(text));

/** The page before services that remember what they were asked; `tell` sends the next portfolio down the stream. */
async function open() {
  const asked = { closings: [] as ClosePositionRequest[], ledgers: [] as ListLedgerEntriesRequest[], histories: [] as GetEquityHistoryRequest[] };
  const waiting: ((worth: [string, bigint]) => void)[] = [];
  const api = await signedInApi(({ service }) => {
    service(OrderService, {
      listExecutions: () => ({}),
      streamOrderEvents: async function* (_, { signal }) {
        yield { cursor: "0", step: { case: "acknowledgement" as const, value: { heartbeatSeconds: 5 } } };
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
    });
    service(PortfolioService, {
      getPortfolio: () => held("1000", 4n),
      getEquityHistory: (request) => {
        asked.histories.push(request);
        return { valuationAsset: "USDT" };
      },
      listLedgerEntries: (request) => {
        asked.ledgers.push(request);
        const [entryId, book, amount] = request.pageToken ? [1n, "venue", "-10"] : [2n, "account", "10"];
        const entry = { entryId, book, amount: { value: amount }, transactionId: "t1", kind: "fill", asset: "USDT" };
        return { entries: [entry], nextPageToken: request.pageToken ? "" : "older" };
      },
      closePosition: (request) => {
        asked.closings.push(request);
        if (asked.closings.length === 1) throw refused(Code.FailedPrecondition, "NOT_REDUCING", { quantity: "0.5", reducible: "0.2" });
        return { order: { orderId: "o1" } };
      },
      streamPortfolio: async function* (_, { signal }) {
        yield { cursor: "5", heartbeatSeconds: 5, step: { case: "portfolio" as const, value: held("1100", 5n) } };
        signal.addEventListener("abort", () => waiting.splice(0).forEach((end) => end(["0", -1n])));
        while (!signal.aborted) {
          const [worth, revision] = await new Promise<[string, bigint]>((resolve) => waiting.push(resolve));
          if (!signal.aborted) yield { cursor: String(revision), step: { case: "portfolio" as const, value: held(worth, revision) } };
        }
      },
    });
  });
  const user = show(
    api,
    <AccountContext value={{ account: ACCOUNT, accounts: [ACCOUNT], choose: () => {} }}>
      <AccountOrdersProvider accountId="a1">
        <PortfolioPage />
      </AccountOrdersProvider>
    </AccountContext>,
  );
  await isWorth("1,100.00");
  const tell = async (worth: string, revision: bigint) => {
    await waitFor(() => expect(waiting).toHaveLength(1));
    waiting.shift()!([worth, revision]);
  };
  return { asked, tell, user };
}

test("what the account is worth is told by the stream, and nothing older is shown after it", async () => {
  const { tell } = await open();
  const seen: (string | null)[] = [];
  const worth = screen.getByTestId("equity-USDT");
  const watching = new MutationObserver(() => seen.push(worth.textContent));
  watching.observe(worth, { characterData: true, childList: true, subtree: true });
  await tell("900", 3n);
  await tell("1200", 6n);
  await isWorth("1,200.00");
  expect(seen).not.toContain("900.00");
  watching.disconnect();
  expect(seen).toContain("1,200.00");
  expect(screen.getByTestId("stream-portfolio").getAttribute("data-phase")).toBe("live");
  expect(screen.getByRole("row", { name: /SIM:BTCUSDT/ }).textContent).toMatch(/12\.50.*-3\.00/);
});

test("a position is closed after a question, and a part of it is another request than all of it", async () => {
  const { asked, user } = await open();
  await user.click(screen.getByRole("button", { name: "Close SIM:BTCUSDT" }));
  const question = await screen.findByRole("dialog");
  await user.click(within(question).getByRole("button", { name: "Close it" }));
  await within(question).findByText(/no more than 0.2 to reduce/);
  await user.type(within(question).getByLabelText("Only so much of it"), "0.2");
  await user.click(within(question).getByRole("button", { name: "Close it" }));
  await screen.findByText("Closing SIM:BTCUSDT");
  expect(asked.closings.map(({ accountId, instrumentId, quantity }) => [accountId, instrumentId, quantity?.value])).toEqual([
    ["a1", "SIM:BTCUSDT", undefined],
    ["a1", "SIM:BTCUSDT", "0.2"],
  ]);
  expect(asked.closings[0]!.requestId).not.toBe(asked.closings[1]!.requestId);
});

test("the ledger is read a page at a time, by transaction", async () => {
  const { asked, user } = await open();
  await user.click(screen.getByRole("tab", { name: "Ledger" }));
  const ledger = await screen.findByRole("table", { name: "Ledger" });
  expect(within(ledger).getAllByText("t1")).toHaveLength(1);
  await user.click(screen.getByRole("button", { name: "Show older entries" }));
  await within(ledger).findByText("-10.00");
  expect(within(ledger).getAllByText("t1")).toHaveLength(1);
  expect(asked.ledgers.map(({ pageToken }) => pageToken)).toEqual(["", "older"]);
});

test("the history is asked for as far back and as densely as one chose", async () => {
  const { asked, user } = await open();
  await screen.findByText("Nothing has changed in this time");
  await user.click(screen.getByText("All"));
  await waitFor(() => expect(asked.histories.at(-1)?.resolution).toBe(EquityResolution.DAY));
  expect(asked.histories.at(-1)?.startTime).toBeUndefined();
  expect(asked.histories[0]).toMatchObject({ resolution: EquityResolution.MINUTE, pageSize: 5000 });
});

test("a period begins so long before now, and points are drawn in the order of time, each moment once", () => {
  const now = new Date("2027-01-31T12:00:00Z").getTime();
  expect(timestampDate(startOf("1D", now)!)).toEqual(new Date("2027-01-30T12:00:00Z"));
  const point = (time: string, value: string) => create(EquityPointSchema, { time: timestampFromDate(new Date(time)), equity: { value } });
  const drawn = drawnOf([point("2027-01-31T12:01:00Z", "2"), point("2027-01-31T12:00:00Z", "1"), point("2027-01-31T12:01:00Z", "3")]);
  expect(drawn.map(({ value }) => value)).toEqual([1, 3]);
});

test("a transaction that goes on on the next page is one", () => {
  const entry = (entryId: bigint, transactionId: string) => create(LedgerEntrySchema, { entryId, transactionId });
  const found = transactionsOf([entry(4n, "t2"), entry(3n, "t1"), entry(2n, "t1")]);
  expect(found.map(({ transactionId, entries }) => [transactionId, entries.length])).toEqual([["t2", 1], ["t1", 2]]);
});
