import {
  GroupRole,
  OrderEventKind,
  OrderSide,
  OrderState,
  OrderType,
  TimeInForce,
  type Order,
  type Trail,
} from "@gen/tradeloom/orders/v1/orders_pb.js";
import { shown } from "@/lib/decimal";

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
  [OrderType.STOP]: "Stop",
  [OrderType.STOP_LIMIT]: "Stop limit",
  [OrderType.TRAILING_STOP]: "Trailing stop",
  [OrderType.TAKE_PROFIT]: "Take profit",
};

export const TIMES_IN_FORCE: Record<TimeInForce, { short: string; long: string }> = {
  [TimeInForce.UNSPECIFIED]: { short: "–", long: "–" },
  [TimeInForce.GTC]: { short: "GTC", long: "Until canceled (GTC)" },
  [TimeInForce.IOC]: { short: "IOC", long: "At once, cancel the rest (IOC)" },
  [TimeInForce.FOK]: { short: "FOK", long: "All at once or nothing (FOK)" },
  [TimeInForce.DAY]: { short: "Day", long: "Until the trading day ends (DAY)" },
  [TimeInForce.GTD]: { short: "GTD", long: "Until a time (GTD)" },
};

export const STATES: Record<OrderState, { label: string; color: string }> = {
  [OrderState.UNSPECIFIED]: { label: "–", color: "gray" },
  [OrderState.HELD]: { label: "Waiting here", color: "grape" },
  [OrderState.PENDING_NEW]: { label: "Sending", color: "blue" },
  [OrderState.NEW]: { label: "Working", color: "indigo" },
  [OrderState.PARTIALLY_FILLED]: { label: "Partly filled", color: "cyan" },
  [OrderState.FILLED]: { label: "Filled", color: "teal" },
  [OrderState.PENDING_CANCEL]: { label: "Canceling", color: "yellow" },
  [OrderState.PENDING_REPLACE]: { label: "Changing", color: "yellow" },
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
  [OrderEventKind.REPLACE_REQUESTED]: "Change asked for",
  [OrderEventKind.REPLACED]: "Changed",
  [OrderEventKind.REPLACE_REJECTED]: "Not changed by the venue",
  [OrderEventKind.EXPIRED]: "Expired",
  [OrderEventKind.TRIGGERED]: "Stop reached",
  [OrderEventKind.RELEASED]: "Released, as its entry traded or its price was reached",
  [OrderEventKind.REDUCED]: "Reduced, as its other leg traded or its entry ended",
  [OrderEventKind.UNKNOWN]: "The venue's answer was lost",
  [OrderEventKind.RETURNED]: "Not at the venue, waits here to be tried again",
};

export const GROUP_ROLES: Record<GroupRole, string> = {
  [GroupRole.UNSPECIFIED]: "",
  [GroupRole.ENTRY]: "Entry",
  [GroupRole.TRIGGERED]: "Triggered",
  [GroupRole.LEG]: "Leg",
};

export function trailText(trail: Trail | undefined): string {
  const { distance } = trail ?? {};
  if (!distance?.case) return "–";
  return distance.case === "percent" ? `${shown(distance.value.value, 0)}%` : shown(distance.value.value);
}

/** At which price it trades, and from which on, such as "stop 90.00, limit 89.50". */
export function priceText({ orderType, limitPrice, stopPrice, trail }: Order): string {
  const limit = shown(limitPrice?.value);
  if (orderType === OrderType.LIMIT || orderType === OrderType.MARKET) return limit;
  if (orderType === OrderType.TRAILING_STOP) return `trails by ${trailText(trail)}`;
  const stop = `${orderType === OrderType.TAKE_PROFIT ? "from" : "stop"} ${shown(stopPrice?.value)}`;
  return limitPrice ? `${stop}, limit ${limit}` : stop;
}

/** Why an order ended, where the venue says it in a word. */
const REASONS: Record<string, string> = {
  user: "You canceled it.",
  ioc: "What could not trade at once was canceled.",
  fok: "Not all of it could trade at once.",
  day: "The trading day ended.",
  gtd: "Its time ran out.",
  group: "The other orders of its group ended it.",
  excess: "There was less left to reduce than it was for.",
  closing: "It made way for closing the position.",
  liquidation: "The margin was used up.",
  instrument_changed: "The instrument changed.",
};

export function reasonText(reason: string): string {
  return REASONS[reason] ?? reason;
}

/** Such as "Buy 0.25 SIM:BTCUSDT". */
export function titleOf(order: Order): string {
  return `${SIDES[order.side]} ${order.quantity?.value ?? ""} ${order.instrumentId}`;
}
