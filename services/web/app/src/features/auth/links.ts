import { PATHS } from "@/app/paths";

/** What the link of a mail carried, and the page it is for. */
export interface MailLink {
  path: string;
  token: string;
}

const PAGES: Record<string, string> = { "verify-email": PATHS.verifyEmail, "reset-password": PATHS.resetPassword };

/**
 * Takes what the link of a mail carries, `/#/verify-email/TOKEN`, out of the address and the tab's
 * history before anything could read or keep it; the address becomes that of the link's page.
 */
export function takeLink(location: Pick<Location, "hash">, history: Pick<History, "replaceState">): MailLink | undefined {
  const [, page = "", token = ""] = /^#\/([a-z-]+)(?:\/([^/]*))?$/.exec(location.hash) ?? [];
  const path = PAGES[page];
  if (path === undefined) return undefined;
  history.replaceState(null, "", path);
  return token ? { path, token } : undefined;
}
