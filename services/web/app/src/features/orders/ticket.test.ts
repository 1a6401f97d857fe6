import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createRouterTransport } from "@connectrpc/connect";
import { InstrumentSchema } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { GroupKind, OrderService, OrderSide, OrderType, TimeInForce } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { describe, expect, test } from "vitest";
import { timestampDate } from "@bufbuild/protobuf/wkt";
import { clientsOver } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { edited, takesPostOnly, timesInForceOf } from "./allowed";
import { ATTEMPTS_MAX } from "@/api/untilAnswered";
import { groupOf, place, requestOf } from "./placing";
import { EMPTY_DRAFT, openTicket, problemsOf, refusalFor, ticketAfter, type Intent, type Ticket } from "./ticket";
import { forgetUnanswered, rememberUnanswered, unanswered } from "./unanswered";
import { refused } from "@/test/api";

const INSTRUMENT = create(InstrumentSchema, {
  instrumentId: "SIM:BTCUSDT",
  tickSize: { value: "0.01" },
  lotSize: { value: "0.001" },
});
const SEND = { kind: "send", accountId: "a1", instrumentId: "SIM:BTCUSDT" } as const;
const LOST = refusalOf(new ConnectError("cut", Code.Unavailable));

function composed(): Ticket {
  return ticketAfter(openTicket(), { kind: "edit", change: { quantity: "0.25", limitPrice: "43000.00" } });
}

function intentOf(ticket: Ticket): Intent {
  if (ticket.phase !== "sending" && ticket.phase !== "lost") throw new Error(ticket.phase);
  return ticket.intent;
}

