import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "@gen/google/rpc/error_details_pb.js";
import type { Status } from "@gen/google/rpc/status_pb.js";
import { shown } from "@/lib/decimal";
import { haltText, limitText } from "@/lib/limits";

/** Why a call was refused, out of the rich error details. */
export interface Refusal {
  code: Code;
  /** The catalogued name, such as "PRICE_OFF_TICK"; empty if the refusal came from no service. */
  reason: string;
  /** Such as "orders.tradeloom"; empty if the refusal came from no service. */
  domain: string;
  metadata: Record<string, string>;
  violations: Violation[];
  /** How long to wait before a repeat helps; undefined where the service does not say. */
  retryDelaySeconds: number | undefined;
  /** For people. */
  message: string;
  /** The same without when to come back, for where that is counted down. */
  what: string;
}

export interface Violation {
  /** As the contract writes it, such as "limit_price". */
  field: string;
  description: string;
}

const TRANSIENT = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Aborted]);

/** Codes of calls whose outcome nobody told us: they may have taken effect. */
const OUTCOME_LOST = new Set([Code.Unavailable, Code.DeadlineExceeded, Code.Unknown, Code.Canceled, Code.Internal]);

/** Reasons that go with such a code although nothing was begun. */
const NOTHING_BEGUN = new Set(["REVOCATIONS_STALE"]);

export function refusalOf(error: unknown): Refusal {
  const connect = ConnectError.from(error);
  const [info] = connect.findDetails(ErrorInfoSchema);
  const [retry] = connect.findDetails(RetryInfoSchema);
  const violations = connect
    .findDetails(BadRequestSchema)
    .flatMap((details) => details.fieldViolations)
    .map(({ field, description }) => ({ field, description }));
  const refusal: Refusal = {
    code: connect.code,
    reason: info?.reason ?? "",
    domain: info?.domain ?? "",
    metadata: { ...info?.metadata },
    violations,
    retryDelaySeconds: retry?.retryDelay
      ? Number(retry.retryDelay.seconds) + retry.retryDelay.nanos / 1e9
      : undefined,
    message: "",
    what: "",
  };
  refusal.what = sentence(refusal, connect.rawMessage);
  refusal.message = mustWait(refusal) ? `${refusal.what} ${comeBack(refusal)}` : refusal.what;
  return refusal;
}

/** Of a refusal that an answer tells, such as one of those PreviewOrder foresees. */
export function refusalOfStatus({ code, message, details }: Status): Refusal {
  const error = new ConnectError(message, code);
  error.details = details.map(({ typeUrl, value }) => ({ type: typeUrl.slice(typeUrl.lastIndexOf("/") + 1), value }));
  return refusalOf(error);
}

export function isRefusal(error: unknown): error is Refusal {
  return typeof error === "object" && error !== null && "violations" in error && "reason" in error;
}

/** Whether the fields say more than the sentence does. */
export function needsItsFields({ reason }: Refusal): boolean {
  return reason === "INVALID_FIELDS" || !(reason in SENTENCES);
}

/** Whether the same call may succeed in a moment. */
export function isTransient(refusal: Refusal): boolean {
  return TRANSIENT.has(refusal.code) || refusal.retryDelaySeconds !== undefined;
}

/** Codes that say nothing of what was asked: another time, or another replica, may answer. */
const REPEATABLE = new Set([Code.Unknown, Code.Internal, Code.ResourceExhausted, Code.Canceled, Code.DataLoss]);

/** Whether whoever only looks, or resumes, is to try again. */
export function isWorthRepeating(refusal: Refusal): boolean {
  return isTransient(refusal) || REPEATABLE.has(refusal.code);
}

/** Whether it is unknown if the call took effect; repeating it with the same request id tells. */
export function isOutcomeLost(refusal: Refusal): boolean {
  return OUTCOME_LOST.has(refusal.code) && !NOTHING_BEGUN.has(refusal.reason);
}

type Sentence = (metadata: Record<string, string>, refusal: Refusal) => string;

/** Quotas whose names do not read by themselves. */
const QUOTAS: Record<string, string> = { api_keys: "API keys", backtests_per_day: "backtests a day" };

