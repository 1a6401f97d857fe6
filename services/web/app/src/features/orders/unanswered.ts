import { EMPTY_DRAFT, type Intent } from "./ticket";

/**
 * The intent that was sent and not yet answered, kept for the next page of this tab: closing the
 * page in that moment must not leave a person guessing, nor placing the order twice.
 */
const KEY = "tradeloom.unanswered";

export function rememberUnanswered(intent: Intent): void {
  sessionStorage.setItem(KEY, JSON.stringify(intent));
}

export function forgetUnanswered(): void {
  sessionStorage.removeItem(KEY);
}

/** Only for the account it belongs to. */
export function unanswered(accountId: string): Intent | undefined {
  try {
    const intent = JSON.parse(sessionStorage.getItem(KEY) ?? "null") as Intent | null;
    if (intent?.accountId !== accountId || !intent.requestId || !intent.draft) return undefined;
    // An earlier form of this page knew fewer fields.
    return { ...intent, draft: { ...EMPTY_DRAFT, ...intent.draft } };
  } catch {
    return undefined;
  }
}
