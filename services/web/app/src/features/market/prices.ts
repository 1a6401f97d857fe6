/** Market data are doubles, shown with the places of the instrument's tick. */
export function priceText(price: number | undefined, places: number): string {
  if (price === undefined || price === 0) return "–";
  return price.toLocaleString("en-US", { minimumFractionDigits: places, maximumFractionDigits: places });
}

export function volumeText(volume: number): string {
  return volume.toLocaleString("en-US", { maximumSignificantDigits: volume >= 1_000 ? 7 : 5 });
}

export function percentText(part: number): string {
  return `${part >= 0 ? "+" : ""}${(part * 100).toFixed(2)}%`;
}