const SENTENCES: Record<string, Sentence> = {
  INVALID_FIELDS: (_, { violations }) =>
    violations.length === 1 ? "One field needs another look." : "Some fields need another look.",
  TOKEN_INVALID: () => "Your session has expired. Sign in again.",
  TOKEN_OUTDATED: () => "What you may do has changed. Try again.",
  SESSION_REVOKED: () => "Your session was ended. Sign in again.",
  NOT_PERMITTED: () => "You are not allowed to do this.",
  ENTITLEMENT_MISSING: () => "Your plan does not include this.",
  STEP_UP_REQUIRED: () => "This needs a fresh code of your second factor; nothing was changed.",
  EMAIL_NOT_VERIFIED: () => "This needs a verified e-mail address. Open the link in the mail we sent you, or have it sent again.",
  QUOTA_EXCEEDED: ({ quota = "", limit = "no more" }) =>
    `Your plan allows ${limit} ${QUOTAS[quota] ?? (quota.replace(/_/g, " ") || "of this")}, and all are in use. Free one, or get a larger plan.`,
  RATE_LIMITED: () => "Too many requests.",
  REQUEST_ID_REUSED: () => "This request was sent before with other contents. Check your orders before sending a new one.",
  DEPENDENCY_UNAVAILABLE: () => "A part of the platform does not answer.",
  REVISION_NOT_REACHED: () => "The newest state is not here yet.",
  REVOCATIONS_STALE: () => "The platform cannot confirm your session right now; nothing was changed.",
  INTERNAL: ({ error_id }) => `Something went wrong on our side${error_id ? ` (error ${error_id})` : ""}.`,
  TOO_MANY_STREAMS: () => "The platform serves as many live streams as it can.",
  TOO_MANY_STREAMS_OF_CALLER: () => "You have as many live streams open as one may. Close another window first.",
  EMAIL_TAKEN: () => "Someone is registered with this e-mail address. Sign in instead.",
  PASSWORD_TOO_COMMON: () => "This password is among the most common ones. Choose another.",
  CREDENTIALS_INVALID: () => "E-mail and password do not belong together.",
  LOGIN_DELAYED: () => "Too many failed attempts.",
  CHALLENGE_INVALID: () => "That took too long, or too many codes were wrong. Sign in again.",
  CODE_INVALID: () => "This code is wrong, or was used before. Each works once: wait for the next one.",
  TOTP_ENABLED: () => "A second factor is enabled already. Disable it first.",
  TOTP_NOT_ENABLED: () => "No second factor is enabled.",
  LINK_INVALID: () => "This link has expired, was used before, or is incomplete.",
  SESSION_NOT_FOUND: () => "This session has ended already.",
  API_KEY_NOT_FOUND: () => "This API key does not exist.",
  USER_NOT_FOUND: () => "Nobody has this id.",
  USER_PURGED: () => "This person was deleted for good.",
  LAST_ADMIN: () => "Nobody who can sign in would be left to administer.",
  EMAIL_VERIFIED: () => "Your address is verified already.",
  PLAN_NOT_FOUND: () => "There is no such plan.",
  PLAN_NOT_FOR_SALE: () => "This plan cannot be subscribed to, or not paid so often.",
  BILLING_MANUAL: () => "Nothing is paid here: an administrator assigns plans.",
  SUBSCRIPTION_EXISTS: () => "You have a paid subscription. Change it where you pay for it.",
  SUBSCRIPTION_AT_STRIPE: () => "This person pays for a plan, which must be cancelled first.",
  CHECKOUT_EXPIRED: () => "This page can no longer be paid on. Subscribe again.",
  NO_CUSTOMER: () => "You have not paid for anything here yet.",
  END_TIME_INVALID: () => "The end must be in the future, and a trial needs one.",
  STRIPE_REFUSED: ({ code }) => `The payment was refused${code ? ` (${code.replace(/_/g, " ")})` : ""}.`,
  REFRESH_TOKEN_INVALID: () => "Your session has expired. Sign in again.",
  REFRESH_TOKEN_REUSED: () => "Your session was ended because it was used in two places. Sign in again.",
  ACCOUNT_NOT_FOUND: () => "This account is not yours or does not exist.",
  ORDER_NOT_FOUND: () => "This order does not exist.",
  INSTRUMENT_NOT_FOUND: ({ instrument_id }) => `There is no instrument ${instrument_id ?? "of this name"}.`,
  INSTRUMENT_HALTED: ({ instrument_id }) => `${instrument_id ?? "The instrument"} cannot be traded now.`,
  PRICE_OFF_TICK: ({ tick_size }) => `The price must be a multiple of ${tick_size ?? "the tick size"}.`,
  QUANTITY_OFF_LOT: ({ lot_size }) => `The quantity must be a multiple of ${lot_size ?? "the lot size"}.`,
  NOTIONAL_TOO_SMALL: ({ notional, minimum_notional }) =>
    `Price times quantity is ${shown(notional)}; the least is ${shown(minimum_notional)}.`,
  INSUFFICIENT_BALANCE: ({ asset, needed, available }) =>
    `Not enough ${asset ?? "balance"}: the order and its fees need ${shown(needed)}, available are ${shown(available)}.`,
  NO_FRESH_PRICE: () => "There is no price of the last seconds, so the order is not taken.",
  ORDER_DONE: ({ state }) => `The order is already done${state ? ` (${state.toLowerCase()})` : ""}.`,
  TOO_MANY_OPEN_ORDERS: ({ bound }) => `The account has as many open orders as it may${bound ? ` (${bound})` : ""}.`,
  TOO_MANY_ACCOUNTS: ({ accounts_max }) => `You have as many accounts as you may${accounts_max ? ` (${accounts_max})` : ""}.`,
  TOO_BUSY: () => "Too many orders are being placed at once. Try again in a moment.",
  USER_DELETED: () => "You are deleted for good: nothing is traded any more.",
  STOP_OFF_TICK: ({ tick_size }) => `The stop price, or the trailing amount, must be a multiple of ${tick_size ?? "the tick size"}.`,
  STOP_WOULD_TRIGGER: ({ stop_price, last_price }) =>
    `The last price${last_price ? ` (${shown(last_price)})` : ""} has reached the stop price${stop_price ? ` ${shown(stop_price)}` : ""} already.`,
  NOT_REDUCING: ({ reducible }) => `There is no more than ${shown(reducible ?? "0", 0)} to reduce.`,
  EXPIRE_TIME_PAST: () => "The order would have expired already.",
  NOT_REPLACEABLE: ({ state }) => `The order cannot be changed now${state ? ` (${state.toLowerCase().replace(/_/g, " ")})` : ""}.`,
  REPLACEMENT_INVALID: () => "The order cannot be changed like this.",
  GROUP_INVALID: () => "The orders of the group do not go together.",
  NOT_TAKEN_BY_VENUE: ({ venue }) => `${venue ?? "The venue"} does not take such an order.`,
  RISK_LIMIT_REACHED: ({ limit = "", value, bound }) =>
    `Above the account's limit: ${limitText(limit)} would be ${shown(value, 0)}, at most ${shown(bound, 0)} is allowed.`,
  ORDER_RATE_REACHED: ({ bound }) => `The account places orders faster than it may${bound ? ` (${bound} a second)` : ""}.`,
  TRADING_HALTED: ({ limit = "" }) => `Trading is stopped by ${haltText(limit)}.`,
  LIMITS_CHANGED: () => "The limits were set elsewhere since you looked. Nothing was changed: look at them as they are first.",
  PARENT_ORDER_NOT_FOUND: () => "This parent order does not exist.",
  PARENT_ORDER_INVALID: () => "No parent order can be made of this.",
  PARENT_ORDER_DONE: ({ state }) => `The parent order is already done${state ? ` (${state.toLowerCase()})` : ""}.`,
  TOO_MANY_PARENT_ORDERS: ({ parent_orders_max }) =>
    `The account has as many parent orders under way as it may${parent_orders_max ? ` (${parent_orders_max})` : ""}.`,
  LIVE_TRADING_DISABLED: () => "Trading with real money is not enabled here.",
  LIVE_TRADING_OFF: () => "This account may not trade real money now: confirm it first, and let its venue answer.",
  ACCOUNT_NOT_LIVE: () => "This is a paper account.",
  NO_USABLE_CREDENTIAL: ({ venue }) => `No key${venue ? ` for ${venue}` : ""} was put for this account and found usable.`,
  INSTRUMENT_NOT_FOR_ACCOUNT: ({ account_kind }) =>
    account_kind === "MARGIN" ? "A margin account trades perpetual futures alone." : "Perpetual futures are traded on margin accounts alone.",
  INSUFFICIENT_MARGIN: ({ asset, needed, available }) =>
    needed ? `Needs ${needed} ${asset} of margin, available is ${available}.` : "The account has not enough margin.",
  ORDER_LIQUIDATES: () => "The order closes a position whose margin is used up: it is neither canceled nor changed.",
  ACCOUNT_NOT_MARGIN: () => "A cash account has no leverage.",
  INSTRUMENT_NOT_AT_VENUE: ({ venue }) => `This account trades ${venue ? `${venue}'s` : "its own venue's"} instruments alone.`,
  NO_QUOTE: () => "There has been no tick yet.",
  VENUE_NOT_FOUND: ({ venue }) => `There is no venue ${venue ?? "of this name"}.`,
  VENUE_UNAVAILABLE: ({ venue }) => `${venue ?? "The venue"} does not answer now, or was asked too often. Try again in a moment.`,
  NOT_CONNECTED: () => "The account's venue is not connected: confirm the account first.",
  RECONCILIATION_NOT_FOUND: () => "This comparison does not exist.",
  EXTERNAL_ORDER_NOT_FOUND: () => "This order is not there.",
  EXTERNAL_ORDER_DONE: ({ state }) => `This order is decided or over already${state ? ` (${state.toLowerCase()})` : ""}.`,
  CREDENTIAL_NOT_FOUND: () => "There is no such key.",
  VENUE_NEEDS_NO_CREDENTIAL: ({ venue }) => `${venue ?? "The venue"} is simulated and asks for no key.`,
  VENUE_NOT_SUPPORTED: ({ venue }) => `No orders can be sent to ${venue ?? "this venue"}.`,
  LABEL_TAKEN: () => "Another key of yours has this label.",
  ACCOUNT_HAS_CREDENTIAL: () => "The account has a key already.",
  TOO_MANY_CREDENTIALS: ({ credentials_max }) => `You have as many keys as you may${credentials_max ? ` (${credentials_max})` : ""}.`,
  CREDENTIAL_CHANGED: () => "Another key was put while the venue was asked about this one. Test it again.",
  CREDENTIAL_NOT_USABLE: () => "This key was not tested, or is of no use.",
};

