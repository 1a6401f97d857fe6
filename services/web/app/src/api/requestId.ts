/**
 * One id for one intent of a person: made when the intent takes shape, kept through every repeat of
 * the call, so that a double click or a lost answer never does the thing twice.
 */
export function newRequestId(): string {
  // Not crypto.randomUUID: that is missing where the page is served by plain HTTP on a network name.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
