import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { OrderSide } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { PlaceParentOrderRequestSchema, type ParentOrder, type PlaceParentOrderRequest } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { fieldOf, type Refusal } from "@/api/refusal";
import { problemOf, problemOfTime } from "@/features/orders/ticket";
import { product, shown, textOf, typed, unitsOf } from "@/lib/decimal";
import { inBrief } from "@/lib/time";

export type ParentKind = NonNullable<ParentOrder["schedule"]["case"]>;

export const UNITS = { seconds: 1, minutes: 60, hours: 3_600, days: 86_400 } as const;
export type Unit = keyof typeof UNITS;

/** What the contract takes at most. */
export const SLICES_MAX = 10_000;
const INTERVAL_SECONDS_MAX = 366 * UNITS.days;
const DCA_INTERVAL_SECONDS_MIN = UNITS.minutes;
const SCHEDULE_DAYS_MAX = 3_660;

/** What a person has typed. Times are as a field for date and time has them, by the reader's own clock. */
export interface ParentDraft {
  kind: ParentKind;
  /** A DCA buys, whatever stands here. */
  side: OrderSide;
  /** All of a TWAP or an iceberg. */
  quantity: string;
  displayQuantity: string;
  /** Of a TWAP it may be empty. */
  limitPrice: string;
  /** What a DCA purchases each time is counted in: the quote asset or the base asset. */
  purchaseIn: "amount" | "quantity";
  purchase: string;
  /** Empty: now. */
  startTime: string;
  endTime: string;
  interval: string;
  unit: Unit;
  /** How long a DCA goes on. */
  until: "purchases" | "endTime";
  purchases: string;
}

export const EMPTY_DRAFT: ParentDraft = {
  kind: "twap",
  side: OrderSide.BUY,
  quantity: "",
  displayQuantity: "",
  limitPrice: "",
  purchaseIn: "amount",
  purchase: "",
  startTime: "",
  endTime: "",
  interval: "5",
  unit: "minutes",
  until: "purchases",
  purchases: "",
};

/** The draft after a change. What is usual of one kind of schedule is not of another. */
export function edited(draft: ParentDraft, change: Partial<ParentDraft>): ParentDraft {
  const next = { ...draft, ...change };
  if (next.kind === draft.kind) return next;
  if (next.kind === "dca") return { ...next, side: OrderSide.BUY, interval: "1", unit: "days" };
  return draft.kind === "dca" ? { ...next, interval: EMPTY_DRAFT.interval, unit: EMPTY_DRAFT.unit } : next;
}

/** The fields of each kind as the contract names them, in the order in which they stand. */
const FIELDS = {
  twap: ["quantity", "limit_price", "start_time", "end_time", "interval_seconds"],
  iceberg: ["quantity", "display_quantity", "limit_price"],
  dca: ["amount", "quantity", "interval_seconds", "start_time", "purchases", "end_time"],
} as const;
export type Field = (typeof FIELDS)[ParentKind][number];

/** Those that are to be seen. */
export function fieldsOf({ kind, purchaseIn, until }: ParentDraft): readonly Field[] {
  if (kind !== "dca") return FIELDS[kind];
  const hidden: Field[] = [purchaseIn === "amount" ? "quantity" : "amount", until === "purchases" ? "end_time" : "purchases"];
  return FIELDS.dca.filter((field) => !hidden.includes(field));
}

/** Undefined where it is no whole number above zero. */
export function intervalSecondsOf({ interval, unit }: ParentDraft): number | undefined {
  const count = wholeOf(interval);
  return count === undefined ? undefined : count * UNITS[unit];
}

function wholeOf(text: string): number | undefined {
  const plain = text.trim();
  return /^[1-9][0-9]{0,8}$/.test(plain) ? Number(plain) : undefined;
}