describe("a ticket", () => {
  test("sends one request id for a double click", () => {
    const once = ticketAfter(composed(), SEND);
    expect(ticketAfter(once, SEND)).toBe(once);
  });

  test("stays closed right after an order was accepted", () => {
    const sent = ticketAfter(composed(), SEND);
    const placed = ticketAfter(sent, { kind: "accepted", requestId: intentOf(sent).requestId });
    expect(placed.phase).toBe("placed");
    expect(ticketAfter(placed, SEND)).toBe(placed);
    expect(placed.draft.quantity).toBe("");
  });

  test("sends the same id and contents again when the answer was lost", () => {
    const sent = ticketAfter(composed(), SEND);
    const lost = ticketAfter(sent, { kind: "refused", requestId: intentOf(sent).requestId, refusal: LOST });
    expect(lost.phase).toBe("lost");
    const edited = ticketAfter(lost, { kind: "edit", change: { quantity: "9" } });
    const again = ticketAfter(edited, { kind: "sendAgain" });
    expect(intentOf(again)).toEqual(intentOf(sent));
  });

  test("makes a new id for other contents and for the next order", () => {
    const first = ticketAfter(composed(), SEND);
    const accepted = ticketAfter(first, { kind: "accepted", requestId: intentOf(first).requestId });
    const second = ticketAfter(ticketAfter(accepted, { kind: "edit", change: { quantity: "0.25" } }), SEND);
    expect(intentOf(second).requestId).not.toBe(intentOf(first).requestId);
  });

  test("keeps what was typed when it is refused, and shows the refusal at its field", () => {
    const sent = ticketAfter(composed(), SEND);
    const refusal = refusalOf(refused(Code.InvalidArgument, "PRICE_OFF_TICK", { price: "1.005", tick_size: "0.01" }));
    const back = ticketAfter(sent, { kind: "refused", requestId: intentOf(sent).requestId, refusal });
    expect(back).toMatchObject({ phase: "composing", draft: { quantity: "0.25" } });
    expect(refusalFor(refusal, "limit_price")).toBe("The price must be a multiple of 0.01.");
    expect(refusalFor(refusal, "quantity")).toBeUndefined();
  });

  test("does not listen to answers of an earlier request", () => {
    const sent = ticketAfter(composed(), SEND);
    expect(ticketAfter(sent, { kind: "accepted", requestId: "another" })).toBe(sent);
  });

  test("knows what is plainly wrong before asking", () => {
    const draft = { ...EMPTY_DRAFT, quantity: "0.0005", limitPrice: "abc" };
    expect(problemsOf(draft, INSTRUMENT)).toEqual({
      quantity: "Must be a multiple of 0.001",
      limit_price: "Not a plain number",
    });
    expect(problemsOf({ ...draft, orderType: OrderType.MARKET, quantity: "1" }, INSTRUMENT)).toEqual({});
  });

  test("gives each order type its usual time in force", () => {
    const market = ticketAfter(composed(), { kind: "edit", change: { orderType: OrderType.MARKET } });
    expect(market.draft.timeInForce).toBe(TimeInForce.IOC);
    const limit = ticketAfter(market, { kind: "edit", change: { orderType: OrderType.LIMIT } });
    expect(limit.draft.timeInForce).toBe(TimeInForce.GTC);
  });

  test("offers only what the contract takes", () => {
    expect(timesInForceOf(OrderType.MARKET)).toEqual([TimeInForce.IOC, TimeInForce.FOK]);
    expect(timesInForceOf(OrderType.TRAILING_STOP)).toEqual([TimeInForce.GTC, TimeInForce.DAY, TimeInForce.GTD]);
    expect(timesInForceOf(OrderType.LIMIT)).toHaveLength(5);
    expect(takesPostOnly({ orderType: OrderType.LIMIT, timeInForce: TimeInForce.IOC })).toBe(false);
    expect(takesPostOnly({ orderType: OrderType.STOP_LIMIT, timeInForce: TimeInForce.GTC })).toBe(false);
    const resting = edited(EMPTY_DRAFT, { postOnly: true });
    expect(resting.postOnly).toBe(true);
    expect(edited(resting, { timeInForce: TimeInForce.FOK }).postOnly).toBe(false);
    expect(edited(edited(resting, { reduceOnly: true }), { hasBracket: true })).toMatchObject({ reduceOnly: false, hasBracket: true });
    expect(edited(edited(resting, { hasBracket: true }), { reduceOnly: true })).toMatchObject({ reduceOnly: true, hasBracket: false });
  });

  test("knows what is wrong with stops, trails, times and brackets", () => {
    const now = new Date("2027-01-31T12:00").getTime();
    const problems = (change: object) => problemsOf({ ...EMPTY_DRAFT, quantity: "1", limitPrice: "100", ...change }, INSTRUMENT, now);
    expect(problems({ orderType: OrderType.STOP })).toEqual({ stop_price: "Required" });
    expect(problems({ orderType: OrderType.TAKE_PROFIT, stopPrice: "110", limitPrice: "" })).toEqual({});
    expect(problems({ orderType: OrderType.TAKE_PROFIT, stopPrice: "110", limitPrice: "0.001" })).toEqual({ limit_price: "Must be a multiple of 0.01" });
    expect(problems({ orderType: OrderType.TRAILING_STOP, trail: "1.255" })).toEqual({ trail: "At most two digits after the point" });
    expect(problems({ orderType: OrderType.TRAILING_STOP, trail: "100" })).toEqual({ trail: "Must be below 100" });
    expect(problems({ orderType: OrderType.TRAILING_STOP, trail: "100", trailIn: "amount" })).toEqual({});
    expect(problems({ timeInForce: TimeInForce.GTD })).toEqual({ expire_time: "Required" });
    expect(problems({ timeInForce: TimeInForce.GTD, expireTime: "2027-01-31T12:00" })).toEqual({ expire_time: "Must lie ahead" });
    expect(problems({ timeInForce: TimeInForce.GTD, expireTime: "2027-01-31T12:01" })).toEqual({});
    const bracket = { hasBracket: true, takeProfitPrice: "110", stopLossPrice: "90" };
    expect(problems(bracket)).toEqual({});
    expect(problems({ ...bracket, side: OrderSide.SELL })).toEqual({ take_profit: "Must be below the stop loss" });
  });

  test("shows what a group is refused for at the field of the order it is about", () => {
    const refusal = refusalOf(
      refused(Code.InvalidArgument, "INVALID_FIELDS", {}, [
        { field: "orders[0].quantity.value", description: "must be above zero" },
        { field: "orders[1].limit_price", description: "is off its tick" },
        { field: "orders[2].stop_price", description: "is on the wrong side" },
      ]),
    );
    expect(["quantity", "take_profit", "stop_loss", "limit_price"].map((field) => refusalFor(refusal, field))).toEqual([
      "must be above zero",
      "is off its tick",
      "is on the wrong side",
      undefined,
    ]);
  });

  test("is found again, unanswered, after the page was closed", () => {
    const sent = ticketAfter(composed(), SEND);
    rememberUnanswered(intentOf(sent));
    expect(openTicket(unanswered("a1"))).toMatchObject({ phase: "lost", intent: intentOf(sent) });
    expect(unanswered("someone else's")).toBeUndefined();
    forgetUnanswered();
    expect(unanswered("a1")).toBeUndefined();
  });
});

