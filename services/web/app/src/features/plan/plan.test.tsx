import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import {
  BillingInterval,
  BillingService,
  FeatureKind,
  FeatureSchema,
  PlanSchema,
  QuotaUsageSchema,
  SubscriptionSchema,
  SubscriptionState,
} from "@gen/tradeloom/billing/v1/billing_pb.js";
import { screen, waitFor } from "@testing-library/react";
import { describe, expect, test } from "vitest";
import { signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { allowedBy, leaveFor, stateText, usesOf } from "./plan";
import { PlanPage } from "./PlanPage";

const FEATURES = [
  create(FeatureSchema, { feature: "api_keys", kind: FeatureKind.QUOTA, title: "API keys" }),
  create(FeatureSchema, { feature: "backtests_per_day", kind: FeatureKind.DAILY_QUOTA, title: "Backtests a day" }),
  create(FeatureSchema, { feature: "live_trading", kind: FeatureKind.CAPABILITY, title: "Live trading" }),
];
const FREE = create(PlanSchema, { plan: "free", title: "Free", quotas: { api_keys: 2n } });
const PRO = create(PlanSchema, {
  plan: "pro",
  title: "Pro",
  currency: "USD",
  monthlyPrice: { value: "29" },
  capabilities: ["live_trading"],
  quotas: { api_keys: 10n, backtests_per_day: 2000n },
});
const END = timestampFromDate(new Date("2027-01-31T12:00:00Z"));

describe("a plan", () => {
  test("says what it allows, and nothing of what it does not", () => {
    expect(allowedBy(FREE, FEATURES)).toEqual(["API keys: 2"]);
    expect(allowedBy(PRO, FEATURES)).toEqual(["API keys: 10", "Backtests a day: 2,000", "Live trading"]);
  });

  test("is used up at its limit, and beyond it where it was made smaller", () => {
    const usage = [
      create(QuotaUsageSchema, { quota: "api_keys", used: 3n, limit: 2n }),
      create(QuotaUsageSchema, { quota: "backtests_per_day", used: 0n, limit: 0n, resetTime: END }),
    ];
    expect(usesOf(usage, FEATURES)).toMatchObject([
      { title: "API keys", used: 3, limit: 2, percent: 100, isDaily: false },
      { title: "Backtests a day", percent: 0, isDaily: true },
    ]);
  });

  test.each([
    [{ state: SubscriptionState.ACTIVE }, ""],
    [{ state: SubscriptionState.ACTIVE, periodEndTime: END }, "Ends on 31 Jan 2027."],
    [{ state: SubscriptionState.ACTIVE, periodEndTime: END, atStripe: true }, "Paid until 31 Jan 2027, then again."],
    [{ state: SubscriptionState.ACTIVE, periodEndTime: END, atStripe: true, cancelAtPeriodEnd: true }, "Ends on 31 Jan 2027."],
    [{ state: SubscriptionState.TRIALING, trialEndTime: END }, "On trial until 31 Jan 2027, then it ends."],
    [{ state: SubscriptionState.PAST_DUE, graceEndTime: END }, "A payment is overdue. The plan counts until 31 Jan 2027."],
    [{ state: SubscriptionState.CANCELLED, endTime: END }, "Ended on 31 Jan 2027."],
  ])("tells where its life is (%#)", (subscription, text) => {
    expect(stateText(create(SubscriptionSchema, subscription))).toBe(text);
  });
});

test("nobody is sent to a page without a secure address", () => {
  expect(() => leaveFor("http://pay.example/")).toThrow();
  expect(() => leaveFor("javascript:alert(1)")).toThrow();
});

async function open(checkoutAvailable: boolean) {
  const paid: [string, BillingInterval][] = [];
  const api = await signedInApi(({ service }) => {
    service(BillingService, {
      listPlans: () => ({ plans: [FREE, PRO], features: FEATURES, checkoutAvailable }),
      getSubscription: () => ({ subscription: { plan: "free", planInForce: "free", state: SubscriptionState.ACTIVE } }),
      getEntitlements: () => ({ plan: "free", quotas: { api_keys: 2n } }),
      getUsage: () => ({ usage: [{ quota: "api_keys", used: 1n, limit: 2n }] }),
      startCheckout: ({ plan, interval }) => {
        paid.push([plan, interval]);
        return { url: "http://not-secure.example/" };
      },
    });
  });
  return { user: show(api, <PlanPage />), paid };
}

test("without payment here an administrator assigns plans, and no price is shown", async () => {
  await open(false);
  await screen.findByText(/an administrator assigns plans/);
  expect(screen.getByTestId("plan").textContent).toBe("Free");
  expect(screen.getByText("1 of 2")).toBeTruthy();
  expect(screen.queryByText(/USD/)).toBeNull();
});

test("where plans are paid one leads to the payment", async () => {
  const { user, paid } = await open(true);
  await user.click(await screen.findByRole("button", { name: "29.00 USD a month" }));
  await waitFor(() => expect(paid).toEqual([["pro", BillingInterval.MONTH]]));
  expect(screen.queryByTestId("manual")).toBeNull();
});
