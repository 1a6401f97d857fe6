import { timestampDate, timestampFromDate, type Timestamp } from "@bufbuild/protobuf/wkt";
import type { Violation } from "@/api/refusal";
import { ApiKeyScope, type ApiKey } from "@gen/tradeloom/auth/v1/auth_pb.js";

export const SCOPES: Record<ApiKeyScope, { label: string; hint: string }> = {
  [ApiKeyScope.UNSPECIFIED]: { label: "–", hint: "" },
  [ApiKeyScope.READ]: { label: "Look", hint: "Sees the market, your orders and your portfolio." },
  [ApiKeyScope.TRADE]: { label: "Trade", hint: "Places and cancels orders, too. No key can withdraw money or manage your account." },
};

export type Life = "inForce" | "expired" | "revoked";

export const LIVES: Record<Life, { label: string; color: string }> = {
  inForce: { label: "In force", color: "teal" },
  expired: { label: "Expired", color: "gray" },
  revoked: { label: "Revoked", color: "red" },
};

export function lifeOf({ revokeTime, expireTime }: Pick<ApiKey, "revokeTime" | "expireTime">, now: Date): Life {
  if (revokeTime) return "revoked";
  return expireTime && timestampDate(expireTime) <= now ? "expired" : "inForce";
}

export const NEVER = "never";
/** Days, as a choice among few has them. */
export const EXPIRIES = [
  { value: "30", label: "In 30 days" },
  { value: "90", label: "In 90 days" },
  { value: "365", label: "In a year" },
  { value: NEVER, label: "Never" },
];

export function expireTimeOf(expiry: string, now: Date): Timestamp | undefined {
  return expiry === NEVER ? undefined : timestampFromDate(new Date(now.getTime() + Number(expiry) * 86_400_000));
}

/** Networks as they were typed: one a line, or with commas between them. */
export function networksOf(text: string): string[] {
  return [...new Set(text.split(/[\s,;]+/).filter((network) => network !== ""))];
}

/** What the service says of the networks, beside the one it is about. */
export function networkProblem(violations: readonly Violation[], networks: readonly string[]): string | undefined {
  for (const { field, description } of violations) {
    const found = /^allowed_networks(?:\[(\d+)\])?$/.exec(field);
    if (!found) continue;
    const network = found[1] === undefined ? undefined : networks[Number(found[1])];
    return network === undefined ? description : `“${network}” ${description}`;
  }
  return undefined;
}