describe("placing an order", () => {
  const intent: Intent = {
    requestId: "r1",
    accountId: "a1",
    instrumentId: "SIM:BTCUSDT",
    draft: { ...EMPTY_DRAFT, quantity: "1,000.10", limitPrice: ".5" },
  };

  /** A service that places once per request id, and loses its first answers on the way. */
  function service(answersLost: number) {
    const placed = new Set<string>();
    let calls = 0;
    const transport = createRouterTransport(
      ({ service }) =>
        void service(OrderService, {
          placeOrder: ({ requestId }) => {
            calls += 1;
            placed.add(requestId);
            if (calls <= answersLost) throw new ConnectError("cut", Code.Unavailable);
            return { order: { orderId: "o1" } };
          },
        }),
    );
    return { orders: clientsOver(transport).orders, placed, calls: () => calls };
  }

  test("repeats a lost answer with the same id and places one order", async () => {
    const { orders, placed, calls } = service(2);
    const [order] = await place(orders, intent, new AbortController().signal);
    expect(order?.orderId).toBe("o1");
    expect(placed).toEqual(new Set(["r1"]));
    expect(calls()).toBe(ATTEMPTS_MAX);
  });

  test("asks the person after a few lost answers", async () => {
    const { orders, calls } = service(99);
    await expect(place(orders, intent, new AbortController().signal)).rejects.toThrow();
    expect(calls()).toBe(ATTEMPTS_MAX);
  });

  test("sends numbers as text, exactly as typed", () => {
    const request = requestOf(intent);
    expect(request.quantity?.value).toBe("1000.10");
    expect(request.limitPrice?.value).toBe("0.5");
    expect(requestOf({ ...intent, draft: { ...intent.draft, orderType: OrderType.MARKET } }).limitPrice).toBeUndefined();
  });

  test("sends each order type's own fields and no others", () => {
    const typed = { stopPrice: "90", trail: "1.5", limitPrice: "100", expireTime: "2027-01-31T12:00" };
    const of = (change: object) => requestOf({ ...intent, draft: { ...intent.draft, ...typed, ...change } });
    expect(of({ orderType: OrderType.STOP })).toMatchObject({ stopPrice: { value: "90" } });
    expect(of({ orderType: OrderType.STOP }).limitPrice).toBeUndefined();
    expect(of({ orderType: OrderType.STOP_LIMIT })).toMatchObject({ stopPrice: { value: "90" }, limitPrice: { value: "100" } });
    const trailing = of({ orderType: OrderType.TRAILING_STOP });
    expect(trailing.trail?.distance).toMatchObject({ case: "percent", value: { value: "1.5" } });
    expect(trailing.stopPrice).toBeUndefined();
    expect(of({ orderType: OrderType.LIMIT })).toMatchObject({ postOnly: false, reduceOnly: false });
    expect(of({ orderType: OrderType.LIMIT }).expireTime).toBeUndefined();
    const expiring = of({ timeInForce: TimeInForce.GTD });
    expect(timestampDate(expiring.expireTime!)).toEqual(new Date("2027-01-31T12:00"));
  });

  test("of a bracket are an entry and two that leave it, with one id", () => {
    const draft = { ...intent.draft, quantity: "0.5", hasBracket: true, takeProfitPrice: "110", stopLossPrice: "90" };
    const group = groupOf({ ...intent, draft });
    expect(group).toMatchObject({ requestId: "r1", kind: GroupKind.BRACKET });
    expect(group.orders.map(({ requestId, side, orderType, quantity }) => [requestId, side, orderType, quantity?.value])).toEqual([
      ["r1", OrderSide.BUY, OrderType.LIMIT, "0.5"],
      ["r1", OrderSide.SELL, OrderType.LIMIT, "0.5"],
      ["r1", OrderSide.SELL, OrderType.STOP, "0.5"],
    ]);
    expect(group.orders[1]?.limitPrice?.value).toBe("110");
    expect(group.orders[2]?.stopPrice?.value).toBe("90");
  });
});
