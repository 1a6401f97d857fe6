import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, createRouterTransport } from "@connectrpc/connect";
import { InstrumentSchema } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { OrderService, OrderType, TimeInForce } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { describe, expect, test } from "vitest";
import { clientsOver } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { ATTEMPTS_MAX, place, requestOf } from "./placing";
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
    const order = await place(orders, intent, new AbortController().signal);
    expect(order.orderId).toBe("o1");
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
});
