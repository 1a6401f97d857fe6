import { OrderSide, OrderType, TimeInForce } from "@gen/tradeloom/orders/v1/orders_pb.js";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { fieldOf, isOutcomeLost, type Refusal } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { isMultiple, placesOf, typed, unitsOf } from "@/lib/decimal";
import { edited, needsLimitPrice, takesLimitPrice, takesStopPrice } from "./allowed";

/** What a person has typed; prices and quantities stay text all the way to the wire. */
export interface Draft {
  side: OrderSide;
  orderType: OrderType;
  timeInForce: TimeInForce;
  quantity: string;
  limitPrice: string;
  stopPrice: string;
  /** How far a trailing stop follows behind. */
  trail: string;
  trailIn: "amount" | "percent";
  /** With GTD, as a field for date and time has it: "2027-01-31T16:00", by the reader's own clock. */
  expireTime: string;
  postOnly: boolean;
  reduceOnly: boolean;
  /** Whether two more orders leave the position again: one at a profit, one that stops the loss. */
  hasBracket: boolean;
  takeProfitPrice: string;
  stopLossPrice: string;
}

/** One order, or an entry with its bracket, somebody means to place: the id goes with exactly these contents. */
export interface Intent {
  requestId: string;
  accountId: string;
  instrumentId: string;
  draft: Draft;
}

/**
 * composing: nothing has been sent, or what was sent was refused, which leaves no trace.
 * sending: waiting for the answer.
 * lost: the answer was lost; the order may or may not have been placed, and only sending the very
 *   same intent again tells, without ever placing a second one.
 * placed: accepted a moment ago; a second click of a double click finds the ticket closed.
 */
export type Ticket =
  | { phase: "composing"; draft: Draft; requestId: string; refusal?: Refusal }
  | { phase: "sending"; draft: Draft; intent: Intent }
  | { phase: "lost"; draft: Draft; intent: Intent; refusal: Refusal }
  | { phase: "placed"; draft: Draft };

/** How long an accepted ticket stays closed. */
export const PLACED_MILLISECONDS = 1_000;

export type TicketAction =
  | { kind: "edit"; change: Partial<Draft> }
  | { kind: "send"; accountId: string; instrumentId: string }
  | { kind: "sendAgain" }
  | { kind: "accepted"; requestId: string }
  | { kind: "refused"; requestId: string; refusal: Refusal }
  | { kind: "abandon" }
  | { kind: "reopen" };

export const EMPTY_DRAFT: Draft = {
  side: OrderSide.BUY,
  orderType: OrderType.LIMIT,
  timeInForce: TimeInForce.GTC,
  quantity: "",
  limitPrice: "",
  stopPrice: "",
  trail: "",
  trailIn: "percent",
  expireTime: "",
  postOnly: false,
  reduceOnly: false,
  hasBracket: false,
  takeProfitPrice: "",
  stopLossPrice: "",
};

/** A fresh ticket, or the one whose answer an earlier page did not live to see. */
export function openTicket(unanswered?: Intent): Ticket {
  if (!unanswered) return { phase: "composing", draft: EMPTY_DRAFT, requestId: newRequestId() };
  return { phase: "lost", draft: unanswered.draft, intent: unanswered, refusal: LOST_TO_RELOAD };
}

export function ticketAfter(ticket: Ticket, action: TicketAction): Ticket {
  switch (action.kind) {
    case "edit": {
      if (ticket.phase !== "composing" && ticket.phase !== "placed") return ticket;
      // Other contents are another intent.
      return { phase: "composing", draft: edited(ticket.draft, action.change), requestId: newRequestId() };
    }
    case "send": {
      if (ticket.phase !== "composing") return ticket;
      const { accountId, instrumentId } = action;
      const intent = { requestId: ticket.requestId, accountId, instrumentId, draft: ticket.draft };
      return { phase: "sending", draft: ticket.draft, intent };
    }
    case "sendAgain":
      return ticket.phase === "lost" ? { phase: "sending", draft: ticket.draft, intent: ticket.intent } : ticket;
    case "accepted":
      if (!isAwaited(ticket, action.requestId)) return ticket;
      return { phase: "placed", draft: { ...ticket.draft, quantity: "" } };
    case "refused":
      if (!isAwaited(ticket, action.requestId)) return ticket;
      if (isOutcomeLost(action.refusal)) {
        return { phase: "lost", draft: ticket.draft, intent: ticket.intent, refusal: action.refusal };
      }
      // A refusal is not recorded, so the same id may carry the same intent again.
      return { phase: "composing", draft: ticket.draft, requestId: ticket.intent.requestId, refusal: action.refusal };
    case "abandon":
      if (ticket.phase !== "lost") return ticket;
      return { phase: "composing", draft: { ...ticket.draft, quantity: "" }, requestId: newRequestId() };
    case "reopen":
      if (ticket.phase !== "placed") return ticket;
      return { phase: "composing", draft: ticket.draft, requestId: newRequestId() };
  }
}

