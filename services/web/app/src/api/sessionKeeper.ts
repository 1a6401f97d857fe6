import { newRequestId } from "./requestId";

/**
 * The refresh token, and the request id its one exchange carries. Every attempt to exchange this
 * token is the same intent: if the answer is lost, even to a reload of the page, the repeat gets
 * the answer instead of ending the session as a reuse.
 */
export interface Kept {
  refreshToken: string;
  requestId: string;
  sessionId: string;
}

/**
 * Where the refresh token waits between pages: sessionStorage.
 *
 * Not a cookie: the contract hands tokens to its caller, and every call is authorised by a header,
 * so no other site can act in the user's name (CSRF). Not localStorage: that would outlive the
 * browser and be shared by all tabs, and two tabs spending one rotating token end the session. Not
 * memory alone: every reload would ask for the password. A script injected into the page could
 * read it, as it could use the page itself; against that stand the content policy (files of this
 * origin only, nothing inline), and that the token works once and its reuse ends the session.
 * The access token is never stored anywhere.
 */
const KEY = "tradeloom.session";

export function keep(refreshToken: string, sessionId: string): Kept {
  const kept = { refreshToken, sessionId, requestId: newRequestId() };
  sessionStorage.setItem(KEY, JSON.stringify(kept));
  return kept;
}

export function kept(): Kept | undefined {
  try {
    const found = JSON.parse(sessionStorage.getItem(KEY) ?? "null") as Partial<Kept> | null;
    if (found?.refreshToken && found.requestId && found.sessionId) return found as Kept;
  } catch {
    // Not ours; forget it.
  }
  forget();
  return undefined;
}

export function forget(): void {
  sessionStorage.removeItem(KEY);
}

/** The page before a reload may hold the lock a moment longer. */
const CLAIM_WAIT_MILLISECONDS = 1_000;

/**
 * Makes this tab the only one that uses the session. "Duplicate tab" copies sessionStorage, and the
 * copy must not spend the token: it finds the session claimed and asks to sign in by itself.
 */
export async function claim(sessionId: string, until: AbortSignal): Promise<boolean> {
  if (!navigator.locks) return true; // Only where the page is not served from a secure origin.
  const waited = AbortSignal.timeout(CLAIM_WAIT_MILLISECONDS);
  return new Promise((resolve) => {
    navigator.locks
      .request(`tradeloom.session.${sessionId}`, { signal: waited }, () => {
        resolve(true);
        return new Promise<void>((release) => until.addEventListener("abort", () => release(), { once: true }));
      })
      .catch(() => resolve(false));
  });
}
