import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { ApiKeySchema, ApiKeyScope, AuthService, type ApiKey, type CreateApiKeyRequest } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { PortfolioService } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { screen, waitFor } from "@testing-library/react";
import { expect, test } from "vitest";
import { refused, signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { expireTimeOf, lifeOf, networkProblem, networksOf, NEVER } from "./apiKey";
import { ApiKeysPage } from "./ApiKeysPage";

const NOW = new Date("2026-11-26T12:00:00Z");
const at = (text: string) => timestampFromDate(new Date(text));

test("a key is in force until it is revoked or its time is over", () => {
  expect(lifeOf({ revokeTime: undefined, expireTime: undefined }, NOW)).toBe("inForce");
  expect(lifeOf({ revokeTime: undefined, expireTime: at("2026-11-26T12:00:01Z") }, NOW)).toBe("inForce");
  expect(lifeOf({ revokeTime: undefined, expireTime: at("2026-11-26T12:00:00Z") }, NOW)).toBe("expired");
  expect(lifeOf({ revokeTime: at("2026-11-01T00:00:00Z"), expireTime: at("2026-11-02T00:00:00Z") }, NOW)).toBe("revoked");
});

test("networks are taken one a line or with commas, each once, and a wrong one is named", () => {
  const networks = networksOf(" 203.0.113.0/24\n2001:db8::/48, 203.0.113.0/24;\n\nx ");
  expect(networks).toEqual(["203.0.113.0/24", "2001:db8::/48", "x"]);
  expect(networkProblem([{ field: "allowed_networks[2]", description: "is no network" }], networks)).toBe("“x” is no network");
  expect(networkProblem([{ field: "allowed_networks", description: "too many" }], networks)).toBe("too many");
  expect(networkProblem([{ field: "name", description: "too long" }], networks)).toBeUndefined();
});

test("an expiry is counted in days, or there is none", () => {
  expect(expireTimeOf("30", NOW)).toEqual(at("2026-12-26T12:00:00Z"));
  expect(expireTimeOf(NEVER, NOW)).toBeUndefined();
});

test("a key is made as it was wished for, shown once, listed, and revoked after a question", async () => {
  const calls: CreateApiKeyRequest[] = [];
  const revoked: string[] = [];
  const keys: ApiKey[] = [];
  const api = await signedInApi(({ service }) => {
    service(AuthService, {
      listApiKeys: () => ({ apiKeys: keys }),
      createApiKey: (request) => {
        calls.push(request);
        if (calls.length === 1) throw refused(Code.ResourceExhausted, "QUOTA_EXCEEDED", { quota: "api_keys", limit: "2", used: "2" });
        keys.push(create(ApiKeySchema, { apiKeyId: "k1", name: request.name, prefix: "tlk_01", scope: request.scope }));
        return { apiKey: keys[0]!, secret: "tlk_01_secret" };
      },
      revokeApiKey: ({ apiKeyId }) => {
        revoked.push(apiKeyId);
        keys[0] = create(ApiKeySchema, { ...keys[0]!, revokeTime: timestampFromDate(NOW) });
        return {};
      },
    });
    service(PortfolioService, { listAccounts: () => ({ accounts: [{ accountId: "a1", name: "Paper" }] }) });
  });
  const user = show(api, <ApiKeysPage />);
  await screen.findByText("No API keys yet");
  await user.click(screen.getByRole("button", { name: "Create a key" }));
  await user.type(await screen.findByLabelText(/^Name/), "grid bot");
  await user.click(screen.getByRole("radio", { name: "Trade" }));
  await user.type(screen.getByLabelText("Networks"), "203.0.113.7");
  await user.click(screen.getByRole("button", { name: "Create the key" }));
  await screen.findByText(/Your plan allows 2 API keys, and all are in use/);
  expect(screen.getByRole("link", { name: "See your plan" })).toBeTruthy();
  // Refusals are not recorded, so the same intent may be sent again.
  await user.click(screen.getByRole("button", { name: "Create the key" }));
  await screen.findByText("tlk_01_secret");
  expect(calls[1]).toMatchObject({ name: "grid bot", scope: ApiKeyScope.TRADE, accountIds: [], allowedNetworks: ["203.0.113.7"] });
  expect(calls[1]!.requestId).toBe(calls[0]!.requestId);
  await user.click(screen.getByRole("button", { name: "I have kept it" }));

  await user.click(await screen.findByRole("button", { name: "Revoke grid bot" }));
  expect(revoked).toEqual([]);
  await user.click(await screen.findByRole("button", { name: "Revoke it" }));
  await screen.findByText("Revoked");
  expect(revoked).toEqual(["k1"]);
  await waitFor(() => expect(screen.queryByRole("button", { name: "Revoke grid bot" })).toBeNull());
});
