import { Code } from "@connectrpc/connect";
import { AuthService } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { screen, waitFor, within } from "@testing-library/react";
import { expect, test, vi } from "vitest";
import { refused, signedInApi, USER } from "@/test/api";
import { show } from "@/test/show";
import { imageOf, inGroups } from "./factor";
import { programOf } from "./program";
import { SecondFactor } from "./SecondFactor";
import { Sessions } from "./Sessions";

test.each([
  ["Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36", "Chrome on Linux"],
  ["Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36 Edg/142.0", "Edge on Windows"],
  ["Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/19.0 Safari/604.1", "Safari on iOS"],
  ["Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox on macOS"],
  ["grpc-python-asyncio/1.85.1 grpc-c/54.0.0 (linux; chttp2)", "grpc-python-asyncio"],
  ["", "Unknown program"],
])("%j is shown as %s", (userAgent, program) => expect(programOf(userAgent)).toBe(program));

test("an SVG becomes an image's address, whatever letters are in it, and a secret is read in groups", () => {
  const svg = "<svg><title>Grüße, 世界</title></svg>";
  const [head, data] = imageOf(svg).split(",");
  expect(head).toBe("data:image/svg+xml;base64");
  expect(new TextDecoder().decode(Uint8Array.from(atob(data!), (letter) => letter.charCodeAt(0)))).toBe(svg);
  expect(inGroups("ABCDEFGHIJ")).toBe("ABCD EFGH IJ");
  expect(inGroups("ABCDEFGH")).toBe("ABCD EFGH");
});

test("who signed in a while ago types the password before a secret is shown", async () => {
  const asked: string[] = [];
  const api = await signedInApi(({ service }) => {
    service(AuthService, {
      setupTotp: ({ password }) => {
        asked.push(password);
        if (password === "") throw refused(Code.PermissionDenied, "PASSWORD_REQUIRED");
        if (password !== "right") throw refused(Code.Unauthenticated, "CREDENTIALS_INVALID");
        return { secret: "ABCDEFGH", qrSvg: "<svg/>" };
      },
    });
  });
  const user = show(api, <SecondFactor />);
  await user.click(screen.getByRole("button", { name: "Set up a second factor" }));
  const field = await screen.findByLabelText(/Password/);
  await user.type(field, "wrong");
  await user.click(screen.getByRole("button", { name: "Go on" }));
  await screen.findByText("This is not your password");
  await user.clear(field);
  await user.type(field, "right");
  await user.click(screen.getByRole("button", { name: "Go on" }));
  expect((await screen.findByTestId("totp-secret")).textContent).toBe("ABCD EFGH");
  expect(asked).toEqual(["", "wrong", "right"]);
});

test("the recovery codes stay until they are kept, although the second factor is on by then", async () => {
  let enabled = false;
  const api = await signedInApi(
    ({ service }) => {
      service(AuthService, {
        setupTotp: () => ({ secret: "ABCDEFGH", qrSvg: "<svg onload='alert(1)'/>" }),
        enableTotp: ({ code }) => {
          if (code !== "123456") throw refused(Code.Unauthenticated, "CODE_INVALID");
          enabled = true;
          return { recoveryCodes: ["aaaaaa-bbbbbb", "cccccc-dddddd"], accessToken: "fresh", expiresIn: 900 };
        },
      });
    },
    { getMe: () => ({ user: { ...USER, totpEnabled: enabled } }) },
  );
  const user = show(api, <SecondFactor />);
  await user.click(screen.getByRole("button", { name: "Set up a second factor" }));
  const image = await screen.findByRole("img");
  expect(image.getAttribute("src")).toMatch(/^data:image\/svg\+xml;base64,/);
  expect(document.querySelector("svg[onload]")).toBeNull();
  expect(screen.getByTestId("totp-secret").textContent).toBe("ABCD EFGH");
  await user.type(screen.getByLabelText(/Six-digit code/), "123456");
  const codes = await screen.findByLabelText("Recovery codes");
  await waitFor(() => expect(screen.getByText("On")).toBeTruthy());
  expect(codes.textContent).toBe("aaaaaa-bbbbbb\ncccccc-dddddd");
  expect(await api.session.token()).toBe("fresh");
  expect(JSON.stringify({ ...localStorage, ...sessionStorage })).not.toContain("aaaaaa");

  const copied = vi.fn(() => Promise.resolve());
  vi.stubGlobal("navigator", { clipboard: { writeText: copied } });
  try {
    await user.click(screen.getByRole("button", { name: "Copy" }));
    expect(copied).toHaveBeenCalledWith("aaaaaa-bbbbbb\ncccccc-dddddd");
  } finally {
    vi.unstubAllGlobals();
  }
  await user.click(screen.getByRole("button", { name: "I have kept them" }));
  await screen.findByRole("button", { name: "New recovery codes" });
  expect(screen.queryByLabelText("Recovery codes")).toBeNull();
});

test("all other sessions are ended, also those on later pages, and this one is not", async () => {
  const ended: string[] = [];
  const all = ["this", "b", "c", "d"];
  const api = await signedInApi(({ service }) => {
    service(AuthService, {
      listSessions: ({ pageToken }) => {
        const start = Number(pageToken || 0);
        const open = all.filter((sessionId) => !ended.includes(sessionId));
        const page = open.slice(start, start + 2).map((sessionId) => ({ sessionId, current: sessionId === "this", userAgent: `${sessionId}/1` }));
        return { sessions: page, nextPageToken: start + 2 < open.length ? String(start + 2) : "" };
      },
      revokeSession: ({ sessionId }) => {
        ended.push(sessionId);
        return {};
      },
    });
  });
  const user = show(api, <Sessions />);
  const list = await screen.findByRole("list", { name: "Sessions" });
  expect(within(list).getByText("This one")).toBeTruthy();
  expect(within(list).getAllByRole("button")).toHaveLength(1);
  await user.click(within(list).getByRole("button", { name: "End the session of b" }));
  await waitFor(() => expect(ended).toEqual(["b"]));
  await user.click(screen.getByRole("button", { name: "End all others" }));
  await user.click(await screen.findByRole("button", { name: "End them" }));
  await waitFor(() => expect(ended).toEqual(["b", "c", "d"]));
  await waitFor(() => expect(screen.queryByRole("button", { name: "End all others" })).toBeNull());
});