/** Whether a reason is told in words of its own. */
export function isInWords(reason: string): boolean {
  return reason in SENTENCES;
}

function sentence(refusal: Refusal, raw: string): string {
  const known = SENTENCES[refusal.reason];
  if (known) return known(refusal.metadata, refusal);
  if (refusal.reason === "" && TRANSIENT.has(refusal.code)) return "The platform does not answer. Check the connection.";
  if (refusal.reason === "" && refusal.code === Code.Unknown) return "The platform cannot be reached. Check the connection.";
  return raw || "The request was refused.";
}

const WAITS = new Set(["RATE_LIMITED", "LOGIN_DELAYED", "ORDER_RATE_REACHED"]);

/** Whether the caller is held up for a time, rather than refused. */
export function mustWait({ reason }: Refusal): boolean {
  return WAITS.has(reason);
}

function comeBack({ retryDelaySeconds }: Refusal): string {
  if (retryDelaySeconds === undefined) return "Try again in a moment.";
  return `Try again ${inWords(Math.max(1, Math.ceil(retryDelaySeconds)))}.`;
}

/** Such as "in 45 seconds" and "in 12 minutes". */
export function inWords(seconds: number): string {
  if (seconds < 100) return `in ${seconds} second${seconds === 1 ? "" : "s"}`;
  return `in ${Math.ceil(seconds / 60)} minutes`;
}

