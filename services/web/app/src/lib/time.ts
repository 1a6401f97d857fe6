import { timestampDate, type Timestamp } from "@bufbuild/protobuf/wkt";

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY_AND_CLOCK = new Intl.DateTimeFormat("en-GB", {
  day: "2-digit",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});

const DATE_AND_CLOCK = new Intl.DateTimeFormat("en-GB", {
  day: "2-digit",
  month: "short",
  year: "numeric",
  hour: "2-digit",
  minute: "2-digit",
});
const EXACT_TIME = new Intl.DateTimeFormat("en-GB", {
  day: "2-digit",
  month: "short",
  year: "numeric",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
});
const DATE = new Intl.DateTimeFormat("en-GB", { day: "2-digit", month: "short", year: "numeric" });

/** The reader's own time of day, such as 14:03:59. */
export function clock(time: Timestamp | undefined): string {
  return time ? CLOCK.format(timestampDate(time)) : "–";
}

/** The reader's own time, with milliseconds, to tell events of one order apart. */
export function exactClock(time: Timestamp | undefined): string {
  if (!time) return "–";
  const milliseconds = Math.floor(time.nanos / 1e6).toString().padStart(3, "0");
  return `${CLOCK.format(timestampDate(time))}.${milliseconds}`;
}

export function dayAndClock(time: Timestamp | undefined): string {
  return time ? DAY_AND_CLOCK.format(timestampDate(time)) : "–";
}

/** For what may be long ago, or long to come. */
export function dateAndClock(time: Timestamp | undefined): string {
  return time ? DATE_AND_CLOCK.format(timestampDate(time)) : "–";
}

/** To tell one of many records from the next. */
export function exactTime(time: Timestamp | undefined): string {
  return time ? EXACT_TIME.format(timestampDate(time)) : "–";
}

export function date(time: Timestamp | undefined): string {
  return time ? DATE.format(timestampDate(time)) : "–";
}

/** Whole seconds since 1970, UTC. */
export function secondsOf(time: Timestamp | undefined): number {
  return time ? Number(time.seconds) : 0;
}

const UNITS: readonly (readonly [seconds: number, name: string])[] = [
  [86_400, "day"],
  [3_600, "hour"],
  [60, "minute"],
  [1, "second"],
];

/** How long, by the largest unit that is exact: "5 minutes", "90 seconds", "day" for exactly one. */
export function inBrief(seconds: number): string {
  const [unit, name] = UNITS.find(([length]) => seconds >= length && seconds % length === 0) ?? UNITS.at(-1)!;
  const count = seconds / unit;
  return count === 1 ? name : `${count} ${name}s`;
}
