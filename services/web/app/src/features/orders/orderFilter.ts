import { OrderState, type Order } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { annotationOf, isDone, newestFirst, type AccountOrders } from "./accountOrders";

/** Which orders are looked at, in the contract's words. */
export interface OrderFilter {
  /** All if empty. */
  states: readonly OrderState[];
  instrumentId: string;
  tag: string;
}

export const NO_FILTER: OrderFilter = { states: [], instrumentId: "", tag: "" };

const STATES = Object.values(OrderState).filter(
  (state): state is OrderState => typeof state === "number" && state !== OrderState.UNSPECIFIED,
);
export const DONE_STATES = STATES.filter((state) => isDone({ state }));
export const OPEN_STATES = STATES.filter((state) => !isDone({ state }));

/**
 * The orders a filter leaves, newest first: those that were listed, as they are by now, and those that came since.
 * What was listed stays although the page keeps no more than its newest orders up to date.
 */
export function filtered(known: AccountOrders, listed: readonly Order[], { states, instrumentId, tag }: OrderFilter): Order[] {
  const orders = new Map(listed.map((order) => [order.orderId, order]));
  for (const order of known.orders.values()) orders.set(order.orderId, order);
  return [...orders.values()]
    .filter(
      (order) =>
        (states.length === 0 || states.includes(order.state)) &&
        (instrumentId === "" || order.instrumentId === instrumentId) &&
        (tag === "" || annotationOf(known, order.orderId).tags.includes(tag) || order.tags.includes(tag)),
    )
    .sort(newestFirst);
}
