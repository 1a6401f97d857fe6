import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import {
  AdminService,
  UserSchema,
  UserState,
  type ListUsersRequest,
  type ResetSecondFactorRequest,
  type SetUserRolesRequest,
  type SetUserStateRequest,
} from "@gen/tradeloom/auth/v1/auth_pb.js";
import { BillingService, SubscriptionState, type AssignPlanRequest } from "@gen/tradeloom/billing/v1/billing_pb.js";
import { screen, waitFor, within } from "@testing-library/react";
import { expect, test } from "vitest";
import { refused, signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { KillSwitchMode, KillSwitchScope, RiskService, type KillSwitchSchema, type SetGlobalKillSwitchRequest } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { ExecutionService } from "@gen/tradeloom/execution/v1/execution_pb.js";
import { LiveTradingSchema, LiveTradingService, type SetLiveTradingRequest } from "@gen/tradeloom/orders/v1/live_pb.js";
import { GlobalSwitch } from "./GlobalSwitch";
import { LiveTradingSwitch } from "./LiveTradingSwitch";
import { PeoplePage } from "./PeoplePage";
import { endOfDay } from "./person";
import { UnknownOrders } from "./UnknownOrders";

test("a day ends at its last second, by the reader's own clock", () => {
  const end = timestampDate(endOfDay("2027-01-31")!);
  expect([end.getFullYear(), end.getMonth(), end.getDate(), end.getHours(), end.getMinutes()]).toEqual([2027, 0, 31, 23, 59]);
  expect(endOfDay("")).toBeUndefined();
  expect(endOfDay("nonsense")).toBeUndefined();
});

test("an administrator finds a person, sets roles, takes a lost factor away, assigns a plan, and suspends with a note", async () => {
  const asked: ListUsersRequest[] = [];
  const roles: SetUserRolesRequest[] = [];
  const states: SetUserStateRequest[] = [];
  const plans: AssignPlanRequest[] = [];
  let bob = create(UserSchema, { userId: "u-bob", email: "bob@example.com", roles: ["user"], state: UserState.ACTIVE, totpEnabled: true });
  const resets: ResetSecondFactorRequest[] = [];
  const api = await signedInApi(({ service }) => {
    service(AdminService, {
      listUsers: (request) => {
        asked.push(request);
        return { users: request.query === "nobody" ? [] : [bob] };
      },
      setUserRoles: (request) => {
        roles.push(request);
        if (roles.length === 1) throw refused(Code.FailedPrecondition, "LAST_ADMIN");
        bob = { ...bob, roles: [...request.roles] };
        return { user: bob };
      },
      resetSecondFactor: (request) => {
        resets.push(request);
        bob = { ...bob, totpEnabled: false };
        return { user: bob };
      },
      setUserState: (request) => {
        states.push(request);
        bob = { ...bob, state: request.state };
        return { user: bob };
      },
      listAuditEvents: ({ newestFirst }) => ({
        events: newestFirst ? [{ sequence: 1n, kind: "tradeloom.auth.v1.UserRegistered", detail: "{}" }] : [],
      }),
    });
    service(BillingService, {
      listPlans: () => ({ plans: [{ plan: "pro", title: "Pro" }] }),
      getUserSubscription: ({ userId }) => {
        expect(userId).toBe("u-bob");
        if (plans.length > 0) return { subscription: { plan: "pro", planInForce: "pro", state: SubscriptionState.ACTIVE } };
        return { subscription: { plan: "desk", planInForce: "free", state: SubscriptionState.UNPAID, atStripe: true } };
      },
      assignPlan: (request) => {
        plans.push(request);
        return { subscription: { plan: "pro", planInForce: "pro" } };
      },
    });
  });
  const user = show(api, <PeoplePage />);
  await screen.findByText("bob@example.com");
  await user.type(screen.getByLabelText("E-mail or name"), "nobody");
  await screen.findByText("Nobody is like that");
  await user.clear(screen.getByLabelText("E-mail or name"));
  await user.click(await screen.findByRole("button", { name: "Show bob@example.com" }));

  const person = await screen.findByRole("dialog");
  await within(person).findByText("Registered");
  await user.click(within(person).getByRole("checkbox", { name: "Operator" }));
  await user.click(within(person).getByRole("button", { name: "Set the roles" }));
  await within(person).findByText("Nobody who can sign in would be left to administer.");
  await user.click(within(person).getByRole("button", { name: "Set the roles" }));
  await screen.findByText("Roles set");
  expect(roles[1]).toMatchObject({ userId: "u-bob", roles: ["user", "operator"] });

  await user.type(within(person).getByLabelText(/How you made sure/), "showed a passport");
  await user.click(within(person).getByRole("button", { name: "Take it away" }));
  await screen.findByText("Second factor taken away");
  await waitFor(() => expect(within(person).queryByRole("button", { name: "Take it away" })).toBeNull());
  expect(resets).toMatchObject([{ userId: "u-bob", note: "showed a passport" }]);

  await within(person).findByText(/^Has free, subscribed to desk\. A payment is overdue.* Paid at Stripe\.$/);
  await user.click(within(person).getByRole("combobox", { name: "Plan" }));
  await user.click(await screen.findByRole("option", { name: "Pro" }));
  await user.click(within(person).getByRole("button", { name: "Assign" }));
  await screen.findByText("Now in force: pro");
  await within(person).findByText("Has pro.");
  expect(plans).toMatchObject([{ userId: "u-bob", plan: "pro", trial: false }]);

  await user.type(within(person).getByLabelText(/Why, for the record/), "asked to");
  await user.click(within(person).getByRole("button", { name: "Suspend" }));
  await within(person).findByRole("button", { name: "Let in again" });
  expect(states).toMatchObject([{ userId: "u-bob", state: UserState.SUSPENDED, note: "asked to" }]);
  await waitFor(() => expect(asked.some(({ query }) => query === "nobody")).toBe(true));
});

test("an operator stops everybody's trading with a reason, and lets it go on", async () => {
  const asked: SetGlobalKillSwitchRequest[] = [];
  let on: MessageInitShape<typeof KillSwitchSchema>[] = [{ scope: KillSwitchScope.USER, mode: KillSwitchMode.HALT }];
  const api = await signedInApi(({ service }) => {
    service(RiskService, {
      getKillSwitch: () => ({ switches: on }),
      setGlobalKillSwitch: (request) => {
        asked.push(request);
        on = request.mode === KillSwitchMode.OFF ? [] : [{ scope: KillSwitchScope.GLOBAL, mode: request.mode, reason: request.reason, byOperator: true }];
        return {};
      },
    });
  });
  const user = show(api, <GlobalSwitch />);
  await screen.findByText("Trading goes on for everybody.");
  await user.click(screen.getByText("Halt"));
  // Without a reason nothing is asked.
  await user.click(screen.getByRole("button", { name: "Stop trading" }));
  await user.type(screen.getByLabelText(/Why/), "venue is down");
  await user.click(screen.getByLabelText("Cancel the open orders, too"));
  await user.click(screen.getByRole("button", { name: "Stop trading" }));
  await user.click(await screen.findByRole("button", { name: "Let trading go on" }));
  await screen.findByText("Trading goes on for everybody.");
  expect(asked.map(({ userId, mode, reason, cancelOpenOrders }) => [userId, mode, reason, cancelOpenOrders])).toEqual([
    ["", KillSwitchMode.HALT, "venue is down", false],
    ["", KillSwitchMode.OFF, "trading goes on", false],
  ]);
});

test("an operator switches trading with real money on and off, each time with a reason", async () => {
  const asked: SetLiveTradingRequest[] = [];
  let present = create(LiveTradingSchema, { revision: 0n });
  const api = await signedInApi(({ service }) => {
    service(LiveTradingService, {
      getLiveTrading: () => ({ liveTrading: present }),
      setLiveTrading: (request) => {
        asked.push(request);
        if (asked.length === 1) throw refused(Code.PermissionDenied, "STEP_UP_REQUIRED");
        const { enabled, reason } = request;
        present = create(LiveTradingSchema, { enabled, reason, setTime: timestampFromDate(new Date()), revision: present.revision + 1n });
        return { liveTrading: present };
      },
    });
  });
  api.stepUp.subscribe(() => api.stepUp.snapshot() && queueMicrotask(() => api.stepUp.answer(true)));
  const user = show(api, <LiveTradingSwitch />);
  await screen.findByText("Nobody has ever enabled it here.");
  await user.click(screen.getByRole("button", { name: "Enable trading with real money" }));
  expect(asked).toEqual([]);
  await user.type(screen.getByLabelText(/Why/), "we are ready");
  await user.click(screen.getByRole("button", { name: "Enable trading with real money" }));
  await screen.findByText(/“we are ready”/);
  await user.type(screen.getByLabelText(/Why/), "maintenance");
  await user.click(screen.getByRole("button", { name: "Disable trading with real money" }));
  await screen.findByText(/“maintenance”/);
  expect(asked.map(({ enabled, reason }) => [enabled, reason])).toEqual([
    [true, "we are ready"],
    [true, "we are ready"],
    [false, "maintenance"],
  ]);
  expect(asked[0]!.requestId).toBe(asked[1]!.requestId);
  expect(asked[2]!.requestId).not.toBe(asked[1]!.requestId);
});

test("an operator sees whose orders are not settled, and which for too long", async () => {
  const api = await signedInApi(({ service }) => {
    service(ExecutionService, {
      listUnknownOrders: () => ({
        orders: [{ orderId: "o1", userId: "u1", accountId: "a1", venue: "BINANCE", instrumentId: "BINANCE:BTCUSDT", reason: "the answer was lost", alerted: true }],
      }),
    });
  });
  show(api, <UnknownOrders />);
  const row = await screen.findByRole("listitem");
  expect(row.textContent).toContain("BINANCE:BTCUSDT at BINANCEToo long: look at the venue");
  expect(row.textContent).toContain("the answer was lost");
  expect(row.textContent).toContain("user u1");
});
