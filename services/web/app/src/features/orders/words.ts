import { OrderEventKind, OrderSide, OrderState, OrderType, TimeInForce, type Order } from "@gen/tradeloom/orders/v1/orders_pb.js";

/** The contract's enums in words for people. */
export const SIDES: Record<OrderSide, string> = {
  [OrderSide.UNSPECIFIED]: "–",
  [OrderSide.BUY]: "Buy",
  [OrderSide.SELL]: "Sell",
};

export const TYPES: Record<OrderType, string> = {
  [OrderType.UNSPECIFIED]: "–",
  [OrderType.MARKET]: "Market",
  [OrderType.LIMIT]: "Limit",
};

export const TIMES_IN_FORCE: Record<TimeInForce, { short: string; long: string }> = {
  [TimeInForce.UNSPECIFIED]: { short: "–", long: "–" },
  [TimeInForce.GTC]: { short: "GTC", long: "Until canceled (GTC)" },
  [TimeInForce.IOC]: { short: "IOC", long: "At once, cancel the rest (IOC)" },
  [TimeInForce.FOK]: { short: "FOK", long: "All at once or nothing (FOK)" },
};

export const STATES: Record<OrderState, { label: string; color: string }> = {
  [OrderState.UNSPECIFIED]: { label: "–", color: "gray" },
  [OrderState.PENDING_NEW]: { label: "Sending", color: "blue" },
  [OrderState.NEW]: { label: "Working", color: "indigo" },
  [OrderState.PARTIALLY_FILLED]: { label: "Partly filled", color: "cyan" },
  [OrderState.FILLED]: { label: "Filled", color: "teal" },
  [OrderState.PENDING_CANCEL]: { label: "Canceling", color: "yellow" },
  [OrderState.CANCELED]: { label: "Canceled", color: "gray" },
  [OrderState.REJECTED]: { label: "Rejected", color: "red" },
  [OrderState.EXPIRED]: { label: "Expired", color: "gray" },
  [OrderState.UNKNOWN]: { label: "Being settled", color: "orange" },
};

export const EVENTS: Record<OrderEventKind, string> = {
  [OrderEventKind.UNSPECIFIED]: "Changed",
  [OrderEventKind.ACCEPTED]: "Accepted",
  [OrderEventKind.WORKING]: "Working at the venue",
  [OrderEventKind.FILLED]: "Filled",
  [OrderEventKind.CANCEL_REQUESTED]: "Cancel asked for",
  [OrderEventKind.CANCELED]: "Canceled",
  [OrderEventKind.REJECTED]: "Refused by the venue",
  [OrderEventKind.CANCEL_REJECTED]: "Too late to cancel",
};

/** Why an order ended, where the venue says it in a word. */
const REASONS: Record<string, string> = {
  user: "You canceled it.",
  ioc: "What could not trade at once was canceled.",
  fok: "Not all of it could trade at once.",
  instrument_changed: "The instrument changed.",
};

export function reasonText(reason: string): string {
  return REASONS[reason] ?? reason;
}

/** Such as "Buy 0.25 SIM:BTCUSDT". */
export function titleOf(order: Order): string {
  return `${SIDES[order.side]} ${order.quantity?.value ?? ""} ${order.instrumentId}`;
}