/** What the page can tell is wrong before asking; the service decides about everything again. */
export function problemsOf(draft: ParentDraft, instrument: Instrument, now = Date.now()): Partial<Record<Field, string>> {
  const lot = instrument.lotSize?.value;
  const tick = instrument.tickSize?.value;
  const { kind, until, startTime } = draft;
  const checks: Record<Field, () => string | undefined> = {
    quantity: () => problemOf(kind === "dca" ? draft.purchase : draft.quantity, lot),
    display_quantity: () => problemOf(draft.displayQuantity, lot),
    amount: () => problemOf(draft.purchase, undefined),
    limit_price: () => (kind === "twap" && draft.limitPrice.trim() === "" ? undefined : problemOf(draft.limitPrice, tick)),
    start_time: () => (startTime === "" ? undefined : (problemOfTime(startTime, now) ?? problemOfDistance(startTime, now))),
    end_time: () =>
      problemOfTime(draft.endTime, now) ??
      (startTime !== "" && new Date(draft.endTime) <= new Date(startTime) ? "Must be after the start" : undefined) ??
      problemOfDistance(draft.endTime, now),
    interval_seconds: () => problemOfInterval(draft),
    purchases: () => {
      if (draft.purchases.trim() === "") return "Required";
      const count = wholeOf(draft.purchases);
      return count === undefined || count > SLICES_MAX ? `A whole number from 1 to ${SLICES_MAX}` : undefined;
    },
  };
  const found: Partial<Record<Field, string>> = {};
  for (const field of fieldsOf(draft)) {
    const problem = checks[field]();
    if (problem !== undefined) found[field] = problem;
  }
  if (Object.keys(found).length > 0) return found;

  // Each is right by itself; do they go together?
  const slices = slicesOf(draft, now)!;
  if (slices > SLICES_MAX) {
    const field = kind === "iceberg" ? "display_quantity" : "interval_seconds";
    return { [field]: `Would make ${shown(String(slices), 0)} slices; there are at most ${SLICES_MAX}` };
  }
  const length = intervalSecondsOf(draft)! * slices * 1_000;
  if (kind === "dca" && until === "purchases" && startOf(draft, now) + length > now + SCHEDULE_DAYS_MAX * UNITS.days * 1_000) {
    return { purchases: `Must be over within ${SCHEDULE_DAYS_MAX} days` };
  }
  if (kind === "twap" && lot && unitsOf(lot)! * BigInt(slices) > unitsOf(typed(draft.quantity))!) {
    return { quantity: `Makes slices of less than ${lot}, the smallest quantity that trades` };
  }
  return {};
}

function problemOfDistance(text: string, now: number): string | undefined {
  return new Date(text).getTime() > now + SCHEDULE_DAYS_MAX * UNITS.days * 1_000 ? `Must be within ${SCHEDULE_DAYS_MAX} days` : undefined;
}

function problemOfInterval(draft: ParentDraft): string | undefined {
  const seconds = intervalSecondsOf(draft);
  if (seconds === undefined) return draft.interval.trim() === "" ? "Required" : "A whole number above zero";
  if (draft.kind === "dca" && seconds < DCA_INTERVAL_SECONDS_MIN) return "At least a minute";
  return seconds > INTERVAL_SECONDS_MAX ? "At most 366 days" : undefined;
}

const startOf = ({ startTime }: ParentDraft, now: number) => (startTime === "" ? now : Math.max(now, new Date(startTime).getTime()));

/** How many slices there will be; undefined while a field that decides about it is wrong. */
export function slicesOf(draft: ParentDraft, now = Date.now()): number | undefined {
  if (draft.kind === "iceberg") {
    const [all, each] = [unitsOf(typed(draft.quantity)), unitsOf(typed(draft.displayQuantity))];
    return all && each && all > 0n && each > 0n ? Number((all + each - 1n) / each) : undefined;
  }
  if (draft.kind === "dca" && draft.until === "purchases") return wholeOf(draft.purchases);
  const seconds = intervalSecondsOf(draft);
  const length = new Date(draft.endTime).getTime() - startOf(draft, now);
  return seconds !== undefined && length > 0 ? Math.ceil(length / (seconds * 1_000)) : undefined;
}

