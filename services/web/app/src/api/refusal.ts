import { Code, ConnectError } from "@connectrpc/connect";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "@gen/google/rpc/error_details_pb.js";
import { shown } from "@/lib/decimal";

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
  };
  refusal.message = sentence(refusal, connect.rawMessage);
  return refusal;
}

/** Whether the same call may succeed in a moment. */
export function isTransient(refusal: Refusal): boolean {
  return TRANSIENT.has(refusal.code) || refusal.retryDelaySeconds !== undefined;
}

/** Whether it is unknown if the call took effect; repeating it with the same request id tells. */
export function isOutcomeLost(refusal: Refusal): boolean {
  return OUTCOME_LOST.has(refusal.code) && !NOTHING_BEGUN.has(refusal.reason);
}

type Sentence = (metadata: Record<string, string>, refusal: Refusal) => string;

const SENTENCES: Record<string, Sentence> = {
  INVALID_FIELDS: (_, { violations }) =>
    violations.length === 1 ? "One field needs another look." : "Some fields need another look.",
  TOKEN_INVALID: () => "Your session has expired. Sign in again.",
  SESSION_REVOKED: () => "Your session was ended. Sign in again.",
  NOT_PERMITTED: () => "You are not allowed to do this.",
  ENTITLEMENT_MISSING: () => "Your plan does not include this.",
  STEP_UP_REQUIRED: () => "This needs a fresh second factor.",
  RATE_LIMITED: (_, refusal) => `Too many requests. ${comeBack(refusal)}`,
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
  LOGIN_DELAYED: (_, refusal) => `Too many failed attempts. ${comeBack(refusal)}`,
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
  NO_FRESH_PRICE: () => "There is no price of the last seconds, so a market order is not taken.",
  ORDER_DONE: ({ state }) => `The order is already done${state ? ` (${state.toLowerCase()})` : ""}.`,
  TOO_MANY_OPEN_ORDERS: ({ open_orders_max }) =>
    `The account has as many open orders as it may${open_orders_max ? ` (${open_orders_max})` : ""}.`,
  TOO_MANY_ACCOUNTS: ({ accounts_max }) => `You have as many accounts as you may${accounts_max ? ` (${accounts_max})` : ""}.`,
  TOO_BUSY: () => "Too many orders are being placed at once. Try again in a moment.",
  NO_QUOTE: () => "There has been no tick yet.",
};

function sentence(refusal: Refusal, raw: string): string {
  const known = SENTENCES[refusal.reason];
  if (known) return known(refusal.metadata, refusal);
  if (refusal.reason === "" && TRANSIENT.has(refusal.code)) return "The platform does not answer. Check the connection.";
  if (refusal.reason === "" && refusal.code === Code.Unknown) return "The platform cannot be reached. Check the connection.";
  return raw || "The request was refused.";
}

function comeBack({ retryDelaySeconds }: Refusal): string {
  if (retryDelaySeconds === undefined) return "Try again in a moment.";
  const seconds = Math.max(1, Math.ceil(retryDelaySeconds));
  return `Try again in ${seconds} second${seconds === 1 ? "" : "s"}.`;
}

/** What a form shows beside the field of that name. */
export function violationOf(refusal: Refusal | undefined, field: string): string | undefined {
  return refusal?.violations.find((violation) => violation.field === field || violation.field.startsWith(`${field}.`))
    ?.description;
}

/** Which field of the ticket a refusal without field violations is about. */
export const FIELD_OF_REASON: Record<string, string> = {
  PRICE_OFF_TICK: "limit_price",
  QUANTITY_OFF_LOT: "quantity",
  NOTIONAL_TOO_SMALL: "quantity",
  INSUFFICIENT_BALANCE: "quantity",
  EMAIL_TAKEN: "email",
  PASSWORD_TOO_COMMON: "password",
};
