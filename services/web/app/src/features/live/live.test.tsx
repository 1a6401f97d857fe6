import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import {
  DifferenceKind,
  ExecutionService,
  ExternalOrderSchema,
  ExternalOrderState,
  ReconciliationCause,
  ReconciliationSchema,
  ReconciliationState,
  type Reconciliation,
} from "@gen/tradeloom/execution/v1/execution_pb.js";
import { LiveTradingSchema, LiveTradingService, type ConfirmLiveTradingRequest, type StopLiveTradingRequest } from "@gen/tradeloom/orders/v1/live_pb.js";
import { AccountMode, AccountSchema, LiveState, OrderService, OrderState, PortfolioService, type Account, type CreateAccountRequest } from "@gen/tradeloom/orders/v1/orders_pb.js";
import {
  BrokerCredentialProblem,
  BrokerCredentialSchema,
  BrokerCredentialService,
  BrokerCredentialState,
  type BrokerCredential,
  type PutBrokerCredentialRequest,
} from "@gen/tradeloom/users/v1/users_pb.js";
import { screen, waitFor, within } from "@testing-library/react";
import { expect, test } from "vitest";
import { AccountGate } from "@/features/accounts/AccountGate";
import { useAccount } from "@/features/accounts/account";
import { refused, signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { LivePage } from "./LivePage";
import { RealMoneyBanner } from "./RealMoneyBanner";
import { externalText, holdOf, outcomeOf, scopeOf } from "./words";

const LIVE = create(AccountSchema, {
  accountId: "a1",
  name: "Main",
  mode: AccountMode.LIVE,
  venue: "BINANCE",
  liveState: LiveState.UNCONFIRMED,
});
const CONFIRMED = { ...LIVE, liveState: LiveState.ON };
const USABLE = create(BrokerCredentialSchema, { credentialId: "c1", accountId: "a1", label: "Main", state: BrokerCredentialState.USABLE });
const TIME = timestampFromDate(new Date("2027-03-01T12:00"));

interface Setup {
  account?: Account;
  key?: BrokerCredential;
  enabled?: boolean;
  isCompared?: boolean;
  problem?: BrokerCredentialProblem;
}

/** The page of the one account there is, before services that keep what it has. */
async function open({ account = LIVE, key, enabled = true, isCompared = false, problem = BrokerCredentialProblem.UNSPECIFIED }: Setup = {}) {
  const kept = { account, key };
  const asked = {
    opened: [] as CreateAccountRequest[],
    confirms: [] as ConfirmLiveTradingRequest[],
    stops: [] as StopLiveTradingRequest[],
    puts: [] as PutBrokerCredentialRequest[],
    decided: [] as string[],
    compared: 0,
  };
  const external = create(ExternalOrderSchema, {
    externalOrderId: "e1",
    accountId: "a1",
    venueOrderId: "77",
    instrumentId: "BINANCE:BTCUSDT",
    buys: true,
    quantity: { value: "0.5" },
    limitPrice: { value: "29000" },
    state: ExternalOrderState.FOUND,
  });
  const found = create(ReconciliationSchema, {
    reconciliationId: "r1",
    cause: ReconciliationCause.RECONNECT,
    state: ReconciliationState.DONE,
    endTime: TIME,
    orderCount: 1,
    fillCount: 2,
    assetCount: 3,
    differences: [{ kind: DifferenceKind.BALANCE, subject: "USDT", ours: "100", venues: "150.5", explanation: "no trade explains it; the venue counts" }],
  });
  const api = await signedInApi(
    ({ service }) => {
      service(PortfolioService, {
        listAccounts: () => ({ accounts: [kept.account] }),
        createAccount: (request) => {
          asked.opened.push(request);
          return { account: kept.account };
        },
      });
      service(LiveTradingService, {
        getLiveTrading: () => ({ liveTrading: { enabled, reason: "we are ready", setTime: TIME } }),
        confirmLiveTrading: (request) => {
          asked.confirms.push(request);
          if (asked.confirms.length === 1) throw refused(Code.PermissionDenied, "STEP_UP_REQUIRED");
          kept.account = { ...kept.account, liveState: LiveState.ON, stopReason: "" };
          return { account: kept.account };
        },
        stopLiveTrading: (request) => {
          asked.stops.push(request);
          kept.account = { ...kept.account, liveState: LiveState.STOPPED, stopReason: "owner" };
          return { account: kept.account };
        },
      });
      service(BrokerCredentialService, {
        listBrokerCredentials: () => ({ credentials: kept.key ? [kept.key] : [] }),
        putBrokerCredential: (request) => {
          asked.puts.push(request);
          kept.key = create(BrokerCredentialSchema, {
            credentialId: "c1",
            accountId: request.accountId,
            venue: request.venue,
            label: request.label,
            apiKeyEnding: request.apiKey.slice(-4),
            state: BrokerCredentialState.UNTESTED,
          });
          return { credential: kept.key };
        },
        testBrokerCredential: () => {
          const state = problem === BrokerCredentialProblem.UNSPECIFIED ? BrokerCredentialState.USABLE : BrokerCredentialState.REFUSED;
          kept.key = create(BrokerCredentialSchema, { ...kept.key!, state });
          kept.key.check = { ...create(BrokerCredentialSchema, { check: { problem, checkTime: TIME } }).check! };
          return { credential: kept.key };
        },
        deleteBrokerCredential: () => {
          kept.key = undefined;
          return {};
        },
      });
      service(ExecutionService, {
        listReconciliations: () => {
          if (kept.account.liveState === LiveState.UNCONFIRMED) throw refused(Code.NotFound, "ACCOUNT_NOT_FOUND", { account_id: "a1" });
          return { reconciliations: [found] };
        },
        reconcile: () => {
          if (isCompared) throw refused(Code.ResourceExhausted, "RATE_LIMITED", { limit: "reconciliation" }, [], 8);
          asked.compared += 1;
          return { reconciliation: found };
        },
        listExternalOrders: ({ includeDecided }) => ({ orders: includeDecided || external.state === ExternalOrderState.FOUND ? [external] : [] }),
        adoptExternalOrder: () => {
          asked.decided.push("adopt");
          external.state = ExternalOrderState.ADOPTED;
          return { order: external };
        },
        ignoreExternalOrder: () => {
          asked.decided.push("ignore");
          external.state = ExternalOrderState.IGNORED;
          return { order: external };
        },
      });
      service(OrderService, {
        listOrders: () => ({ orders: [{ orderId: "o1", instrumentId: "BINANCE:BTCUSDT", quantity: { value: "1" }, state: OrderState.UNKNOWN, revision: 1n }] }),
        streamOrderEvents: async function* (_, { signal }) {
          yield { cursor: "0", step: { case: "acknowledgement" as const, value: { heartbeatSeconds: 5 } } };
          await new Promise((resolve) => signal.addEventListener("abort", resolve));
        },
      });
    },
  );
  // The dialog that asks for the code has its own tests.
  api.stepUp.subscribe(() => api.stepUp.snapshot() && queueMicrotask(() => api.stepUp.answer(true)));
  const user = show(
    api,
    <AccountGate isNeeded>
      <Page />
    </AccountGate>,
  );
  return { asked, user };
}

function Page() {
  const { account } = useAccount();
  return (
    <>
      <RealMoneyBanner account={account} />
      <LivePage />
    </>
  );
}

test("a key is put and tested, and stays nowhere on the page", async () => {
  const { asked, user } = await open();
  // Execution has not heard of the account yet, which is no failure.
  await screen.findByText("Not compared yet");
  expect(screen.getByText("Trade real money").closest("button")).toHaveProperty("disabled", true);
  await user.click(screen.getByText("Put a key"));
  const form = within(await screen.findByRole("form", { name: "Put a key" }));
  await user.click(form.getByLabelText(/^API key/));
  await user.paste("k".repeat(60) + "ABCD");
  await user.click(form.getByLabelText(/^Secret/));
  await user.paste("s".repeat(64));
  await user.click(form.getByText("Put and test it"));
  await within(await screen.findByTestId("key")).findByText("Usable");
  expect(asked.puts).toMatchObject([{ accountId: "a1", venue: "BINANCE", label: "Main", credentialId: "" }]);
  expect(document.body.textContent).not.toContain("s".repeat(64));
  await waitFor(() => expect(screen.getByText("Trade real money").closest("button")).toHaveProperty("disabled", false));
});

test("an account is confirmed with a fresh second factor, and says on every page that its money is real", async () => {
  const { asked, user } = await open({ key: USABLE });
  const banner = await screen.findByTestId("real-money");
  await within(banner).findByText(/trades nothing until you confirm it/);
  await waitFor(() => expect(screen.getByText("Trade real money").closest("button")).toHaveProperty("disabled", false));
  await user.click(screen.getByText("Trade real money"));
  const question = within(await screen.findByRole("dialog", { name: "Trade real money?" }));
  await user.click(question.getByRole("button", { name: "Trade real money" }));
  await within(banner).findByText(/trade real money at BINANCE/);
  expect(banner.getAttribute("data-on")).toBe("true");
  // Refused for want of a fresh code, and sent again as the same request.
  expect(new Set(asked.confirms.map(({ requestId }) => requestId)).size).toBe(1);
  expect(asked.confirms).toHaveLength(2);
});

test("an account is stopped after a question", async () => {
  const { asked, user } = await open({ account: CONFIRMED, key: USABLE });
  await user.click(await screen.findByText("Stop it"));
  await user.click(within(await screen.findByRole("dialog")).getByText("Stop it"));
  await within(await screen.findByTestId("live-state")).findByText(/You stopped it/);
  expect(asked.stops).toMatchObject([{ accountId: "a1" }]);
});

test("a key of no use says why, and nothing can be confirmed with it", async () => {
  const { user } = await open({
    key: create(BrokerCredentialSchema, { credentialId: "c1", accountId: "a1", label: "old", state: BrokerCredentialState.UNTESTED }),
    problem: BrokerCredentialProblem.CAN_WITHDRAW,
  });
  await user.click(await screen.findByRole("button", { name: "Test it" }));
  await screen.findByText(/may move money out of the account/);
  expect(screen.getByRole("button", { name: "Trade real money" })).toHaveProperty("disabled", true);
});

test("the record of a comparison reads difference by difference, and is made anew", async () => {
  const { asked, user } = await open({ account: CONFIRMED });
  const table = await screen.findByRole("table", { name: "Differences" });
  expect(within(table).getAllByRole("row")[1]!.textContent).toBe("BalanceUSDT100150.5no trade explains it; the venue counts");
  expect(screen.getByTestId("comparison").textContent).toContain("1 difference");
  expect(screen.getByTestId("comparison").textContent).toContain("as the venue was connected anew · 1 order, 2 fills, 3 assets");
  await user.click(screen.getByRole("button", { name: "Compare now" }));
  await waitFor(() => expect(asked.compared).toBe(1));
});

test("nothing is compared before the account was ever confirmed", async () => {
  await open();
  await screen.findByText("Not compared yet");
  expect(screen.queryByRole("button", { name: "Compare now" })).toBeNull();
});

test("who compares too often is told when to come back", async () => {
  const { user } = await open({ account: CONFIRMED, isCompared: true });
  await user.click(await screen.findByRole("button", { name: "Compare now" }));
  await screen.findByText("Too many requests. Try again in 8 seconds.");
});

test("orders made by hand are ignored and adopted, and those not settled are listed", async () => {
  const { asked, user } = await open();
  const text = "Buy 0.5 BINANCE:BTCUSDT at 29,000.00";
  await user.click(await screen.findByRole("button", { name: `Ignore ${text}` }));
  await waitFor(() => expect(screen.queryByRole("button", { name: `Ignore ${text}` })).toBeNull());
  await user.click(screen.getByLabelText("Also those decided"));
  await user.click(await screen.findByRole("button", { name: `Adopt ${text}` }));
  await within(await screen.findByTestId("external-order")).findByText("Adopted");
  expect(asked.decided).toEqual(["ignore", "adopt"]);
  const unsettled = await screen.findByRole("table", { name: "Orders whose outcome is not known" });
  expect(within(unsettled).getByText("Being settled")).toBeDefined();
});

test("why an account trades nothing is said, an operator's word first", () => {
  const on = { ...LIVE, liveState: LiveState.ON };
  const trading = (enabled: boolean) => create(LiveTradingSchema, { enabled });
  expect(holdOf(on, trading(true))).toBeUndefined();
  expect(holdOf(on, undefined)).toBeUndefined();
  expect(holdOf(on, trading(false))).toContain("switched off here by an operator");
  expect(holdOf({ ...LIVE, liveState: LiveState.CONNECTING }, trading(true))).toContain("being asked what the account holds");
  expect(holdOf({ ...LIVE, liveState: LiveState.STOPPED, stopReason: "key_refused" }, trading(true))).toBe(
    "The venue refused its key. It trades nothing until you confirm it anew.",
  );
});

test("a comparison says what was compared and what came of it", () => {
  const of = (init: object): Reconciliation => create(ReconciliationSchema, init);
  expect(outcomeOf(of({ state: ReconciliationState.DONE })).label).toBe("All agreed");
  expect(outcomeOf(of({ state: ReconciliationState.FAILED })).label).toBe("Not compared");
  expect(outcomeOf(of({ state: ReconciliationState.DONE, differences: [{}, {}] })).label).toBe("2 differences");
  expect(scopeOf(of({ orderCount: 1 }))).toBe("1 order, 0 fills, no balances, for trades came in between");
  expect(externalText(create(ExternalOrderSchema, { quantity: { value: "2" }, instrumentId: "KRAKEN:XBTUSD", stopPrice: { value: "1" } }))).toBe(
    "Sell 2 KRAKEN:XBTUSD from 1.00",
  );
});
