import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { anyPack, TimestampSchema } from "@bufbuild/protobuf/wkt";
import { create } from "@bufbuild/protobuf";
import { ErrorInfoSchema } from "@gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "@gen/google/rpc/status_pb.js";
import { ErrorReason as ExecutionReason } from "@gen/tradeloom/execution/v1/error_reason_pb.js";
import { ErrorReason } from "@gen/tradeloom/orders/v1/error_reason_pb.js";
import { fieldOf, isInWords, isOutcomeLost, isTransient, refusalOf, refusalOfStatus, violationOf } from "./refusal";
import { refused } from "@/test/api";

describe("a refusal", () => {
  test("names its reason with the numbers the service gave", () => {
    const refusal = refusalOf(
      refused(Code.FailedPrecondition, "INSUFFICIENT_BALANCE", { asset: "USDT", needed: "25000.5", available: "100" }),
    );
    expect(refusal).toMatchObject({ reason: "INSUFFICIENT_BALANCE", domain: "test.tradeloom" });
    expect(refusal.message).toBe("Not enough USDT: the order and its fees need 25,000.50, available are 100.00.");
  });

  test("names every field, also inside messages", () => {
    const refusal = refusalOf(
      refused(Code.InvalidArgument, "INVALID_FIELDS", {}, [
        { field: "quantity.value", description: "must be a plain decimal number" },
        { field: "limit_price", description: "is required for limit orders" },
      ]),
    );
    expect(violationOf(refusal, "quantity")).toBe("must be a plain decimal number");
    expect(violationOf(refusal, "limit_price")).toBe("is required for limit orders");
    expect(violationOf(refusal, "side")).toBeUndefined();
  });

  test.each([
    ["orders", ErrorReason, 20],
    ["execution", ExecutionReason, 5],
  ])("has a sentence for every reason in the catalogue of %s", (_, catalogue, reasonsMin) => {
    const reasons = Object.keys(catalogue).filter((name) => Number.isNaN(Number(name)) && name !== "UNSPECIFIED");
    expect(reasons.length).toBeGreaterThan(reasonsMin);
    expect(reasons.filter((reason) => !isInWords(reason))).toEqual([]);
  });

  test("by a limit names the limit, what it would be and what it may be, and the field that is too much", () => {
    const of = (limit: string) => refusalOf(refused(Code.FailedPrecondition, "RISK_LIMIT_REACHED", { limit, value: "12000", bound: "10000" }));
    expect(of("order_notional_max").message).toBe(
      "Above the account's limit: value of one order would be 12,000, at most 10,000 is allowed.",
    );
    expect(fieldOf(of("order_notional_max"))).toBe("quantity");
    expect(fieldOf(of("price_collar_percent"))).toBe("limit_price");
    expect(fieldOf(of("daily_loss_max"))).toBeUndefined();
  });

  test("is read out of an answer as it is out of an error", () => {
    const info = create(ErrorInfoSchema, { reason: "TRADING_HALTED", domain: "orders.tradeloom", metadata: { limit: "lock/drawdown" } });
    const status = create(StatusSchema, {
      code: Code.FailedPrecondition,
      message: "raw",
      details: [anyPack(TimestampSchema, create(TimestampSchema)), anyPack(ErrorInfoSchema, info)],
    });
    expect(refusalOfStatus(status)).toMatchObject({
      code: Code.FailedPrecondition,
      reason: "TRADING_HALTED",
      message: "Trading is stopped by the account's lock for its drawdown.",
    });
  });

  test("says whether the call may have taken effect all the same", () => {
    expect(isOutcomeLost(refusalOf(new TypeError("Failed to fetch")))).toBe(true);
    expect(isOutcomeLost(refusalOf(new ConnectError("", Code.DeadlineExceeded)))).toBe(true);
    expect(isOutcomeLost(refusalOf(refused(Code.Unavailable, "DEPENDENCY_UNAVAILABLE")))).toBe(true);
    expect(isOutcomeLost(refusalOf(refused(Code.Unavailable, "REVOCATIONS_STALE")))).toBe(false);
    expect(isOutcomeLost(refusalOf(refused(Code.InvalidArgument, "INVALID_FIELDS")))).toBe(false);
    expect(isTransient(refusalOf(new ConnectError("", Code.Unavailable)))).toBe(true);
    expect(isTransient(refusalOf(refused(Code.NotFound, "ORDER_NOT_FOUND")))).toBe(false);
  });

  test("says when to come back, and apart from it what happened", () => {
    const refusal = refusalOf(refused(Code.ResourceExhausted, "LOGIN_DELAYED", {}, [], 40));
    expect(refusal.what).toBe("Too many failed attempts.");
    expect(refusal.message).toBe("Too many failed attempts. Try again in 40 seconds.");
    expect(refusalOf(refused(Code.ResourceExhausted, "LOGIN_DELAYED", {}, [], 840)).message).toContain("in 14 minutes");
    expect(refusalOf(refused(Code.ResourceExhausted, "LOGIN_DELAYED")).message).toContain("in a moment");
  });

  test("says what helps against a full quota and an address that is not verified", () => {
    expect(refusalOf(refused(Code.ResourceExhausted, "QUOTA_EXCEEDED", { quota: "api_keys", limit: "2", used: "2" })).message).toBe(
      "Your plan allows 2 API keys, and all are in use. Free one, or get a larger plan.",
    );
    expect(refusalOf(refused(Code.PermissionDenied, "EMAIL_NOT_VERIFIED")).message).toContain("Open the link in the mail");
  });

  test("finds what is said of one of many", () => {
    const refusal = refusalOf(
      refused(Code.InvalidArgument, "INVALID_FIELDS", {}, [{ field: "allowed_networks[1]", description: "is no network" }]),
    );
    expect(violationOf(refusal, "allowed_networks")).toBe("is no network");
  });
});
