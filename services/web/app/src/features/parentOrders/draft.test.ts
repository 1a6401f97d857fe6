import { create } from "@bufbuild/protobuf";
import { timestampDate, timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { InstrumentSchema } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { OrderSide } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { ChildRefusalSchema, ParentOrderSchema, ParentOrderState } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { describe, expect, test } from "vitest";
import { refusalOf } from "@/api/refusal";
import { inBrief } from "@/lib/time";
import { refused } from "@/test/api";
import { edited, EMPTY_DRAFT, fieldsOf, planOf, problemsOf, refusalFor, requestOf, slicesOf, type ParentDraft } from "./draft";
import { isHeldUp, progressOf, termsOf, titleOf } from "./words";

const INSTRUMENT = create(InstrumentSchema, {
  instrumentId: "SIM:BTCUSDT",
  baseAsset: "BTC",
  quoteAsset: "USDT",
  tickSize: { value: "0.01" },
  lotSize: { value: "0.001" },
});
const NOW = new Date("2027-03-01T12:00").getTime();
const TWAP: ParentDraft = { ...EMPTY_DRAFT, quantity: "2", endTime: "2027-03-01T13:00" };
const ICEBERG: ParentDraft = { ...EMPTY_DRAFT, kind: "iceberg", quantity: "2", displayQuantity: "0.3", limitPrice: "100" };
const DCA: ParentDraft = { ...edited(EMPTY_DRAFT, { kind: "dca" }), purchase: "100", purchases: "30" };

const problems = (draft: ParentDraft) => problemsOf(draft, INSTRUMENT, NOW);

describe("a parent order's draft", () => {
  test("is whole with what its kind needs", () => {
    for (const draft of [TWAP, ICEBERG, DCA]) expect(problems(draft)).toEqual({});
    expect(problems({ ...TWAP, quantity: "", endTime: "", interval: "0" })).toEqual({
      quantity: "Required",
      end_time: "Required",
      interval_seconds: "A whole number above zero",
    });
    expect(Object.keys(problems({ ...EMPTY_DRAFT, kind: "iceberg" }))).toEqual(["quantity", "display_quantity", "limit_price"]);
    expect(Object.keys(problems(edited(EMPTY_DRAFT, { kind: "dca" })))).toEqual(["amount", "purchases"]);
  });

  test("keeps to the grid, to time and to what the contract takes", () => {
    expect(problems({ ...TWAP, quantity: "0.0005" })).toEqual({ quantity: "Must be a multiple of 0.001" });
    expect(problems({ ...TWAP, limitPrice: "1.001" })).toEqual({ limit_price: "Must be a multiple of 0.01" });
    expect(problems({ ...TWAP, endTime: "2027-03-01T11:00" })).toEqual({ end_time: "Must lie ahead" });
    expect(problems({ ...TWAP, startTime: "2027-03-01T14:00" })).toEqual({ end_time: "Must be after the start" });
    expect(problems({ ...TWAP, endTime: "2047-03-01T13:00" })).toEqual({ end_time: "Must be within 3660 days" });
    expect(problems({ ...TWAP, interval: "367", unit: "days" })).toEqual({ interval_seconds: "At most 366 days" });
    expect(problems({ ...DCA, interval: "30", unit: "seconds" })).toEqual({ interval_seconds: "At least a minute" });
    expect(problems({ ...DCA, purchases: "10001" })).toEqual({ purchases: "A whole number from 1 to 10000" });
    expect(problems({ ...DCA, purchases: "3661" })).toEqual({ purchases: "Must be over within 3660 days" });
  });

  test("makes no more slices than there may be, and none below a lot", () => {
    expect(problems({ ...ICEBERG, quantity: "2000", displayQuantity: "0.1" })).toEqual({
      display_quantity: "Would make 20,000 slices; there are at most 10000",
    });
    expect(problems({ ...TWAP, quantity: "100", endTime: "2027-03-02T12:00", interval: "1", unit: "seconds" })).toEqual({
      interval_seconds: "Would make 86,400 slices; there are at most 10000",
    });
    expect(problems({ ...TWAP, quantity: "0.011" })).toEqual({ quantity: "Makes slices of less than 0.001, the smallest quantity that trades" });
    expect(problems({ ...TWAP, quantity: "0.012" })).toEqual({});
  });

  test("counts slices as the service does: as many as begin before the end", () => {
    expect(slicesOf(TWAP, NOW)).toBe(12);
    expect(slicesOf({ ...TWAP, endTime: "2027-03-01T13:01" }, NOW)).toBe(13);
    expect(slicesOf({ ...TWAP, startTime: "2027-03-01T11:00" }, NOW)).toBe(12);
    expect(slicesOf(ICEBERG, NOW)).toBe(7);
    expect(slicesOf(DCA, NOW)).toBe(30);
    expect(slicesOf({ ...DCA, until: "endTime", endTime: "2027-03-03T12:00" }, NOW)).toBe(2);
  });

  test("says what would come of it", () => {
    expect(planOf(TWAP, INSTRUMENT, NOW)).toBe(
      "12 slices of about 0.16666667 BTC, one every 5 minutes, each at the market's price. What has not traded at the end is left.",
    );
    expect(planOf(ICEBERG, INSTRUMENT, NOW)).toBe("7 orders of 0.3 BTC or the rest, one after the other, each at 100.00 or better.");
    expect(planOf(DCA, INSTRUMENT, NOW)).toBe("30 purchases for 100 USDT, one every day: 3,000 USDT in all, at the market's price, and the fees.");
    expect(planOf({ ...TWAP, quantity: "" }, INSTRUMENT, NOW)).toBeUndefined();
  });

  test("is sent as it was typed, without what belongs to another kind", () => {
    const draft = { ...TWAP, side: OrderSide.SELL, quantity: "2.50", limitPrice: "99", displayQuantity: "1", purchases: "3" };
    const request = requestOf("r1", "a1", "SIM:BTCUSDT", draft);
    expect(request).toMatchObject({ requestId: "r1", accountId: "a1", instrumentId: "SIM:BTCUSDT", side: OrderSide.SELL });
    expect(request.schedule).toMatchObject({
      case: "twap",
      value: { quantity: { value: "2.50" }, limitPrice: { value: "99" }, intervalSeconds: 300 },
    });
    const twap = request.schedule.case === "twap" ? request.schedule.value : undefined;
    expect(twap!.startTime).toBeUndefined();
    expect(timestampDate(twap!.endTime!)).toEqual(new Date("2027-03-01T13:00"));
    expect(requestOf("r1", "a1", "x", { ...DCA, side: OrderSide.SELL })).toMatchObject({
      side: OrderSide.BUY,
      schedule: { case: "dca", value: { purchase: { case: "amount", value: { value: "100" } }, until: { case: "purchases", value: 30 }, intervalSeconds: 86_400 } },
    });
    expect(requestOf("r1", "a1", "x", ICEBERG).schedule).toMatchObject({
      case: "iceberg",
      value: { displayQuantity: { value: "0.3" }, limitPrice: { value: "100" } },
    });
  });

  test("shows what the service refuses beside its field", () => {
    const of = (field: string, draft: ParentDraft) => {
      const refusal = refusalOf(refused(Code.InvalidArgument, "PARENT_ORDER_INVALID", {}, [{ field, description: "no" }]));
      return fieldsOf(draft).filter((each) => refusalFor(refusal, each, draft) === "no");
    };
    expect(of("twap.end_time", TWAP)).toEqual(["end_time"]);
    expect(of("twap.quantity.value", TWAP)).toEqual(["quantity"]);
    expect(of("iceberg.display_quantity", ICEBERG)).toEqual(["display_quantity"]);
    expect(of("dca.amount", DCA)).toEqual(["amount"]);
    expect(of("dca.quantity", { ...DCA, purchaseIn: "quantity" })).toEqual(["quantity"]);
    const tooSmall = refusalOf(refused(Code.FailedPrecondition, "NOTIONAL_TOO_SMALL", { notional: "1", minimum_notional: "5" }));
    expect(refusalFor(tooSmall, "amount", DCA)).toContain("the least is 5.00");
    expect(refusalFor(tooSmall, "quantity", TWAP)).toContain("the least is 5.00");
  });
});

describe("a parent order reads as what it is", () => {
  const amount = { value: "100" };
  const dca = create(ParentOrderSchema, {
    side: OrderSide.BUY,
    instrumentId: "SIM:BTCUSDT",
    slices: 30,
    sliceNumber: 3,
    feeAsset: "USDT",
    state: ParentOrderState.ACTIVE,
    schedule: { case: "dca", value: { purchase: { case: "amount", value: amount }, intervalSeconds: 86_400, until: { case: "purchases", value: 30 } } },
  });
  const twap = create(ParentOrderSchema, {
    side: OrderSide.SELL,
    instrumentId: "SIM:BTCUSDT",
    slices: 12,
    filledQuantity: { value: "0.5" },
    schedule: { case: "twap", value: { quantity: { value: "2" }, intervalSeconds: 90 } },
  });

  test("in its title, its terms and its progress", () => {
    expect(titleOf(dca)).toBe("Buy SIM:BTCUSDT for 100 by DCA");
    expect(titleOf(twap)).toBe("Sell 2 SIM:BTCUSDT by TWAP");
    expect(progressOf(dca)).toEqual({ percent: 10, text: "3 of 30 purchases" });
    expect(progressOf(twap)).toEqual({ percent: 25, text: "0.5 of 2" });
    expect(termsOf(dca)).toEqual([["Each for", "100 USDT"], ["One purchase every", "day"]]);
    expect(termsOf(twap)).toContainEqual(["One slice every", "90 seconds"]);
    expect([60, 300, 3_600, 5_400, 172_800].map(inBrief)).toEqual(["minute", "5 minutes", "hour", "90 minutes", "2 days"]);
  });

  test("and is held up only while the slice that was refused is still to come", () => {
    const refusal = create(ChildRefusalSchema, { sliceNumber: 4, reason: "TRADING_HALTED", message: "halted", time: timestampFromDate(new Date(NOW)) });
    expect(isHeldUp(create(ParentOrderSchema, { ...dca, refusal }))).toBe(true);
    expect(isHeldUp(create(ParentOrderSchema, { ...dca, sliceNumber: 4, refusal }))).toBe(false);
    expect(isHeldUp(create(ParentOrderSchema, { ...dca, state: ParentOrderState.CANCELED, refusal }))).toBe(false);
  });
});
