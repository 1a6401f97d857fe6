import { Code } from "@connectrpc/connect";
import { AuthService, type CreateApiKeyRequest } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { beforeEach, expect, test } from "vitest";
import { refused, signedInApi } from "@/test/api";

const calls: CreateApiKeyRequest[] = [];
let isFresh = false;

beforeEach(() => {
  calls.length = 0;
  isFresh = false;
});

const opened = () =>
  signedInApi(({ service }) => {
    service(AuthService, {
      createApiKey: (request) => {
        calls.push(request);
        if (!isFresh) throw refused(Code.PermissionDenied, "STEP_UP_REQUIRED");
        return { secret: "tlk_secret" };
      },
    });
  });

test("a call that needs a fresh second factor is asked for once and repeated as the same request", async () => {
  const { auth, stepUp } = await opened();
  const creating = auth.createApiKey({ requestId: "r1", name: "bot" });
  await expect.poll(stepUp.snapshot).toBe(true);
  isFresh = true;
  stepUp.answer(true);
  expect((await creating).secret).toBe("tlk_secret");
  expect(calls.map(({ requestId, name }) => [requestId, name])).toEqual([
    ["r1", "bot"],
    ["r1", "bot"],
  ]);
  expect(stepUp.snapshot()).toBe(false);
});

test("it is refused for good when the person declines, and when it still is not fresh enough", async () => {
  const { auth, stepUp } = await opened();
  for (const answer of [false, true]) {
    calls.length = 0;
    const creating = auth.createApiKey({ name: "bot" });
    const refusal = expect(creating).rejects.toThrow("STEP_UP_REQUIRED");
    await expect.poll(stepUp.snapshot).toBe(true);
    stepUp.answer(answer);
    await refusal;
    expect(calls).toHaveLength(answer ? 2 : 1);
  }
});

test("calls that are refused at the same time share one question", async () => {
  const { auth, stepUp } = await opened();
  const both = Promise.all([auth.createApiKey({ name: "one" }), auth.createApiKey({ name: "two" })]);
  await expect.poll(() => calls.length).toBe(2);
  await expect.poll(stepUp.snapshot).toBe(true);
  isFresh = true;
  stepUp.answer(true);
  await both;
  expect(calls.map(({ name }) => name)).toEqual(["one", "two", "one", "two"]);
});

test("a call that was given up meanwhile is not repeated", async () => {
  const { auth, stepUp } = await opened();
  const leaving = new AbortController();
  const creating = auth.createApiKey({ name: "bot" }, { signal: leaving.signal });
  const refusal = expect(creating).rejects.toThrow();
  await expect.poll(stepUp.snapshot).toBe(true);
  leaving.abort();
  isFresh = true;
  stepUp.answer(true);
  await refusal;
  expect(calls).toHaveLength(1);
});
