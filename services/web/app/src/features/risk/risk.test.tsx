import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { AccountSchema } from "@gen/tradeloom/orders/v1/orders_pb.js";
import {
  KillSwitchMode,
  KillSwitchSchema,
  KillSwitchScope,
  RiskEventKind,
  RiskEventSchema,
  RiskLimitsSchema,
  RiskLock,
  RiskService,
  type KillSwitch,
  type LiftRiskLocksRequest,
  type ListRiskEventsRequest,
  type RiskLimits,
  type SetKillSwitchRequest,
  type SetRiskLimitsRequest,
} from "@gen/tradeloom/orders/v1/risk_pb.js";
import { fireEvent, screen, waitFor, within } from "@testing-library/react";
import { expect, test } from "vitest";
import { AccountContext } from "@/features/accounts/account";
import { refused, signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { limitsOf, problemsOfLimits, typedOf } from "./limits";
import { RiskPage } from "./RiskPage";
import { eventText } from "./words";

const PAPER = create(AccountSchema, { accountId: "a1", name: "Paper" });
const OTHER = create(AccountSchema, { accountId: "a2", name: "Other" });

/** The page before a service that keeps limits and switches, and remembers what it was asked. */
async function open({ locks = [] as RiskLock[], switches = [] as KillSwitch[] } = {}) {
  const asked = {
    limits: [] as SetRiskLimitsRequest[],
    switches: [] as SetKillSwitchRequest[],
    lifts: [] as LiftRiskLocksRequest[],
    events: [] as ListRiskEventsRequest[],
  };
  const kept = { limits: create(RiskLimitsSchema, { orderNotionalMax: { value: "5000" } }), revision: 3n };
  const effective = () => create(RiskLimitsSchema, { ...typed(kept.limits), openOrdersMax: 1000 });
  const typed = ({ orderNotionalMax }: RiskLimits) => (orderNotionalMax ? { orderNotionalMax } : {});
  const api = await signedInApi(({ service }) => {
    service(RiskService, {
      getRiskLimits: () => ({ ...kept, effective: effective(), standing: { valuationAsset: "USDT", equity: { value: "1000" }, locks } }),
      setRiskLimits: (request) => {
        asked.limits.push(request);
        if (request.expectedRevision !== kept.revision) throw refused(Code.Aborted, "LIMITS_CHANGED", { revision: "4" });
        kept.limits = request.limits!;
        kept.revision += 1n;
        return { ...kept, effective: effective() };
      },
      liftRiskLocks: (request) => {
        asked.lifts.push(request);
        locks.length = 0;
        return {};
      },
      getKillSwitch: () => ({ switches }),
      setKillSwitch: (request) => {
        asked.switches.push(request);
        if (asked.switches.length === 1 && request.mode !== KillSwitchMode.OFF) throw new ConnectError("cut", Code.Unavailable);
        switches.length = 0;
        if (request.mode !== KillSwitchMode.OFF) switches.push(on({ mode: request.mode }));
        return {};
      },
      listRiskEvents: (request) => {
        asked.events.push(request);
        const riskEventId = request.pageToken || "newest";
        const event = { riskEventId, kind: RiskEventKind.REFUSED, limit: "order_notional_max", value: "6000", bound: "5000" };
        return { events: [event], nextPageToken: request.pageToken ? "" : "older" };
      },
    });
  });
  const user = show(
    api,
    <AccountContext value={{ account: PAPER, accounts: [PAPER, OTHER], choose: () => {} }}>
      <RiskPage />
    </AccountContext>,
  );
  const form = await screen.findByRole("form", { name: "Limits" });
  return { asked, kept, form, user };
}

function on(part: Partial<Omit<KillSwitch, "$typeName" | "$unknown">>): KillSwitch {
  return create(KillSwitchSchema, { scope: KillSwitchScope.USER, mode: KillSwitchMode.HALT, time: { seconds: 1n }, ...part });
}

const type = (field: HTMLElement, value: string) => fireEvent.change(field, { target: { value } });

test("limits are set whole, with what they replace, and what is empty is the usual", async () => {
  const { asked, form, user } = await open();
  const notional = within(form).getByLabelText("Value of one order");
  expect(notional).toHaveProperty("value", "5000");
  expect(within(form).getByLabelText("Open orders").getAttribute("placeholder")).toBe("usually 1,000");
  expect(within(form).getByLabelText("Loss in a day").getAttribute("placeholder")).toBe("no limit");
  type(notional, "");
  type(within(form).getByLabelText("Loss in a day"), "250.5");
  type(within(form).getByLabelText("Open orders"), "0");
  await user.click(within(form).getByRole("button", { name: "Set the limits" }));
  await within(form).findByText("From 1 to 1000");
  expect(asked.limits).toHaveLength(0);
  type(within(form).getByLabelText("Open orders"), "20");
  await user.click(within(form).getByRole("button", { name: "Set the limits" }));
  await screen.findByText("Limits set");
  expect(asked.limits[0]).toMatchObject({ accountId: "a1", expectedRevision: 3n, limits: { openOrdersMax: 20, dailyLossMax: { value: "250.5" } } });
  expect(asked.limits[0]?.limits?.orderNotionalMax).toBeUndefined();
});

test("limits that were set elsewhere meanwhile are not overwritten unseen", async () => {
  const { asked, kept, form, user } = await open();
  kept.limits = create(RiskLimitsSchema, { orderNotionalMax: { value: "7000" } });
  kept.revision = 4n;
  type(within(form).getByLabelText("Loss in a day"), "1");
  await user.click(within(form).getByRole("button", { name: "Set the limits" }));
  await within(form).findByText(/set elsewhere since you looked/);
  await user.click(await within(form).findByRole("button", { name: "Show them as they are" }));
  expect(within(form).getByLabelText("Value of one order")).toHaveProperty("value", "7000");
  expect(within(form).getByLabelText("Loss in a day")).toHaveProperty("value", "");
  expect(asked.limits).toHaveLength(1);
});

test("trading is stopped for the account one chose, and after a lost answer by the same request", async () => {
  const { asked, user } = await open();
  const form = screen.getByRole("form", { name: "Kill switch" });
  type(within(form).getByLabelText("Why"), "going home");
  await user.click(within(form).getByRole("button", { name: "Stop trading" }));
  await within(form).findByRole("alert");
  await user.click(within(form).getByRole("button", { name: "Stop trading" }));
  await screen.findByText("Trading is stopped");
  expect(asked.switches[0]).toMatchObject({ accountId: "a1", mode: KillSwitchMode.REDUCE_ONLY, reason: "going home", cancelOpenOrders: true });
  expect(asked.switches[1]?.requestId).toBe(asked.switches[0]?.requestId);
  await screen.findByRole("button", { name: "Let trading go on" });
  await user.click(within(form).getByText("Halt"));
  await user.click(within(form).getByRole("button", { name: "Stop trading" }));
  await waitFor(() => expect(asked.switches).toHaveLength(3));
  expect(asked.switches[2]?.requestId).not.toBe(asked.switches[0]?.requestId);
});

test("trading goes on where one has stopped it oneself, and not where an operator has", async () => {
  const { asked, user } = await open({
    switches: [on({ scope: KillSwitchScope.GLOBAL, byOperator: true, reason: "venue is down" }), on({ scope: KillSwitchScope.ACCOUNT, targetId: "a2" })],
  });
  const list = await screen.findByRole("list", { name: "Switches that are on" });
  expect(within(list).getAllByRole("listitem").map((row) => row.textContent)).toEqual([
    expect.stringMatching(/^Everybody.*venue is down.*set by an operator$/),
    expect.stringMatching(/^Other.*Let trading go on$/),
  ]);
  await user.click(within(list).getByRole("button", { name: "Let trading go on" }));
  await waitFor(() => expect(asked.switches[0]).toMatchObject({ accountId: "a2", deploymentId: "", mode: KillSwitchMode.OFF }));
});

test("locks are lifted after a question", async () => {
  const { asked, user } = await open({ locks: [RiskLock.DRAWDOWN] });
  await screen.findByText("Locked for its drawdown");
  await user.click(screen.getByRole("button", { name: "Lift the locks" }));
  await user.click(await screen.findByRole("button", { name: "Lift them" }));
  await screen.findByText("Not locked");
  expect(asked.lifts).toMatchObject([{ accountId: "a1" }]);
});

test("what happened is read a page at a time", async () => {
  const { asked, user } = await open();
  const rows = await screen.findByRole("list", { name: "Risk events" });
  expect(rows.textContent).toContain("value of one order: 6,000 of at most 5,000");
  await user.click(screen.getByRole("button", { name: "Show older events" }));
  await waitFor(() => expect(within(rows).getAllByRole("listitem")).toHaveLength(2));
  expect(asked.events.map(({ accountId, pageToken }) => [accountId, pageToken])).toEqual([["a1", ""], ["a1", "older"]]);
});

test("limits are the same after being typed and read", () => {
  const limits = create(RiskLimitsSchema, { openOrdersMax: 5, dayStartHour: 0, fatFingerPercent: { value: "150.25" }, orderQuantityMax: { value: "0.10" } });
  expect(limitsOf(typedOf(limits))).toEqual(limits);
  const wrong = { ...typedOf(undefined), openOrdersMax: "1.5", dayStartHour: "24", drawdownPercentMax: "100.01", fatFingerPercent: "1.234", dailyLossMax: "-1" };
  expect(problemsOfLimits(wrong)).toEqual({
    openOrdersMax: "Not a whole number",
    dayStartHour: "From 0 to 23",
    drawdownPercentMax: "At most 100",
    fatFingerPercent: "At most two digits after the point",
    dailyLossMax: "Must be above zero",
  });
});

test("events read as what they are about", () => {
  const of = (event: object) => eventText(create(RiskEventSchema, event));
  expect(of({ kind: RiskEventKind.SWITCHED, limit: "kill_switch/account", value: "REDUCE_ONLY" })).toBe("the account's kill switch: reduce only");
  expect(of({ kind: RiskEventKind.REFUSED, limit: "lock/drawdown", value: "LOCKED", bound: "UNLOCKED" })).toBe("the account's lock for its drawdown");
  expect(of({ kind: RiskEventKind.LIMITS_SET, limit: "limits" })).toBe("");
});
