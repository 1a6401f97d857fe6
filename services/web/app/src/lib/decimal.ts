/**
 * Exact decimals for money and quantity: text on the wire and on the screen, whole units of 10^-18
 * in between. No floating point number ever holds an amount that is traded.
 */

const SCALE = 18;
const ONE = 10n ** BigInt(SCALE);

/** What the contract takes: at most 18 digits before and 18 after the point. */
const PLAIN = /^-?[0-9]{1,18}([.][0-9]{1,18})?$/;

/** The number in units of 10^-18, or undefined for text that is no plain decimal. */
export function unitsOf(text: string): bigint | undefined {
  if (!PLAIN.test(text)) return undefined;
  const negative = text.startsWith("-");
  const [whole = "0", fraction = ""] = text.replace("-", "").split(".");
  const units = BigInt(whole) * ONE + BigInt(fraction.padEnd(SCALE, "0"));
  return negative ? -units : units;
}

/** Plain text without trailing zeros. */
export function textOf(units: bigint): string {
  const sign = units < 0n ? "-" : "";
  const magnitude = units < 0n ? -units : units;
  const fraction = (magnitude % ONE).toString().padStart(SCALE, "0").replace(/0+$/, "");
  return `${sign}${magnitude / ONE}${fraction && `.${fraction}`}`;
}

/** Digits after the point of a step such as "0.010": 2. */
export function placesOf(step: string): number {
  const units = unitsOf(step);
  return units === undefined ? 0 : (textOf(units).split(".")[1]?.length ?? 0);
}

export function isMultiple(text: string, step: string): boolean {
  const units = unitsOf(text);
  const stepUnits = unitsOf(step);
  return units !== undefined && stepUnits !== undefined && stepUnits > 0n && units % stepUnits === 0n;
}

/** The product, cut (not rounded) after 18 digits; undefined if a factor is no decimal. */
export function product(left: string, right: string): string | undefined {
  const leftUnits = unitsOf(left);
  const rightUnits = unitsOf(right);
  if (leftUnits === undefined || rightUnits === undefined) return undefined;
  return textOf((leftUnits * rightUnits) / ONE);
}

/** `text` less that part of itself, such as a fee rate. */
export function less(text: string, rate: string): string {
  const part = unitsOf(product(text, rate) ?? "0") ?? 0n;
  return textOf((unitsOf(text) ?? 0n) - part);
}

/** The largest multiple of `step` that costs at most `money` at `price`, both exact; "0" if there is none. */
export function affordable(money: string, price: string, step: string): string {
  const moneyUnits = unitsOf(money) ?? 0n;
  const priceUnits = unitsOf(price) ?? 0n;
  const stepUnits = unitsOf(step) ?? 0n;
  if (moneyUnits <= 0n || priceUnits <= 0n || stepUnits <= 0n) return "0";
  const units = (moneyUnits * ONE) / priceUnits;
  return textOf(units - (units % stepUnits));
}

/** `text` moved by `count` steps and put on a multiple of the step, never below zero. */
export function stepped(text: string, step: string, count: number): string {
  const stepUnits = unitsOf(step);
  if (stepUnits === undefined || stepUnits <= 0n) return text;
  const units = unitsOf(text || "0") ?? 0n;
  const moved = units - (units % stepUnits) + stepUnits * BigInt(count);
  return textOf(moved < 0n ? 0n : moved);
}

export function signOf(text: string): -1 | 0 | 1 {
  const units = unitsOf(text) ?? 0n;
  return units > 0n ? 1 : units < 0n ? -1 : 0;
}

/**
 * For reading: digits grouped, at least `least` and at most `most` digits after the point, rounded
 * half away from zero. Text that is no decimal is shown as it is.
 */
export function shown(text: string | undefined, least = 2, most = 8): string {
  if (text === undefined || text === "") return "–";
  const units = unitsOf(text);
  if (units === undefined) return text;
  const unit = 10n ** BigInt(SCALE - most);
  const magnitude = units < 0n ? -units : units;
  const rounded = ((magnitude + unit / 2n) / unit) * unit;
  const [whole = "0", fraction = ""] = textOf(rounded).split(".");
  const grouped = whole.replace(/\B(?=(\d{3})+$)/g, ",");
  const padded = fraction.padEnd(least, "0");
  return `${units < 0n && rounded !== 0n ? "-" : ""}${grouped}${padded && `.${padded}`}`;
}

/** Commas that can only group: before a point, or more than one. In "0,25" and "1,000" one may mean a point. */
const GROUPED = /^-?[1-9][0-9]{0,2}((,[0-9]{3})+[.][0-9]*|(,[0-9]{3}){2,})$/;

/** What a person types, as the contract wants it: no blanks, no grouping, ".5" as "0.5", "5." as "5". */
export function typed(text: string): string {
  const ungapped = text.replace(/[\s_]/g, "");
  const bare = GROUPED.test(ungapped) ? ungapped.replaceAll(",", "") : ungapped;
  const whole = bare.startsWith(".") ? `0${bare}` : bare;
  return whole.endsWith(".") ? whole.slice(0, -1) : whole;
}