function isAwaited(ticket: Ticket, requestId: string): ticket is Extract<Ticket, { phase: "sending" }> {
  return ticket.phase === "sending" && ticket.intent.requestId === requestId;
}

/** The ticket's fields, as the contract names them where it has one. */
export const FIELDS = [
  "order_type",
  "stop_price",
  "trail",
  "limit_price",
  "quantity",
  "time_in_force",
  "expire_time",
  "take_profit",
  "stop_loss",
] as const;
export type Field = (typeof FIELDS)[number];

/** What the page can tell is wrong before asking; the service decides about everything again. */
export function problemsOf(draft: Draft, instrument: Instrument, now = Date.now()): Partial<Record<Field, string>> {
  const tick = instrument.tickSize?.value;
  const found: [Field, string | undefined][] = [["quantity", problemOf(draft.quantity, instrument.lotSize?.value)]];
  const { orderType } = draft;
  if (needsLimitPrice(orderType) || (takesLimitPrice(orderType) && draft.limitPrice.trim() !== "")) {
    found.push(["limit_price", problemOf(draft.limitPrice, tick)]);
  }
  if (takesStopPrice(orderType)) found.push(["stop_price", problemOf(draft.stopPrice, tick)]);
  if (orderType === OrderType.TRAILING_STOP) {
    found.push(["trail", draft.trailIn === "amount" ? problemOf(draft.trail, tick) : problemOfPercent(draft.trail)]);
  }
  if (draft.timeInForce === TimeInForce.GTD) found.push(["expire_time", problemOfTime(draft.expireTime, now)]);
  if (draft.hasBracket) {
    found.push(["take_profit", problemOf(draft.takeProfitPrice, tick)], ["stop_loss", problemOf(draft.stopLossPrice, tick)]);
    const [profit, loss] = [unitsOf(typed(draft.takeProfitPrice)), unitsOf(typed(draft.stopLossPrice))];
    const isBuy = draft.side === OrderSide.BUY;
    if (profit !== undefined && loss !== undefined && (isBuy ? profit <= loss : profit >= loss)) {
      found.push(["take_profit", `Must be ${isBuy ? "above" : "below"} the stop loss`]);
    }
  }
  return Object.fromEntries(found.filter(([, problem]) => problem !== undefined));
}

export function problemOf(text: string, step: string | undefined): string | undefined {
  const plain = typed(text);
  if (plain === "") return "Required";
  const units = unitsOf(plain);
  if (units === undefined) return plain.includes(",") ? "Write decimals with a point" : "Not a plain number";
  if (units <= 0n) return "Must be above zero";
  if (step && !isMultiple(plain, step)) return `Must be a multiple of ${step}`;
  return undefined;
}

const HUNDRED = unitsOf("100")!;
const PERCENT_PLACES_MAX = 2;

function problemOfPercent(text: string): string | undefined {
  const plain = typed(text);
  return (
    problemOf(text, undefined) ??
    (unitsOf(plain)! >= HUNDRED ? "Must be below 100" : undefined) ??
    (placesOf(plain) > PERCENT_PLACES_MAX ? "At most two digits after the point" : undefined)
  );
}

/** Of a field for date and time, by the reader's own clock. */
export function problemOfTime(text: string, now: number): string | undefined {
  if (text === "") return "Required";
  const time = new Date(text).getTime();
  if (Number.isNaN(time)) return "Not a date and time";
  return time <= now ? "Must lie ahead" : undefined;
}

/** Where a refusal of a group says which order: the entry's fields are the ticket's, the others have one field each. */
function fieldAt(path: string): string {
  if (path.startsWith("orders[1]")) return "take_profit";
  if (path.startsWith("orders[2]")) return "stop_loss";
  return path.replace(/^orders\[0\][.]/, "").replace(/[.[].*$/, "");
}

/** What the service said about a field, whether as a violation or as a reason of its own. */
export function refusalFor(refusal: Refusal | undefined, field: string): string | undefined {
  if (!refusal) return undefined;
  const said = refusal.violations.find((violation) => fieldAt(violation.field) === field)?.description;
  return said ?? (fieldOf(refusal) === field ? refusal.message : undefined);
}

const LOST_TO_RELOAD: Refusal = {
  code: 14,
  reason: "",
  domain: "",
  metadata: {},
  violations: [],
  retryDelaySeconds: undefined,
  message: "The page was closed before the answer came.",
  what: "The page was closed before the answer came.",
};
