import { create } from "@bufbuild/protobuf";
import { CandleSchema, type Candle } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { describe, expect, test } from "vitest";
import { CandleSeries } from "./candleSeries";

function candle(minute: number, close: number, rest: Partial<{ closed: boolean; revision: bigint }> = {}): Candle {
  return create(CandleSchema, {
    openTime: { seconds: BigInt(minute * 60) },
    open: 1,
    high: 9,
    low: 1,
    close,
    revision: 1n,
    ...rest,
  });
}

describe("a series of candles", () => {
  test("grows at its end without being rebuilt", () => {
    const series = new CandleSeries();
    expect(series.take([candle(1, 5), candle(2, 6)])).toBe("rebuilt");
    expect(series.take([candle(2, 7)])).toMatchObject({ tail: [{ time: 120, close: 7 }] });
    expect(series.take([candle(2, 8, { closed: true }), candle(3, 4)])).toMatchObject({ tail: [{ time: 120 }, { time: 180 }] });
    expect(series.all.map((bar) => bar.close)).toEqual([5, 8, 4]);
  });

  test("takes older history in front", () => {
    const series = new CandleSeries();
    series.take([candle(10, 5)]);
    expect(series.take([candle(8, 1), candle(9, 2)])).toBe("rebuilt");
    expect(series.all.map((bar) => bar.time)).toEqual([480, 540, 600]);
  });

  test("takes a correction and never an older revision", () => {
    const series = new CandleSeries();
    series.take([candle(1, 5, { closed: true }), candle(2, 6)]);
    expect(series.take([candle(1, 4, { closed: true, revision: 2n })])).toBe("rebuilt");
    expect(series.take([candle(1, 5, { closed: true, revision: 1n })])).toBe("unchanged");
    expect(series.all[0]?.close).toBe(4);
  });

  test("does not reopen a closed bar when a late answer brings its forming state", () => {
    const series = new CandleSeries();
    series.take([candle(1, 5, { closed: true })]);
    expect(series.take([candle(1, 3)])).toBe("unchanged");
  });

  test("forgets what was deleted, and takes what is left of it again", () => {
    const series = new CandleSeries();
    const last = candle(4, 8, { closed: true });
    series.take([candle(1, 5, { closed: true, revision: 2n }), candle(2, 6), candle(3, 7), last]);
    series.forget(60, 240);
    expect(series.all.map((bar) => bar.time)).toEqual([240]);
    expect(series.take([candle(1, 3, { closed: true })])).toBe("rebuilt");
    expect(series.all.map((bar) => bar.close)).toEqual([3, 8]);
    series.forget(0, 600);
    expect(series.all).toEqual([]);
  });
});
