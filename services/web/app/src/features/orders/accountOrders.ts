import { OrderState, type Order, type OrderEvent, type StreamOrderEventsResponse } from "@gen/tradeloom/orders/v1/orders_pb.js";

/** So many orders, newest first, are kept on the page; older ones are asked for again. */
export const ORDERS_MAX = 1_000;
/** So many events of the stream are kept, to show the life of recent orders. */
export const EVENTS_MAX = 2_000;

const DONE = new Set([OrderState.FILLED, OrderState.CANCELED, OrderState.REJECTED, OrderState.EXPIRED]);

export function isDone({ state }: Pick<Order, "state">): boolean {
  return DONE.has(state);
}

/** What its owner noted about an order. */
export type Annotation = Pick<Order, "note" | "tags">;

const NO_ANNOTATION: Annotation = { note: "", tags: [] };

/** What is known of one account's orders, out of lists and of the stream. */
export interface AccountOrders {
  /** By order_id; of two versions of an order the one of the higher revision. */
  orders: ReadonlyMap<string, Order>;
  /** By order_id. Kept apart, because the stream and most answers do not tell them. */
  annotations: ReadonlyMap<string, Annotation>;
  /** In the order of their account_sequence. */
  events: readonly OrderEvent[];
  /** The newest account_sequence seen. */
  revision: bigint;
}

export const NO_ORDERS: AccountOrders = { orders: new Map(), annotations: new Map(), events: [], revision: 0n };

export function afterMessage(known: AccountOrders, message: StreamOrderEventsResponse): AccountOrders {
  switch (message.step.case) {
    case "acknowledgement":
      return afterList(known, message.step.value.openOrders);
    case "event": {
      const event = message.step.value;
      if (!event.order || event.accountSequence <= known.revision) return known;
      const next = afterList(known, [event.order]);
      return {
        ...next,
        events: [...known.events, event].slice(-EVENTS_MAX),
        revision: event.accountSequence,
      };
    }
    default:
      return known;
  }
}

export function afterList(known: AccountOrders, list: readonly Order[]): AccountOrders {
  const orders = new Map(known.orders);
  for (const order of list) {
    const present = orders.get(order.orderId);
    if (!present || order.revision > present.revision) orders.set(order.orderId, order);
  }
  if (orders.size > ORDERS_MAX) {
    // Ids are UUIDv7: their order is that of placing. Open orders are never left out.
    const old = [...orders.values()].filter(isDone).sort(newestFirst).slice(ORDERS_MAX - orders.size);
    for (const order of old) orders.delete(order.orderId);
  }
  return { ...known, orders };
}

/** The same for a list whose orders come with their notes and tags. */
export function afterAnnotatedList(known: AccountOrders, list: readonly Order[]): AccountOrders {
  const next = afterList(known, list);
  const annotations = new Map([...known.annotations].filter(([orderId]) => next.orders.has(orderId)));
  for (const { orderId, note, tags } of list) {
    if (note === "" && tags.length === 0) annotations.delete(orderId);
    else if (next.orders.has(orderId)) annotations.set(orderId, { note, tags });
  }
  return { ...next, annotations };
}

export function annotationOf(known: AccountOrders, orderId: string): Annotation {
  return known.annotations.get(orderId) ?? NO_ANNOTATION;
}

export function newestFirst(left: Order, right: Order): number {
  return left.orderId < right.orderId ? 1 : left.orderId > right.orderId ? -1 : 0;
}

export function openOrdersOf(known: AccountOrders): Order[] {
  return [...known.orders.values()].filter((order) => !isDone(order)).sort(newestFirst);
}

export function doneOrdersOf(known: AccountOrders): Order[] {
  return [...known.orders.values()].filter(isDone).sort(newestFirst);
}

export function lifeOf(known: AccountOrders, orderId: string): OrderEvent[] {
  return known.events.filter((event) => event.order?.orderId === orderId);
}
