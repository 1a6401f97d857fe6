import type { Book, Quote, StreamTicksResponse, Tick } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";

/** So many of the newest trades are shown. */
export const TRADES_MAX = 40;

export interface Trade extends Tick {
  /** The tick's own sequence, to tell trades apart. */
  sequence: bigint;
}

/** The live market of one instrument. */
export interface Tape {
  lastPrice: number | undefined;
  /** Which way the last price moved when it last moved. */
  direction: "up" | "down" | undefined;
  /** Newest first. */
  trades: readonly Trade[];
  book: Book | undefined;
  quote: Quote | undefined;
  /** Whether ticks could not be replayed after a break, or were missed by the feed: the list of trades has a hole. */
  hasGap: boolean;
}

export const NO_TAPE: Tape = {
  lastPrice: undefined,
  direction: undefined,
  trades: [],
  book: undefined,
  quote: undefined,
  hasGap: false,
};

export function tapeAfter(tape: Tape, message: StreamTicksResponse): Tape {
  let next = tape;
  const [quote] = message.acknowledgement?.quotes ?? [];
  if (quote) next = { ...withPrice(next, quote.lastPrice), quote };
  if (message.gap || message.conflation) next = { ...next, hasGap: true };
  for (const batch of message.batches) {
    // What is brought late is of the past.
    if (batch.backfill) continue;
    if (batch.missed) next = { ...next, hasGap: true };
    if (batch.book) next = { ...next, book: batch.book };
    const last = batch.ticks.at(-1);
    if (!last) continue;
    const trades = batch.ticks
      .slice(-TRADES_MAX)
      .map((tick, n, shown) => ({ ...tick, sequence: batch.firstSequence + BigInt(batch.ticks.length - shown.length + n) }))
      .reverse();
    next = { ...withPrice(next, last.price), trades: [...trades, ...next.trades].slice(0, TRADES_MAX) };
  }
  return next;
}

function withPrice(tape: Tape, price: number): Tape {
  if (price <= 0 || price === tape.lastPrice) return tape;
  const direction = tape.lastPrice === undefined ? undefined : price > tape.lastPrice ? "up" : "down";
  return { ...tape, lastPrice: price, direction };
}

/** The cursor of each instrument after a message, for resuming all of them. */
export function cursorsAfter(
  cursors: ReadonlyMap<string, string> | undefined,
  message: StreamTicksResponse,
): ReadonlyMap<string, string> | undefined {
  const news: [string, string][] = message.batches.map((batch) => [batch.instrumentId, batch.cursor]);
  if (message.gap) news.push([message.gap.instrumentId, message.gap.resumeCursor]);
  for (const cursor of [...(message.acknowledgement?.cursors ?? []), ...(message.heartbeat?.cursors ?? [])]) {
    news.push([instrumentOf(cursor), cursor]);
  }
  return news.length === 0 ? cursors : new Map([...(cursors ?? []), ...news]);
}

/** A cursor says whose it is: "SIM:BTCUSDT@7-1042". */
function instrumentOf(cursor: string): string {
  return cursor.slice(0, cursor.lastIndexOf("@"));
}
