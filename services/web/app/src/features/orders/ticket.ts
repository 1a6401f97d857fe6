import { OrderSide, OrderType, TimeInForce } from "@gen/tradeloom/orders/v1/orders_pb.js";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { FIELD_OF_REASON, isOutcomeLost, violationOf, type Refusal } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { isMultiple, typed, unitsOf } from "@/lib/decimal";

/** What a person has typed; prices and quantities stay text all the way to the wire. */
export interface Draft {
  side: OrderSide;
  orderType: OrderType;
  timeInForce: TimeInForce;
  quantity: string;
  limitPrice: string;
}

/** One order somebody means to place: the id goes with exactly these contents. */
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

/** Another order type starts with its own usual time in force: a market order cannot last, a limit order does. */
function edited(draft: Draft, change: Partial<Draft>): Draft {
  if (change.orderType === undefined || change.orderType === draft.orderType) return { ...draft, ...change };
  const timeInForce = change.orderType === OrderType.MARKET ? TimeInForce.IOC : TimeInForce.GTC;
  return { ...draft, timeInForce, ...change };
}

/** What the page can tell is wrong before asking; the service decides about everything again. */
export function problemsOf(draft: Draft, instrument: Instrument): Partial<Record<"quantity" | "limit_price", string>> {
  const problems: ReturnType<typeof problemsOf> = {};
  const quantity = problemOf(draft.quantity, instrument.lotSize?.value);
  if (quantity) problems.quantity = quantity;
  if (draft.orderType === OrderType.LIMIT) {
    const price = problemOf(draft.limitPrice, instrument.tickSize?.value);
    if (price) problems.limit_price = price;
  }
  return problems;
}

function problemOf(text: string, step: string | undefined): string | undefined {
  const plain = typed(text);
  if (plain === "") return "Required";
  const units = unitsOf(plain);
  if (units === undefined) return plain.includes(",") ? "Write decimals with a point" : "Not a plain number";
  if (units <= 0n) return "Must be above zero";
  if (step && !isMultiple(plain, step)) return `Must be a multiple of ${step}`;
  return undefined;
}

/** What the service said about a field, whether as a violation or as a reason of its own. */
export function refusalFor(refusal: Refusal | undefined, field: string): string | undefined {
  if (!refusal) return undefined;
  return violationOf(refusal, field) ?? (FIELD_OF_REASON[refusal.reason] === field ? refusal.message : undefined);
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
