import { expect, test, vi } from "vitest";
import { PATHS } from "@/app/paths";
import { takeLink } from "./links";

function opened(hash: string) {
  const replaceState = vi.fn();
  return { link: takeLink({ hash }, { replaceState }), replaceState };
}

test("what a mail's link carries is taken out of the address and its history", () => {
  const { link, replaceState } = opened("#/verify-email/a-Token_1");
  expect(link).toEqual({ path: PATHS.verifyEmail, token: "a-Token_1" });
  expect(replaceState).toHaveBeenCalledExactlyOnceWith(null, "", PATHS.verifyEmail);
});

test("a link without a token leads to its page, too", () => {
  const { link, replaceState } = opened("#/reset-password");
  expect(link).toBeUndefined();
  expect(replaceState).toHaveBeenCalledExactlyOnceWith(null, "", PATHS.resetPassword);
});

test.each(["", "#main", "#/elsewhere/token", "#/verify-email/a/b", "#//evil.example"])("%j is left alone", (hash) => {
  const { link, replaceState } = opened(hash);
  expect(link).toBeUndefined();
  expect(replaceState).not.toHaveBeenCalled();
});
