import {
  DifferenceKind,
  ExternalOrderState,
  ReconciliationCause,
  ReconciliationState,
  type ExternalOrder,
  type Reconciliation,
} from "@gen/tradeloom/execution/v1/execution_pb.js";
import type { LiveTrading } from "@gen/tradeloom/orders/v1/live_pb.js";
import { AccountMode, LiveState, type Account } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { BrokerCredentialProblem, BrokerCredentialState } from "@gen/tradeloom/users/v1/users_pb.js";
import { shown } from "@/lib/decimal";

/** Where live accounts can have their money, as the contract names them. */
export const VENUES = ["BINANCE", "KRAKEN"] as const;

export function isLive({ mode }: Pick<Account, "mode">): boolean {
  return mode === AccountMode.LIVE;
}

/** The contract's enums in words for people. */
export const LIVE_STATES: Record<LiveState, { label: string; color: string; hint: string }> = {
  [LiveState.UNSPECIFIED]: { label: "Paper", color: "gray", hint: "Its money is not real." },
  [LiveState.UNCONFIRMED]: { label: "Not confirmed", color: "gray", hint: "It trades nothing until you confirm it." },
  [LiveState.CONNECTING]: { label: "Connecting", color: "blue", hint: "Its venue is being asked what the account holds." },
  [LiveState.ON]: { label: "On", color: "red", hint: "It trades real money." },
  [LiveState.STOPPED]: { label: "Stopped", color: "yellow", hint: "It trades nothing until you confirm it anew." },
};

const STOP_REASONS: Record<string, string> = {
  owner: "You stopped it.",
  key_replaced: "Another key was put in place of the one you had confirmed.",
  key_deleted: "Its key was deleted.",
  key_refused: "The venue refused its key.",
};

export function stopText(reason: string): string {
  return STOP_REASONS[reason] ?? reason;
}

/** Why a live account trades nothing now; undefined if it trades. Whether it is enabled here may not be known yet. */
export function holdOf({ liveState, stopReason }: Account, trading: LiveTrading | undefined): string | undefined {
  if (trading && !trading.enabled) return "Trading with real money is switched off here by an operator.";
  if (liveState === LiveState.ON) return undefined;
  const { hint } = LIVE_STATES[liveState];
  return liveState === LiveState.STOPPED && stopReason !== "" ? `${stopText(stopReason)} ${hint}` : hint;
}

export const KEY_STATES: Record<BrokerCredentialState, { label: string; color: string; hint: string }> = {
  [BrokerCredentialState.UNSPECIFIED]: { label: "–", color: "gray", hint: "" },
  [BrokerCredentialState.UNTESTED]: { label: "Not tested", color: "yellow", hint: "The venue has not been asked yet what it may do." },
  [BrokerCredentialState.USABLE]: { label: "Usable", color: "teal", hint: "It may look and trade, and move no money out." },
  [BrokerCredentialState.REFUSED]: { label: "Of no use", color: "red", hint: "" },
};

export const KEY_PROBLEMS: Record<BrokerCredentialProblem, string> = {
  [BrokerCredentialProblem.UNSPECIFIED]: "",
  [BrokerCredentialProblem.KEY_INVALID]: "The venue does not know this key, or not from the address of this platform.",
  [BrokerCredentialProblem.SECRET_INVALID]: "The secret does not belong to the key, or has the wrong form.",
  [BrokerCredentialProblem.CANNOT_READ]: "It may not look at the account. Allow it at the venue.",
  [BrokerCredentialProblem.CANNOT_TRADE]: "It may not place orders. Allow it at the venue.",
  [BrokerCredentialProblem.CAN_WITHDRAW]: "It may move money out of the account. Make one that may not.",
};

export const CAUSES: Record<ReconciliationCause, string> = {
  [ReconciliationCause.UNSPECIFIED]: "",
  [ReconciliationCause.START]: "as the account was taken over",
  [ReconciliationCause.RECONNECT]: "as the venue was connected anew",
  [ReconciliationCause.PERIODIC]: "as it comes around",
  [ReconciliationCause.REQUESTED]: "as it was asked for",
};

const RECONCILIATION_STATES: Record<ReconciliationState, { label: string; color: string }> = {
  [ReconciliationState.UNSPECIFIED]: { label: "–", color: "gray" },
  [ReconciliationState.REQUESTED]: { label: "Comparing", color: "blue" },
  [ReconciliationState.DONE]: { label: "All agreed", color: "teal" },
  [ReconciliationState.FAILED]: { label: "Not compared", color: "yellow" },
};

/** What came of a comparison, in a word or two. */
export function outcomeOf({ state, differences }: Reconciliation): { label: string; color: string } {
  const count = differences.length;
  if (state !== ReconciliationState.DONE || count === 0) return RECONCILIATION_STATES[state];
  return { label: count === 1 ? "1 difference" : `${count} differences`, color: "orange" };
}

/** What was compared, such as "3 orders, 2 fills, 5 assets". */
export function scopeOf({ orderCount, fillCount, assetCount }: Reconciliation): string {
  const counted = (count: number, name: string) => `${count} ${name}${count === 1 ? "" : "s"}`;
  const assets = assetCount === 0 ? "no balances, for trades came in between" : counted(assetCount, "asset");
  return [counted(orderCount, "order"), counted(fillCount, "fill"), assets].join(", ");
}

export const DIFFERENCES: Record<DifferenceKind, string> = {
  [DifferenceKind.UNSPECIFIED]: "Difference",
  [DifferenceKind.ORDER_STATE]: "State of an order",
  [DifferenceKind.FILL_MISSED]: "Fill not told",
  [DifferenceKind.ORDER_MISSING]: "Order the venue does not have",
  [DifferenceKind.ORDER_EXTERNAL]: "Order not sent from here",
  [DifferenceKind.FILL_EXTERNAL]: "Fill of an order not sent from here",
  [DifferenceKind.BALANCE]: "Balance",
  [DifferenceKind.POSITION]: "Position",
};

export const EXTERNAL_STATES: Record<ExternalOrderState, { label: string; color: string }> = {
  [ExternalOrderState.UNSPECIFIED]: { label: "–", color: "gray" },
  [ExternalOrderState.FOUND]: { label: "Not decided", color: "orange" },
  [ExternalOrderState.ADOPTING]: { label: "Being adopted", color: "blue" },
  [ExternalOrderState.ADOPTED]: { label: "Adopted", color: "teal" },
  [ExternalOrderState.IGNORED]: { label: "Ignored", color: "gray" },
  [ExternalOrderState.DONE]: { label: "Over", color: "gray" },
};

/** Such as "Buy 0.5 BINANCE:BTCUSDT at 29,000.00". */
export function externalText({ buys, quantity, instrumentId, limitPrice, stopPrice }: ExternalOrder): string {
  const limit = limitPrice ? ` at ${shown(limitPrice.value)}` : "";
  const stop = stopPrice ? ` from ${shown(stopPrice.value)}` : "";
  return `${buys ? "Buy" : "Sell"} ${shown(quantity?.value, 0)} ${instrumentId}${limit}${stop}`;
}
