import { create } from "@bufbuild/protobuf";
import {
  OrderEventKind,
  OrderSchema,
  OrderState,
  StreamOrderEventsResponseSchema,
  type Order,
} from "@gen/tradeloom/orders/v1/orders_pb.js";
import { describe, expect, test } from "vitest";
import { filtered, NO_FILTER, OPEN_STATES } from "./orderFilter";
import { afterAnnotatedList, afterList, afterMessage, annotationOf, doneOrdersOf, lifeOf, NO_ORDERS, openOrdersOf, ORDERS_MAX } from "./accountOrders";

function order(orderId: string, state: OrderState, revision: number): Order {
  return create(OrderSchema, { orderId, state, revision: BigInt(revision) });
}

function event(sequence: number, kind: OrderEventKind, changed: Order) {
  return create(StreamOrderEventsResponseSchema, {
    cursor: String(sequence),
    step: { case: "event", value: { accountSequence: BigInt(sequence), kind, order: changed } },
  });
}

describe("an account's orders", () => {
  test("move from open to done as the stream tells it", () => {
    let known = afterMessage(
      NO_ORDERS,
      create(StreamOrderEventsResponseSchema, {
        cursor: "4",
        step: { case: "acknowledgement", value: { openOrders: [order("o1", OrderState.NEW, 4)] } },
      }),
    );
    expect(openOrdersOf(known).map((one) => one.orderId)).toEqual(["o1"]);
    known = afterMessage(known, event(5, OrderEventKind.FILLED, order("o1", OrderState.FILLED, 5)));
    expect(openOrdersOf(known)).toEqual([]);
    expect(doneOrdersOf(known).map((one) => one.orderId)).toEqual(["o1"]);
    expect(known.revision).toBe(5n);
  });

  test("never go back to an older version that a slow list brings", () => {
    const filled = afterMessage(NO_ORDERS, event(7, OrderEventKind.FILLED, order("o1", OrderState.FILLED, 7)));
    const listed = afterList(filled, [order("o1", OrderState.NEW, 6)]);
    expect(openOrdersOf(listed)).toEqual([]);
  });

  test("take an event once, also when it comes again", () => {
    const accepted = event(1, OrderEventKind.ACCEPTED, order("o1", OrderState.PENDING_NEW, 1));
    const once = afterMessage(NO_ORDERS, accepted);
    expect(afterMessage(once, accepted)).toBe(once);
    expect(lifeOf(once, "o1")).toHaveLength(1);
  });

  test("are bounded, and leave out done ones only", () => {
    const many = Array.from({ length: ORDERS_MAX + 10 }, (_, n) =>
      order(`o${String(n).padStart(6, "0")}`, n === 0 ? OrderState.NEW : OrderState.FILLED, 1),
    );
    const known = afterList(NO_ORDERS, many);
    expect(known.orders.size).toBe(ORDERS_MAX);
    expect(known.orders.has("o000000")).toBe(true);
    expect(known.orders.has("o000001")).toBe(false);
  });

  test("keep their notes and tags through events, which do not tell them", () => {
    const noted = { ...order("o1", OrderState.NEW, 4), note: "first try", tags: ["breakout"] };
    let known = afterAnnotatedList(NO_ORDERS, [noted]);
    known = afterMessage(known, event(5, OrderEventKind.FILLED, order("o1", OrderState.FILLED, 5)));
    expect(annotationOf(known, "o1")).toEqual({ note: "first try", tags: ["breakout"] });
    expect(doneOrdersOf(known)).toHaveLength(1);
    known = afterAnnotatedList(known, [order("o1", OrderState.FILLED, 5)]);
    expect(annotationOf(known, "o1")).toEqual({ note: "", tags: [] });
  });

  test("are filtered as they are by now, and what was listed stays beyond what is kept", () => {
    const listed = [order("o9", OrderState.NEW, 1), order("o1", OrderState.CANCELED, 1)];
    const known = afterList(NO_ORDERS, [order("o9", OrderState.FILLED, 2), order("o8", OrderState.NEW, 3)]);
    expect(filtered(known, listed, NO_FILTER).map((one) => one.orderId)).toEqual(["o9", "o8", "o1"]);
    expect(filtered(known, listed, { ...NO_FILTER, states: OPEN_STATES }).map((one) => one.orderId)).toEqual(["o8"]);
    expect(filtered(known, listed, { ...NO_FILTER, instrumentId: "SIM:BTCUSDT" })).toEqual([]);
    expect(filtered(afterAnnotatedList(known, [{ ...listed[1]!, tags: ["x"] }]), listed, { ...NO_FILTER, tag: "x" })).toHaveLength(1);
  });
});