/** What a form shows beside the field of that name. */
export function violationOf(refusal: Refusal | undefined, field: string): string | undefined {
  return refusal?.violations.find(
    (violation) => violation.field === field || violation.field.startsWith(`${field}.`) || violation.field.startsWith(`${field}[`),
  )?.description;
}

/** Which field of a form a refusal without field violations is about. */
export const FIELD_OF_REASON: Record<string, string> = {
  PRICE_OFF_TICK: "limit_price",
  QUANTITY_OFF_LOT: "quantity",
  NOTIONAL_TOO_SMALL: "quantity",
  INSUFFICIENT_BALANCE: "quantity",
  INSUFFICIENT_MARGIN: "quantity",
  STOP_OFF_TICK: "stop_price",
  STOP_WOULD_TRIGGER: "stop_price",
  NOT_REDUCING: "quantity",
  EXPIRE_TIME_PAST: "expire_time",
  EMAIL_TAKEN: "email",
  PASSWORD_TOO_COMMON: "password",
  LABEL_TAKEN: "label",
};

/** Which field of an order is beyond one of the account's limits; other limits are about no field. */
const FIELD_OF_LIMIT: Record<string, string> = {
  price_collar_percent: "limit_price",
  order_quantity_max: "quantity",
  order_notional_max: "quantity",
  position_quantity_max: "quantity",
  position_notional_max: "quantity",
  fat_finger_percent: "quantity",
};

/** The field that a refusal without field violations is about, if it is about one. */
export function fieldOf({ reason, metadata }: Refusal): string | undefined {
  return reason === "RISK_LIMIT_REACHED" ? FIELD_OF_LIMIT[metadata.limit ?? ""] : FIELD_OF_REASON[reason];
}
