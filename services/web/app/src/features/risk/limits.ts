import { create } from "@bufbuild/protobuf";
import { RiskLimitsSchema, type RiskLimits } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { problemOf } from "@/features/orders/ticket";
import { placesOf, typed, unitsOf } from "@/lib/decimal";

type Count = "openOrdersMax" | "ordersPerSecondMax" | "dayStartHour";
type Amount =
  | "priceCollarPercent"
  | "orderQuantityMax"
  | "orderNotionalMax"
  | "positionQuantityMax"
  | "positionNotionalMax"
  | "fatFingerPercent"
  | "dailyLossMax"
  | "drawdownPercentMax";
export type LimitField = Count | Amount;

interface Described {
  name: LimitField;
  /** In the contract. */
  field: string;
  label: string;
  hint: string;
  problem(text: string): string | undefined;
}

const PERCENT_PLACES_MAX = 2;

function count(least: number, most: number) {
  return (text: string) => {
    const plain = typed(text);
    if (!/^[0-9]{1,6}$/.test(plain)) return "Not a whole number";
    return Number(plain) < least || Number(plain) > most ? `From ${least} to ${most}` : undefined;
  };
}

function amount(text: string) {
  return problemOf(text, undefined);
}

function percent(most: string) {
  return (text: string) => {
    const found = problemOf(text, undefined);
    if (found) return found;
    if (unitsOf(typed(text))! > unitsOf(most)!) return `At most ${most}`;
    return placesOf(typed(text)) > PERCENT_PLACES_MAX ? "At most two digits after the point" : undefined;
  };
}

/** Every limit of an account, in the order of the form. */
export const LIMIT_FIELDS: readonly Described[] = [
  { name: "orderQuantityMax", field: "order_quantity_max", label: "Quantity of one order", hint: "in units of the base asset", problem: amount },
  { name: "orderNotionalMax", field: "order_notional_max", label: "Value of one order", hint: "in the quote asset, at its worst price", problem: amount },
  { name: "positionQuantityMax", field: "position_quantity_max", label: "Position in one instrument", hint: "with all that is open on one side", problem: amount },
  { name: "positionNotionalMax", field: "position_notional_max", label: "Value of one position", hint: "in the quote asset", problem: amount },
  { name: "fatFingerPercent", field: "fat_finger_percent", label: "One order, percent of the account's worth", hint: "against a finger too fat", problem: percent("9999.99") },
  { name: "priceCollarPercent", field: "price_collar_percent", label: "Limit price, percent beyond the quote", hint: "above the ask, or below the bid", problem: percent("100") },
  { name: "dailyLossMax", field: "daily_loss_max", label: "Loss in a day", hint: "then the account is locked until the next", problem: amount },
  { name: "drawdownPercentMax", field: "drawdown_percent_max", label: "Drawdown, percent of its highest worth", hint: "then it is locked until you lift it", problem: percent("100") },
  { name: "openOrdersMax", field: "open_orders_max", label: "Open orders", hint: "at most 1000", problem: count(1, 1000) },
  { name: "ordersPerSecondMax", field: "orders_per_second_max", label: "Orders a second", hint: "and as many at once", problem: count(1, 1000) },
  { name: "dayStartHour", field: "day_start_hour", label: "Hour at which the day begins", hint: "in UTC", problem: count(0, 23) },
];

const COUNTS = new Set<LimitField>(["openOrdersMax", "ordersPerSecondMax", "dayStartHour"]);

/** As a person types them; what is empty is the usual. */
export type TypedLimits = Record<LimitField, string>;

export function typedOf(limits: RiskLimits | undefined): TypedLimits {
  return Object.fromEntries(
    LIMIT_FIELDS.map(({ name }) => {
      const value = limits?.[name];
      return [name, value === undefined ? "" : typeof value === "number" ? String(value) : value.value];
    }),
  ) as TypedLimits;
}

export function limitsOf(limits: TypedLimits): RiskLimits {
  const set = LIMIT_FIELDS.filter(({ name }) => typed(limits[name]) !== "");
  return create(
    RiskLimitsSchema,
    Object.fromEntries(set.map(({ name }) => [name, COUNTS.has(name) ? Number(typed(limits[name])) : { value: typed(limits[name]) }])),
  );
}

export function problemsOfLimits(limits: TypedLimits): Partial<TypedLimits> {
  const set = LIMIT_FIELDS.filter(({ name }) => typed(limits[name]) !== "");
  const found = set.map(({ name, problem }) => [name, problem(limits[name])] as const);
  return Object.fromEntries(found.filter(([, problem]) => problem !== undefined));
}
