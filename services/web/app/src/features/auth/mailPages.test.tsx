import { Code } from "@connectrpc/connect";
import { AuthService, type ResetPasswordRequest, type VerifyEmailRequest } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { screen, waitFor } from "@testing-library/react";
import { expect, test } from "vitest";
import { apiOver, refused, signedInApi, USER } from "@/test/api";
import { show } from "@/test/show";
import { EmailBanner } from "./EmailBanner";
import { ResetPasswordPage } from "./ResetPasswordPage";
import { VerifyEmailPage } from "./VerifyEmailPage";

const PASSWORD = "three looms weave at night";

test("asking for a new password is answered alike, whoever asks", async () => {
  const asked: string[] = [];
  const api = apiOver(() => {}, {
    requestPasswordReset: ({ email }) => {
      asked.push(email);
      return {};
    },
  });
  const user = show(api, <ResetPasswordPage token={undefined} />);
  await user.type(screen.getByLabelText(/E-mail/), " nobody@example.com ");
  await user.click(screen.getByRole("button", { name: "Send the link" }));
  await screen.findByText(/If somebody is registered as/);
  expect(asked).toEqual(["nobody@example.com"]);
});

test("a new password is typed twice alike, is none of the common, and is sent once as one intent", async () => {
  const calls: ResetPasswordRequest[] = [];
  const api = apiOver(() => {}, {
    resetPassword: (request) => {
      calls.push(request);
      if (calls.length === 1) throw refused(Code.InvalidArgument, "PASSWORD_TOO_COMMON");
      return {};
    },
  });
  const user = show(api, <ResetPasswordPage token="token-1" />);
  const first = screen.getByLabelText(/^New password(?!, again)/);
  const again = screen.getByLabelText(/New password, again/);
  await user.type(first, "password1234");
  await user.type(again, "password1235");
  expect(screen.getByText("The two are not the same")).toBeTruthy();
  await user.click(screen.getByRole("button", { name: "Set the password" }));
  expect(calls).toHaveLength(0);

  await user.type(again, "{Backspace}4");
  await user.click(screen.getByRole("button", { name: "Set the password" }));
  await screen.findByText(/among the most common ones/);

  await user.clear(first);
  await user.type(first, PASSWORD);
  await user.clear(again);
  await user.type(again, PASSWORD);
  await user.click(screen.getByRole("button", { name: "Set the password" }));
  await screen.findByText("Your password is set");
  expect(calls[1]).toMatchObject({ token: "token-1", newPassword: PASSWORD });
  expect(calls[1]!.requestId).not.toBe(calls[0]!.requestId);
});

test("a link that does not count any more leads to another one", async () => {
  const api = apiOver(() => {}, {
    resetPassword: () => {
      throw refused(Code.InvalidArgument, "LINK_INVALID", {}, [{ field: "token", description: "is unknown" }]);
    },
  });
  const user = show(api, <ResetPasswordPage token="token-1" />);
  await user.type(screen.getByLabelText(/^New password(?!, again)/), PASSWORD);
  await user.type(screen.getByLabelText(/New password, again/), PASSWORD);
  await user.click(screen.getByRole("button", { name: "Set the password" }));
  await screen.findByText("This link has expired, was used before, or is incomplete.");
  await user.click(screen.getByRole("button", { name: "Ask for another link" }));
  await screen.findByRole("form", { name: "Ask for a new password" });
});

test("opening the link of a mail verifies the address, and whoever is signed in here learns of it", async () => {
  const calls: VerifyEmailRequest[] = [];
  let isVerified = false;
  const tokens = { accessToken: "a", refreshToken: "r", expiresIn: 900, sessionId: "s1" };
  const api = await signedInApi(() => {}, {
    login: () => ({ ...tokens, user: { ...USER, emailVerified: false } }),
    getMe: () => ({ user: { ...USER, emailVerified: isVerified } }),
    verifyEmail: (request) => {
      calls.push(request);
      isVerified = true;
      return { email: USER.email };
    },
  });
  show(api, <VerifyEmailPage token="token-1" />);
  await screen.findByText("Your address is verified");
  await waitFor(() => expect(api.session.snapshot()).toMatchObject({ user: { emailVerified: true } }));
  expect(new Set(calls.map(({ requestId, token }) => `${requestId} ${token}`)).size).toBe(1);
});

test("a verification that fails says why, and one without a token what to do", async () => {
  const api = apiOver(() => {}, {
    verifyEmail: () => {
      throw refused(Code.InvalidArgument, "LINK_INVALID");
    },
  });
  await api.session.restore();
  show(api, <VerifyEmailPage token="token-1" />);
  await screen.findByText("This link has expired, was used before, or is incomplete.");
  show(api, <VerifyEmailPage token={undefined} />);
  await screen.findByText(/Open the link in the mail again/);
});

test("while an address is not verified a banner sends the mail again, and goes when coming back from the mail", async () => {
  let sent = 0;
  let isVerified = false;
  const tokens = { accessToken: "a", refreshToken: "r", expiresIn: 900, sessionId: "s1" };
  const api = await signedInApi(
    ({ service }) => {
      service(AuthService, {
        requestEmailVerification: () => {
          sent += 1;
          if (sent === 1) throw refused(Code.ResourceExhausted, "LOGIN_DELAYED", {}, [], 1);
          return {};
        },
      });
    },
    { login: () => ({ ...tokens, user: { ...USER, emailVerified: false } }), getMe: () => ({ user: { ...USER, emailVerified: isVerified } }) },
  );
  const user = show(api, <EmailBanner />);
  await user.click(screen.getByRole("button", { name: "Send the mail again" }));
  await screen.findByRole("button", { name: "Send the mail again in 1 second" });
  await user.click(await screen.findByRole("button", { name: "Send the mail again" }, { timeout: 3_000 }));
  await screen.findByText(/Sent once more/);
  isVerified = true;
  window.dispatchEvent(new Event("focus"));
  await waitFor(() => expect(screen.queryByText(/Verify your address/)).toBeNull());
});
