import { OrderType, TimeInForce } from "@gen/tradeloom/orders/v1/orders_pb.js";
import type { Draft } from "./ticket";

/** Which combinations the contract takes (PlaceOrderRequest's rules), so that no others can be chosen. */

/** Order types that wait for a price before they trade. */
export const CONDITIONAL = [OrderType.STOP, OrderType.STOP_LIMIT, OrderType.TAKE_PROFIT, OrderType.TRAILING_STOP] as const;

export function isConditional(orderType: OrderType): boolean {
  return (CONDITIONAL as readonly OrderType[]).includes(orderType);
}

/** The usual one first. */
export function timesInForceOf(orderType: OrderType): TimeInForce[] {
  const resting = [TimeInForce.GTC, TimeInForce.DAY, TimeInForce.GTD];
  if (orderType === OrderType.MARKET) return [TimeInForce.IOC, TimeInForce.FOK];
  if (orderType === OrderType.LIMIT) return [...resting, TimeInForce.IOC, TimeInForce.FOK];
  return resting;
}

export function needsLimitPrice(orderType: OrderType): boolean {
  return orderType === OrderType.LIMIT || orderType === OrderType.STOP_LIMIT;
}

export function takesLimitPrice(orderType: OrderType): boolean {
  return needsLimitPrice(orderType) || orderType === OrderType.TAKE_PROFIT;
}

export function takesStopPrice(orderType: OrderType): boolean {
  return isConditional(orderType) && orderType !== OrderType.TRAILING_STOP;
}

export function takesPostOnly({ orderType, timeInForce }: Pick<Draft, "orderType" | "timeInForce">): boolean {
  return orderType === OrderType.LIMIT && timeInForce !== TimeInForce.IOC && timeInForce !== TimeInForce.FOK;
}

/** The draft after a change, without what does not go with it. */
export function edited(draft: Draft, change: Partial<Draft>): Draft {
  const next = { ...draft, ...change };
  // Another order type starts with its own usual time in force: a market order cannot last, a limit order does.
  if (next.orderType !== draft.orderType && change.timeInForce === undefined) next.timeInForce = timesInForceOf(next.orderType)[0]!;
  if (!takesPostOnly(next)) next.postOnly = false;
  // An entry makes a position, which its other two orders then leave.
  if (change.hasBracket) next.reduceOnly = false;
  else if (change.reduceOnly) next.hasBracket = false;
  return next;
}
