import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { EquityResolution, type EquityPoint } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { secondsOf } from "@/lib/time";

const DAY_SECONDS = 86_400;

/** How far back one looks, and how densely; a year of days and a day of minutes are one page each. */
export const PERIODS = {
  "1D": { seconds: DAY_SECONDS, resolution: EquityResolution.MINUTE },
  "1W": { seconds: 7 * DAY_SECONDS, resolution: EquityResolution.HOUR },
  "1M": { seconds: 31 * DAY_SECONDS, resolution: EquityResolution.HOUR },
  "1Y": { seconds: 366 * DAY_SECONDS, resolution: EquityResolution.DAY },
  All: { seconds: undefined, resolution: EquityResolution.DAY },
} as const;
export type Period = keyof typeof PERIODS;

export function startOf(period: Period, nowMilliseconds: number) {
  const { seconds } = PERIODS[period];
  return seconds === undefined ? undefined : timestampFromMs(nowMilliseconds - seconds * 1000);
}

/** What a chart draws: doubles, for the eye alone. Times rise, as a chart wants it. */
export function drawnOf(points: readonly EquityPoint[]): { time: number; value: number }[] {
  const drawn = new Map<number, number>();
  for (const { time, equity } of points) drawn.set(secondsOf(time), Number(equity?.value ?? "0"));
  return [...drawn].map(([time, value]) => ({ time, value })).sort((left, right) => left.time - right.time);
}
