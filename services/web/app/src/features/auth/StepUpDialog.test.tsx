import { Code } from "@connectrpc/connect";
import { AuthService, type CreateApiKeyRequest } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { PortfolioService } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { screen, waitFor } from "@testing-library/react";
import { expect, test } from "vitest";
import { PATHS } from "@/app/paths";
import { ApiKeysPage } from "@/features/apiKeys/ApiKeysPage";
import { refused, signedInApi, USER } from "@/test/api";
import { show } from "@/test/show";
import { StepUpDialog } from "./StepUpDialog";

/** The page of API keys of somebody whose second factor is not fresh, or whom it lacks. */
async function open(totpEnabled: boolean) {
  const created: [CreateApiKeyRequest, string | null][] = [];
  const codes: string[] = [];
  const api = await signedInApi(
    ({ service }) => {
      service(AuthService, {
        listApiKeys: () => ({}),
        createApiKey: (request, { requestHeader }) => {
          created.push([request, requestHeader.get("authorization")]);
          if (requestHeader.get("authorization") !== "Bearer fresh") throw refused(Code.PermissionDenied, "STEP_UP_REQUIRED");
          return { secret: "tlk_0123_secret" };
        },
        stepUp: ({ code }) => {
          codes.push(code);
          if (codes.length === 1) throw refused(Code.Unauthenticated, "CODE_INVALID");
          return { accessToken: "fresh", expiresIn: 900 };
        },
      });
      service(PortfolioService, { listAccounts: () => ({}) });
    },
    { login: () => ({ accessToken: "stale", refreshToken: "r", expiresIn: 900, sessionId: "s1", user: { ...USER, totpEnabled } }) },
  );
  const user = show(
    api,
    <>
      <StepUpDialog />
      <ApiKeysPage />
    </>,
    PATHS.apiKeys,
  );
  await screen.findByText("No API keys yet");
  await user.click(screen.getByRole("button", { name: "Create a key" }));
  await user.type(await screen.findByLabelText(/^Name/), "bot");
  await user.click(screen.getByRole("button", { name: "Create the key" }));
  return { api, created, codes, user };
}

test("a refused call goes on by itself, as the same request, once the code is right", async () => {
  const { created, codes, user } = await open(true);
  await user.type(await screen.findByLabelText(/Six-digit code/), "111111");
  await screen.findByText(/This code is wrong/);
  await user.type(screen.getByLabelText(/Six-digit code/), "222222");
  await screen.findByText("tlk_0123_secret");
  expect(codes).toEqual(["111111", "222222"]);
  expect(created.map(([, token]) => token)).toEqual(["Bearer stale", "Bearer fresh"]);
  expect(created[0]![0].requestId).toBe(created[1]![0].requestId);
  await user.click(screen.getByRole("button", { name: "I have kept it" }));
  await waitFor(() => expect(screen.queryByText("tlk_0123_secret")).toBeNull());
});

test("Escape declines, and leaves the form as it was", async () => {
  const { created, user } = await open(true);
  await screen.findByLabelText(/Six-digit code/);
  await user.keyboard("{Escape}");
  await screen.findByText(/This needs a fresh code of your second factor; nothing was changed/);
  await waitFor(() => expect(screen.queryByLabelText(/Six-digit code/)).toBeNull());
  expect(screen.getByLabelText(/^Name/)).toHaveProperty("value", "bot");
  expect(created).toHaveLength(1);
});

test("who has no second factor is told so and led to setting one up", async () => {
  const { created, user } = await open(false);
  await screen.findByText(/You have not set one up yet/);
  await user.click(screen.getByRole("link", { name: "Set it up" }));
  await waitFor(() => expect(screen.getByTestId("place").textContent).toBe(PATHS.security));
  await screen.findByText(/This needs a fresh code of your second factor; nothing was changed/);
  expect(created).toHaveLength(1);
});
