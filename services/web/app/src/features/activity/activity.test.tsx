import { AuthService } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { screen } from "@testing-library/react";
import { expect, test } from "vitest";
import { signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { ActivityPage } from "./ActivityPage";
import { happeningOf } from "./happening";

const of = (kind: string, detail: object) => happeningOf({ kind: `tradeloom.${kind}`, detail: JSON.stringify(detail) });

test("records read as sentences", () => {
  expect(of("auth.v1.SessionOpened", { session_id: "s", address: "203.0.113.7" })).toEqual({
    what: "Signed in",
    details: ["from 203.0.113.7"],
    isAlarming: false,
  });
  expect(of("auth.v1.LoginFailed", { address: "203.0.113.7", failure_count: 3 })).toMatchObject({
    what: "Wrong password, 3 times",
    isAlarming: true,
  });
  expect(of("auth.v1.SessionEnded", { cause: "refresh_reuse" })).toMatchObject({
    details: ["its token was used in two places"],
    isAlarming: true,
  });
  expect(of("auth.v1.ApiKeyUsed", { address: "203.0.113.7" })).toMatchObject({ what: "API key used", isAlarming: false });
  expect(of("auth.v1.ApiKeyRefused", { address: "203.0.113.7", reason: "address_not_allowed", refusal_count: 3 })).toEqual({
    what: "API key refused, 3 times",
    details: ["from 203.0.113.7", "where it may not be used"],
    isAlarming: true,
  });
  expect(of("auth.v1.AuditRecordsRead", { admin_user_id: "x" }).details).toEqual(["by an administrator"]);
  expect(of("auth.v1.RolesChanged", { previous_roles: ["user"], roles: ["admin", "user"], admin_user_id: "x" }).details).toEqual([
    "user → admin, user",
    "by an administrator",
  ]);
  expect(of("billing.v1.SubscriptionChanged", { change: "payment_failed", subscription: { plan: "pro", plan_in_force: "pro" } })).toMatchObject({
    what: "Subscription: payment failed",
    details: ["pro"],
  });
  expect(of("users.v1.DeletionScheduled", { purge_time: "2027-01-31T12:00:00Z" }).details).toEqual(["not before 31 Jan 2027"]);
  const order = { kind: "ORDER_EVENT_KIND_ACCEPTED", order: { side: "ORDER_SIDE_BUY", quantity: { value: "0.25" }, instrument_id: "SIM:BTCUSDT" } };
  expect(of("orders.v1.OrderChanged", { event: order })).toMatchObject({ what: "Order accepted", details: ["buy 0.25 SIM:BTCUSDT"] });
});

test("a record that is newer than the page, broken, or emptied still says what it can", () => {
  expect(of("reports.v1.ReportMade", {})).toEqual({ what: "Report made", details: [], isAlarming: false });
  expect(happeningOf({ kind: "tradeloom.auth.v1.SessionOpened", detail: "{" }).what).toBe("Signed in");
  expect(happeningOf({ kind: "tradeloom.auth.v1.SessionOpened", detail: "" })).toEqual({
    what: "Session opened",
    details: ["what was personal was deleted"],
    isAlarming: false,
  });
});

test("activity is read newest first, a page at a time", async () => {
  const asked: [boolean, string][] = [];
  const api = await signedInApi(({ service }) => {
    service(AuthService, {
      listOwnAuditEvents: ({ newestFirst, pageToken }) => {
        asked.push([newestFirst, pageToken]);
        const [kind, sequence] = pageToken ? ["UserRegistered", 1n] : ["PasswordChanged", 2n];
        return {
          events: [{ sequence, kind: `tradeloom.auth.v1.${kind}`, detail: "{}", source: "auth" }],
          nextPageToken: pageToken ? "" : "older",
        };
      },
    });
  });
  const user = show(api, <ActivityPage />);
  await screen.findByText("Password changed");
  await user.click(screen.getByRole("button", { name: "Show older records" }));
  await screen.findByText("Registered");
  expect(asked).toEqual([
    [true, ""],
    [true, "older"],
  ]);
});
