import { backoffMilliseconds, pause } from "./backoff";
import { isOutcomeLost, isTransient, refusalOf } from "./refusal";

/** A lost answer is asked for again so many times before a person is asked. */
export const ATTEMPTS_MAX = 3;

/** Asks again where the answer was lost; `ask` sends the very same request each time. */
export async function untilAnswered<Answer>(ask: () => Promise<Answer>, signal: AbortSignal): Promise<Answer> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await ask();
    } catch (error) {
      const refusal = refusalOf(error);
      const repeatable = isOutcomeLost(refusal) && isTransient(refusal);
      if (!repeatable || attempt >= ATTEMPTS_MAX || signal.aborted) throw error;
      await pause(backoffMilliseconds(attempt), signal);
    }
  }
}
