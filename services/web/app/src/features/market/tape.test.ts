import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { StreamTicksResponseSchema } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { describe, expect, test } from "vitest";
import { cursorsAfter, NO_TAPE, tapeAfter, TRADES_MAX } from "./tape";

const BTC = "SIM:BTCUSDT";

function message(init: MessageInitShape<typeof StreamTicksResponseSchema>) {
  return create(StreamTicksResponseSchema, init);
}

function batch(firstSequence: number, ...prices: number[]) {
  return {
    instrumentId: BTC,
    firstSequence: BigInt(firstSequence),
    ticks: prices.map((price) => ({ price, quantity: 1 })),
    cursor: `${BTC}@1-${firstSequence + prices.length - 1}`,
  };
}

describe("the tape", () => {
  test("starts with the quote and follows the ticks", () => {
    let tape = tapeAfter(NO_TAPE, message({ acknowledgement: { quotes: [{ instrumentId: BTC, lastPrice: 100 }] } }));
    expect(tape).toMatchObject({ lastPrice: 100, direction: undefined });
    tape = tapeAfter(tape, message({ batches: [batch(1, 101, 102), batch(3, 99)] }));
    expect(tape).toMatchObject({ lastPrice: 99, direction: "down" });
    expect(tape.trades.map(({ sequence, price }) => [Number(sequence), price])).toEqual([
      [3, 99],
      [2, 102],
      [1, 101],
    ]);
  });

  test("is bounded, whatever a batch holds", () => {
    const prices = Array.from({ length: 500 }, (_, n) => n + 1);
    const tape = tapeAfter(NO_TAPE, message({ batches: [batch(1, ...prices)] }));
    expect(tape.trades).toHaveLength(TRADES_MAX);
    expect(tape.trades[0]).toMatchObject({ sequence: 500n, price: 500 });
  });

  test("keeps the book between batches that bring none, and says when ticks were left out", () => {
    let tape = tapeAfter(NO_TAPE, message({ batches: [{ instrumentId: BTC, book: { bids: [{ price: 9, quantity: 1 }] } }] }));
    tape = tapeAfter(tape, message({ batches: [batch(1, 10)] }));
    expect(tape.book?.bids[0]?.price).toBe(9);
    expect(tapeAfter(tape, message({ conflation: { instrumentId: BTC, skippedBatches: 2n } })).hasGap).toBe(true);
  });

  test("shows nothing of what is brought late, and says when something was missed", () => {
    let tape = tapeAfter(NO_TAPE, message({ batches: [batch(1, 10)] }));
    expect(tapeAfter(tape, message({ batches: [{ ...batch(2, 7), backfill: true }] }))).toEqual(tape);
    tape = tapeAfter(tape, message({ batches: [{ ...batch(3, 11), missed: { afterTradeId: "5", beforeTradeId: "9" } }] }));
    expect(tape).toMatchObject({ lastPrice: 11, hasGap: true });
  });

  test("remembers where each instrument stands", () => {
    let cursors = cursorsAfter(undefined, message({ acknowledgement: { cursors: ["SIM:BTCUSDT@1-0", "SIM:ETHUSDT@1-4"] } }));
    cursors = cursorsAfter(cursors, message({ batches: [batch(1, 5, 6)] }));
    cursors = cursorsAfter(cursors, message({ gap: { instrumentId: "SIM:ETHUSDT", resumeCursor: "SIM:ETHUSDT@2-90" } }));
    expect([...cursors!.values()]).toEqual(["SIM:BTCUSDT@1-2", "SIM:ETHUSDT@2-90"]);
  });
});
