import { Code, type ServiceImpl } from "@connectrpc/connect";
import { AuthService, type VerifyTotpRequest } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { screen, waitFor } from "@testing-library/react";
import { beforeEach, expect, test, vi } from "vitest";
import { apiOver, refused, USER } from "@/test/api";
import { show } from "@/test/show";
import { SignInPage } from "./SignInPage";

const proofs: VerifyTotpRequest[] = [];

beforeEach(() => {
  proofs.length = 0;
  sessionStorage.clear();
});

/** The page before somebody's auth, who has a second factor. */
async function open(verify: (proof: VerifyTotpRequest, call: number) => void = () => {}, more: Partial<ServiceImpl<typeof AuthService>> = {}) {
  const api = apiOver(() => {}, {
    login: () => ({ challenge: "challenge-1" }),
    verifyTotp: (proof) => {
      proofs.push(proof);
      verify(proof, proofs.length);
      return { accessToken: "a", refreshToken: "r", expiresIn: 900, sessionId: "s1", user: USER, recoveryCodesLeft: 2 };
    },
    ...more,
  });
  await api.session.restore();
  const user = show(api, <SignInPage />);
  const signIn = async () => {
    await user.type(screen.getByLabelText(/E-mail/), USER.email);
    await user.type(screen.getByLabelText(/^Password/), "a long enough password");
    await user.click(screen.getByRole("button", { name: "Sign in" }));
  };
  return { api, user, signIn };
}

test("the sixth digit finishes the second step, and a pasted code need not be plain", async () => {
  const { api, user, signIn } = await open();
  await signIn();
  const field = await screen.findByLabelText(/Six-digit code/);
  expect(field.getAttribute("autocomplete")).toBe("one-time-code");
  expect(field.getAttribute("inputmode")).toBe("numeric");
  await user.click(field);
  await user.paste("123 456");
  await waitFor(() => expect(api.session.snapshot().phase).toBe("signedIn"));
  expect(proofs.map(({ challenge, code }) => [challenge, code])).toEqual([["challenge-1", "123456"]]);
});

test("a wrong code is named, and the next can be typed at once", async () => {
  const { api, user, signIn } = await open((_, call) => {
    if (call === 1) throw refused(Code.Unauthenticated, "CODE_INVALID");
  });
  await signIn();
  await user.type(await screen.findByLabelText(/Six-digit code/), "111111");
  await screen.findByText(/This code is wrong, or was used before/);
  const field = screen.getByLabelText(/Six-digit code/);
  expect(field).toHaveProperty("value", "");
  expect(document.activeElement).toBe(field);
  await user.keyboard("222222");
  await waitFor(() => expect(api.session.snapshot().phase).toBe("signedIn"));
});

test("a recovery code stands in for a lost app, and says how few are left", async () => {
  const { api, user, signIn } = await open();
  await signIn();
  await user.click(await screen.findByRole("button", { name: "Use a recovery code instead" }));
  await user.type(screen.getByLabelText(/Recovery code/), " abcdef-ghijkl-mnopqr-stuvwx ");
  await user.click(screen.getByRole("button", { name: "Sign in" }));
  await screen.findByText("2 recovery codes left");
  expect(proofs[0]).toMatchObject({ code: "", recoveryCode: "abcdef-ghijkl-mnopqr-stuvwx" });
  expect(api.session.snapshot().phase).toBe("signedIn");
});

test("a challenge that is void leads back to the first step, which says why", async () => {
  const { user, signIn } = await open(() => {
    throw refused(Code.Unauthenticated, "CHALLENGE_INVALID");
  });
  await signIn();
  await user.type(await screen.findByLabelText(/Six-digit code/), "111111");
  await screen.findByText(/too many codes were wrong. Sign in again/);
  expect(screen.getByLabelText(/E-mail/)).toHaveProperty("value", USER.email);
  expect(screen.getByLabelText(/^Password/)).toHaveProperty("value", "");
});

test("who must wait is told how long, counted down, and is let in when it is over", async () => {
  vi.useFakeTimers({ shouldAdvanceTime: true });
  try {
    let attempts = 0;
    const { signIn } = await open(undefined, {
      login: () => {
        attempts += 1;
        throw refused(Code.ResourceExhausted, "LOGIN_DELAYED", {}, [], 30);
      },
    });
    await signIn();
    const countdown = await screen.findByTestId("countdown");
    expect(countdown.textContent).toMatch(/Try again in (30|29) seconds/);
    const button = screen.getByRole("button", { name: "Sign in" });
    expect(button).toHaveProperty("disabled", true);
    await vi.advanceTimersByTimeAsync(20_000);
    await waitFor(() => expect(countdown.textContent).toMatch(/Try again in (10|9|8) seconds/));
    await vi.advanceTimersByTimeAsync(12_000);
    await waitFor(() => expect(countdown.textContent).toContain("You can try again now."));
    expect(button).toHaveProperty("disabled", false);
    expect(attempts).toBe(1);
  } finally {
    vi.useRealTimers();
  }
});

test("wrong credentials are not told apart", async () => {
  const { signIn } = await open(undefined, {
    login: () => {
      throw refused(Code.Unauthenticated, "CREDENTIALS_INVALID");
    },
  });
  await signIn();
  await screen.findByText("E-mail and password do not belong together.");
});

test("who has just registered hears of the mail that is on its way", async () => {
  const { user } = await open(undefined, {
    register: () => ({}),
    login: () => ({ accessToken: "a", refreshToken: "r", expiresIn: 900, sessionId: "s1", user: { ...USER, emailVerified: false } }),
  });
  await user.click(screen.getByRole("button", { name: "Register" }));
  await user.type(screen.getByLabelText(/E-mail/), USER.email);
  await user.type(screen.getByLabelText(/^Password/), "a long enough password");
  await user.click(screen.getByRole("button", { name: "Register" }));
  await screen.findByText(/A mail to ada@example.com is on its way/);
});
