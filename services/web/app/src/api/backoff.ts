export const BACKOFF_FIRST_MILLISECONDS = 250;
export const BACKOFF_MAX_MILLISECONDS = 15_000;

/**
 * How long to wait before attempt number `failures` + 1: doubling, bounded, and with half of it at
 * random, so that browsers cut off together do not come back together.
 */
export function backoffMilliseconds(failures: number, random: () => number = Math.random): number {
  const whole = Math.min(BACKOFF_MAX_MILLISECONDS, BACKOFF_FIRST_MILLISECONDS * 2 ** Math.max(0, failures - 1));
  return whole / 2 + (random() * whole) / 2;
}

/** Waits, but not beyond the signal, and no longer than until the machine is online again. */
export function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      window.removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, milliseconds);
    signal.addEventListener("abort", done);
    window.addEventListener("online", done);
  });
}