/** What would come of it, in a sentence; undefined while something of it is wrong. */
export function planOf(draft: ParentDraft, instrument: Instrument, now = Date.now()): string | undefined {
  if (Object.keys(problemsOf(draft, instrument, now)).length > 0) return undefined;
  const slices = slicesOf(draft, now)!;
  const count = shown(String(slices), 0);
  const { baseAsset, quoteAsset } = instrument;
  const every = `one every ${inBrief(intervalSecondsOf(draft)!)}`;
  const price = draft.limitPrice.trim() === "" ? "at the market's price" : `at ${shown(typed(draft.limitPrice))} or better`;
  switch (draft.kind) {
    case "twap": {
      const share = shown(textOf(unitsOf(typed(draft.quantity))! / BigInt(slices)), 0);
      return slices === 1 ? `One slice ${price}.` : `${count} slices of about ${share} ${baseAsset}, ${every}, each ${price}. What has not traded at the end is left.`;
    }
    case "iceberg":
      return slices === 1
        ? "One order that shows all of it."
        : `${count} orders of ${shown(typed(draft.displayQuantity), 0)} ${baseAsset} or the rest, one after the other, each ${price}.`;
    case "dca": {
      const asset = draft.purchaseIn === "amount" ? quoteAsset : baseAsset;
      const each = typed(draft.purchase);
      const total = product(each, String(slices)) ?? each;
      return `${slices === 1 ? "One purchase" : `${count} purchases`} for ${shown(each, 0)} ${asset}${slices === 1 ? "" : `, ${every}: ${shown(total, 0)} ${asset} in all`}, at the market's price${draft.purchaseIn === "amount" ? ", and the fees" : ""}.`;
    }
  }
}

const timeOf = (text: string) => timestampFromDate(new Date(text));

/** What is asked of the service. The draft has no problems. */
export function requestOf(requestId: string, accountId: string, instrumentId: string, draft: ParentDraft): PlaceParentOrderRequest {
  const quantity = { value: typed(draft.quantity) };
  const price = typed(draft.limitPrice);
  const start = draft.startTime === "" ? {} : { startTime: timeOf(draft.startTime) };
  const intervalSeconds = intervalSecondsOf(draft)!;
  const schedules: Record<ParentKind, () => MessageInitShape<typeof PlaceParentOrderRequestSchema>["schedule"]> = {
    twap: () => ({
      case: "twap",
      value: { quantity, ...(price !== "" && { limitPrice: { value: price } }), ...start, endTime: timeOf(draft.endTime), intervalSeconds },
    }),
    iceberg: () => ({ case: "iceberg", value: { quantity, displayQuantity: { value: typed(draft.displayQuantity) }, limitPrice: { value: price } } }),
    dca: () => ({
      case: "dca",
      value: {
        purchase: { case: draft.purchaseIn, value: { value: typed(draft.purchase) } },
        ...start,
        intervalSeconds,
        until:
          draft.until === "purchases"
            ? { case: "purchases", value: wholeOf(draft.purchases)! }
            : { case: "endTime", value: timeOf(draft.endTime) },
      },
    }),
  };
  const side = draft.kind === "dca" ? OrderSide.BUY : draft.side;
  return create(PlaceParentOrderRequestSchema, { requestId, accountId, instrumentId, side, schedule: schedules[draft.kind]() });
}

/** Which field of this draft a refusal's path, such as "twap.limit_price.value", is about. */
function fieldAt(path: string, draft: ParentDraft): string {
  const field = path.replace(/^(twap|iceberg|dca)[.]/, "").replace(/[.[].*$/, "");
  if (draft.kind === "dca" && (field === "purchase" || field === "quantity")) return draft.purchaseIn;
  return field;
}

/** What the service said about a field, whether as a violation or as a reason of its own. */
export function refusalFor(refusal: Refusal | undefined, field: Field, draft: ParentDraft): string | undefined {
  if (!refusal) return undefined;
  const said = refusal.violations.find((violation) => fieldAt(violation.field, draft) === field)?.description;
  if (said !== undefined) return said;
  const named = fieldOf(refusal);
  return named !== undefined && fieldAt(named, draft) === field ? refusal.message : undefined;
}
