import {
  BillingInterval,
  FeatureKind,
  SubscriptionState,
  type Feature,
  type Plan,
  type QuotaUsage,
  type Subscription,
} from "@gen/tradeloom/billing/v1/billing_pb.js";
import { shown } from "@/lib/decimal";
import { date } from "@/lib/time";

/** What there is to say of a subscription, in a sentence. */
export function stateText({ state, trialEndTime, graceEndTime, periodEndTime, cancelAtPeriodEnd, endTime, atStripe }: Subscription): string {
  switch (state) {
    case SubscriptionState.TRIALING:
      return `On trial until ${date(trialEndTime ?? periodEndTime)}${cancelAtPeriodEnd || !atStripe ? ", then it ends." : ", then it is paid for."}`;
    case SubscriptionState.ACTIVE:
      if (!periodEndTime) return "";
      return cancelAtPeriodEnd || !atStripe ? `Ends on ${date(periodEndTime)}.` : `Paid until ${date(periodEndTime)}, then again.`;
    case SubscriptionState.PAST_DUE:
      return `A payment is overdue. The plan counts until ${date(graceEndTime)}.`;
    case SubscriptionState.UNPAID:
      return "A payment is overdue, so what is free counts until it is paid.";
    case SubscriptionState.CANCELLED:
      return endTime ? `Ended on ${date(endTime)}.` : "Ended.";
    default:
      return "";
  }
}

export interface Use {
  feature: string;
  title: string;
  used: number;
  limit: number;
  /** 0 to 100. */
  percent: number;
  isDaily: boolean;
}

/** How much of each quota is used, by the names people know. */
export function usesOf(usage: readonly QuotaUsage[], features: readonly Feature[]): Use[] {
  return usage.map(({ quota, used, limit, resetTime }) => {
    const feature = features.find((each) => each.feature === quota);
    return {
      feature: quota,
      title: feature?.title || quota.replace(/_/g, " "),
      used: Number(used),
      limit: Number(limit),
      percent: limit > 0n ? Math.min(100, (100 * Number(used)) / Number(limit)) : used > 0n ? 100 : 0,
      isDaily: resetTime !== undefined || feature?.kind === FeatureKind.DAILY_QUOTA,
    };
  });
}

/** What a plan allows, as lines such as "10 API keys" and "Live trading". */
export function allowedBy(plan: Pick<Plan, "capabilities" | "quotas">, features: readonly Feature[]): string[] {
  return features.flatMap(({ feature, kind, title }) => {
    if (kind === FeatureKind.CAPABILITY) return plan.capabilities.includes(feature) ? [title] : [];
    const limit = plan.quotas[feature] ?? 0n;
    const isDaily = kind === FeatureKind.DAILY_QUOTA && !/\bday\b/.test(title);
    return limit > 0n ? [`${title}: ${limit.toLocaleString("en")}${isDaily ? " a day" : ""}`] : [];
  });
}

export function pricesOf({ currency, monthlyPrice, yearlyPrice }: Plan): { interval: BillingInterval; label: string }[] {
  return [
    ...(monthlyPrice ? [{ interval: BillingInterval.MONTH, label: `${shown(monthlyPrice.value)} ${currency} a month` }] : []),
    ...(yearlyPrice ? [{ interval: BillingInterval.YEAR, label: `${shown(yearlyPrice.value)} ${currency} a year` }] : []),
  ];
}

/** Goes on at the payment's own pages; never to an address that is not a secure one. */
export function leaveFor(url: string): void {
  if (new URL(url).protocol !== "https:") throw new Error("the payment page has no secure address");
  window.location.assign(url);
}
