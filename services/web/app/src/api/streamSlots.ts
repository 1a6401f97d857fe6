/**
 * Over plain HTTP a browser opens at most six connections to one origin, for all its windows
 * together, and every stream holds one. So many streams at a time leave two for calls: without the
 * bound, two windows full of live data could no longer place an order. Over TLS (HTTP/2) there is no
 * such limit.
 */
export const STREAMS_MAX = 4;

/** Waits for a place among the streams of all windows; the answer gives it back. Undefined: the signal aborted. */
export async function takeSlot(signal: AbortSignal): Promise<(() => void) | undefined> {
  if (window.location.protocol === "https:" || !navigator.locks) return () => {};
  const others = new AbortController();
  const stop = () => others.abort();
  signal.addEventListener("abort", stop);
  return new Promise((resolve) => {
    let isTaken = false;
    const wait = (slot: number) =>
      navigator.locks
        .request(`tradeloom.stream.${slot}`, { signal: others.signal }, () => {
          // Another of the places may have come free in the same moment.
          if (isTaken || signal.aborted) return undefined;
          isTaken = true;
          others.abort();
          return new Promise<void>((release) => resolve(release));
        })
        .catch(() => {});
    void Promise.all(Array.from({ length: STREAMS_MAX }, (_, slot) => wait(slot))).then(() => {
      signal.removeEventListener("abort", stop);
      // Reached with no place taken only when the signal aborted.
      if (!isTaken) resolve(undefined);
    });
  });
}
