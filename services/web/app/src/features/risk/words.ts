import { KillSwitchMode, KillSwitchScope, RiskEventKind, RiskLock, type RiskEvent } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { shown } from "@/lib/decimal";
import { haltText, limitText } from "@/lib/limits";

/** The contract's enums in words for people. */
export const MODES: Record<KillSwitchMode, { label: string; hint: string; color: string }> = {
  [KillSwitchMode.UNSPECIFIED]: { label: "–", hint: "", color: "gray" },
  [KillSwitchMode.OFF]: { label: "Off", hint: "nothing is forbidden", color: "teal" },
  [KillSwitchMode.REDUCE_ONLY]: { label: "Reduce only", hint: "only what makes positions smaller is taken", color: "yellow" },
  [KillSwitchMode.HALT]: { label: "Halt", hint: "no order is taken", color: "red" },
};

export const SCOPES: Record<KillSwitchScope, string> = {
  [KillSwitchScope.UNSPECIFIED]: "–",
  [KillSwitchScope.GLOBAL]: "Everybody",
  [KillSwitchScope.USER]: "All your accounts",
  [KillSwitchScope.ACCOUNT]: "One account",
  [KillSwitchScope.DEPLOYMENT]: "One deployment",
};

export const LOCKS: Record<RiskLock, { label: string; hint: string }> = {
  [RiskLock.UNSPECIFIED]: { label: "–", hint: "" },
  [RiskLock.DAILY_LOSS]: { label: "Locked for the day's loss", hint: "It ends when the account's next day begins, or when you lift it." },
  [RiskLock.DRAWDOWN]: { label: "Locked for its drawdown", hint: "It stays until you lift it." },
};

export const EVENT_KINDS: Record<RiskEventKind, { label: string; color: string }> = {
  [RiskEventKind.UNSPECIFIED]: { label: "–", color: "gray" },
  [RiskEventKind.REFUSED]: { label: "Order refused", color: "orange" },
  [RiskEventKind.LOCKED]: { label: "Locked", color: "red" },
  [RiskEventKind.LIFTED]: { label: "Lock lifted", color: "teal" },
  [RiskEventKind.LIMITS_SET]: { label: "Limits set", color: "indigo" },
  [RiskEventKind.SWITCHED]: { label: "Kill switch set", color: "yellow" },
  [RiskEventKind.MARGIN_WARNED]: { label: "Margin nearly used up", color: "orange" },
  [RiskEventKind.LIQUIDATED]: { label: "Liquidated", color: "red" },
  [RiskEventKind.NOT_ADOPTED]: { label: "Order not adopted", color: "red" },
  [RiskEventKind.POSITION_SET]: { label: "Position as the venue has it", color: "yellow" },
  [RiskEventKind.NOT_SENT]: { label: "Order could not be sent", color: "orange" },
};

/** Such as "value of one order: 12,000 of at most 10,000". */
export function eventText({ kind, limit, value, bound }: RiskEvent): string {
  if (kind === RiskEventKind.LIMITS_SET) return "";
  if (limit.startsWith("margin_ratio/")) {
    const asset = limit.slice("margin_ratio/".length);
    return value === "USED_UP" ? `all margin in ${asset} is used up` : `margin ratio in ${asset}: ${shown(value, 2, 4)}, at 1 all is liquidated`;
  }
  if (kind === RiskEventKind.POSITION_SET) return `the venue holds ${shown(value, 0)}, ${shown(bound, 0)} was known here`;
  if (kind === RiskEventKind.NOT_ADOPTED) return `order ${value} goes on at the venue and is not followed here; cancel it there`;
  if (kind === RiskEventKind.NOT_SENT) return `${value}; it waits here to be tried again`;
  const what = limit.includes("/") ? haltText(limit) : limitText(limit);
  if (kind === RiskEventKind.SWITCHED) return `${what}: ${value.toLowerCase().replace("_", " ")}`;
  if (limit.includes("/") || value === "") return what;
  return `${what}: ${shown(value, 0)}${bound ? ` of at most ${shown(bound, 0)}` : ""}`;
}
