import type { Candle } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { secondsOf } from "@/lib/time";

/** So many bars are kept on the page; the chart does not ask for more history beyond. */
export const BARS_MAX = 20_000;

export const BAR_SIZES = ["1m", "5m", "15m", "1h", "4h", "1d", "1w"] as const;
export type BarSize = (typeof BAR_SIZES)[number];

export interface Bar {
  /** Start of the bar, seconds since 1970, UTC. */
  time: number;
  open: number;
  high: number;
  low: number;
  close: number;
  volume: number;
}

/**
 * Bars in the order of time, each of its newest revision. A change says whether the end of the
 * series moved (the usual, cheap case) or something before it.
 */
export class CandleSeries {
  private bars: Bar[] = [];
  private readonly known = new Map<number, Candle>();

  get all(): readonly Bar[] {
    return this.bars;
  }

  get isFull(): boolean {
    return this.bars.length >= BARS_MAX;
  }

  /** Forgets the bars that open in a span, as some were deleted; what is left of them comes again. */
  forget(start: number, end: number): void {
    for (const time of this.known.keys()) if (time >= start && time < end) this.known.delete(time);
    this.bars = this.bars.filter(({ time }) => time < start || time >= end);
  }

  /** Takes bars that are new or changed, in any order. */
  take(candles: readonly Candle[]): { tail: Bar[] } | "rebuilt" | "unchanged" {
    const newest = this.bars.at(-1)?.time ?? -Infinity;
    const taken = candles.filter((candle) => this.isNews(candle)).sort(byTime);
    if (taken.length === 0) return "unchanged";
    for (const candle of taken) this.known.set(secondsOf(candle.openTime), candle);
    const onlyTail = secondsOf(taken[0]!.openTime) >= newest && newest !== -Infinity;
    if (onlyTail && !this.isFull) {
      const tail = taken.map(barOf);
      if (tail[0]!.time === newest) this.bars.pop();
      this.bars.push(...tail);
      return { tail };
    }
    this.bars = [...this.known.values()].sort(byTime).slice(-BARS_MAX).map(barOf);
    for (const time of this.known.keys()) if (time < this.bars[0]!.time) this.known.delete(time);
    return "rebuilt";
  }

  private isNews(candle: Candle): boolean {
    const present = this.known.get(secondsOf(candle.openTime));
    if (!present) return true;
    if (candle.revision !== present.revision) return candle.revision > present.revision;
    // The forming bar grows without a new revision; a closed one never opens again.
    return candle.closed || !present.closed;
  }
}

function byTime(left: Candle, right: Candle): number {
  return secondsOf(left.openTime) - secondsOf(right.openTime);
}

function barOf(candle: Candle): Bar {
  const { open, high, low, close, volume } = candle;
  return { time: secondsOf(candle.openTime), open, high, low, close, volume };
}
