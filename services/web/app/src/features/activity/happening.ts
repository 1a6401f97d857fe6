import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { AuditEvent } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { date } from "@/lib/time";

/** A record in words: what happened, and more about it. */
export interface Happening {
  what: string;
  details: string[];
  /** Whether its owner should look at it twice. */
  isAlarming: boolean;
}

type Detail = Record<string, unknown>;

const text = (value: unknown): string => (typeof value === "string" || typeof value === "number" ? String(value) : "");
const list = (value: unknown): string => (Array.isArray(value) ? value.map(text).join(", ") : "");
const object = (value: unknown): Detail => (typeof value === "object" && value !== null ? (value as Detail) : {});
const day = (value: unknown): string => {
  const time = new Date(text(value));
  return Number.isNaN(time.getTime()) ? "" : date(timestampFromDate(time));
};
/** Enum names and codes of the contract, for people: "ORDER_SIDE_BUY" after "ORDER_SIDE_" is "buy". */
const word = (value: unknown, prefix = ""): string => text(value).replace(prefix, "").toLowerCase().replace(/_/g, " ");

const CAUSES: Record<string, string> = {
  logout: "you signed out",
  revoked: "ended from another session",
  password_changed: "the password was changed",
  password_reset: "the password was set anew by mail",
  suspended: "an administrator suspended you",
  deleted: "you were deleted",
  refresh_reuse: "its token was used in two places",
};

const REFUSALS: Record<string, string> = {
  address_not_allowed: "where it may not be used",
  not_in_force: "it counts no more",
};

const from = (detail: Detail): string[] => (text(detail.address) ? [`from ${text(detail.address)}`] : []);
const byAdmin = (detail: Detail): string[] => (text(detail.admin_user_id) ? ["by an administrator"] : []);

/** By the message's full name; each says what, more, and whether it alarms. */
const KINDS: Record<string, (detail: Detail) => [string, string[], boolean?]> = {
  "tradeloom.auth.v1.UserRegistered": (detail) => ["Registered", [text(detail.email)]],
  "tradeloom.auth.v1.SessionOpened": (detail) => ["Signed in", from(detail)],
  "tradeloom.auth.v1.SessionEnded": (detail) => {
    const cause = text(detail.cause);
    return ["Session ended", [CAUSES[cause] ?? cause], cause === "refresh_reuse"];
  },
  "tradeloom.auth.v1.LoginFailed": (detail) => {
    const count = Number(detail.failure_count ?? 1);
    return [count === 1 ? "Wrong password" : `Wrong password, ${count} times`, from(detail), true];
  },
  "tradeloom.auth.v1.EmailVerified": (detail) => ["E-mail address verified", [text(detail.email)]],
  "tradeloom.auth.v1.PasswordChanged": (detail) => ["Password changed", [text(detail.cause) === "reset" ? "by a link in a mail" : ""]],
  "tradeloom.auth.v1.TotpEnabled": () => ["Second factor enabled", []],
  "tradeloom.auth.v1.TotpDisabled": (detail) => ["Second factor disabled", [text(detail.note), ...byAdmin(detail)], true],
  "tradeloom.auth.v1.SecondFactorFailed": (detail) => ["Wrong code of the second factor", from(detail), true],
  "tradeloom.auth.v1.RecoveryCodesRegenerated": () => ["New recovery codes", []],
  "tradeloom.auth.v1.RecoveryCodeUsed": (detail) => ["Recovery code used", [`${text(detail.left_count) || "0"} left`]],
  "tradeloom.auth.v1.ApiKeyCreated": (detail) => ["API key created", [`${text(detail.prefix)}…`, `may ${text(detail.scope)}`]],
  "tradeloom.auth.v1.ApiKeyRevoked": (detail) => ["API key revoked", [text(detail.cause) === "revoked" ? "" : text(detail.cause)]],
  "tradeloom.auth.v1.ApiKeyUsed": (detail) => ["API key used", from(detail)],
  "tradeloom.auth.v1.ApiKeyRefused": (detail) => {
    const count = Number(detail.refusal_count ?? 1);
    const what = count === 1 ? "API key refused" : `API key refused, ${count} times`;
    return [what, [...from(detail), REFUSALS[text(detail.reason)] ?? text(detail.reason)], true];
  },
  "tradeloom.auth.v1.SigningKeyRotated": () => ["Signing key rotated", []],
  "tradeloom.auth.v1.AuditRecordsRead": (detail) => ["These records read", byAdmin(detail)],
  "tradeloom.auth.v1.RolesChanged": (detail) => [
    "Roles changed",
    [`${list(detail.previous_roles)} → ${list(detail.roles)}`, ...byAdmin(detail)],
  ],
  "tradeloom.auth.v1.UserStateChanged": (detail) => [
    text(detail.state) === "suspended" ? "Suspended" : "Let in again",
    [text(detail.note), ...byAdmin(detail)],
  ],
  "tradeloom.billing.v1.SubscriptionChanged": (detail) => {
    const { plan, plan_in_force } = object(detail.subscription);
    return [`Subscription: ${word(detail.change)}`, [text(plan_in_force) || text(plan), ...byAdmin(detail)]];
  },
  "tradeloom.billing.v1.EntitlementsChanged": (detail) => ["Allowed by the plan", [text(detail.plan)]],
  "tradeloom.billing.v1.InvoicePaid": (detail) => [
    "Invoice paid",
    [text(detail.number), `${text(object(detail.paid_total).value)} ${text(detail.currency)}`],
  ],
  "tradeloom.users.v1.ProfileUpdated": (detail) => ["Profile changed", [list(detail.fields)]],
  "tradeloom.users.v1.PreferencesUpdated": (detail) => ["Preferences changed", [list(detail.fields)]],
  "tradeloom.users.v1.BrokerCredentialPut": (detail) => ["Venue's key kept", [text(detail.venue), text(detail.label)]],
  "tradeloom.users.v1.BrokerCredentialDeleted": (detail) => ["Venue's key deleted", [text(detail.venue)]],
  "tradeloom.users.v1.BrokerCredentialTested": (detail) => [
    "Venue's key tested",
    [text(detail.state), word(detail.problem)],
    text(detail.state) === "refused",
  ],
  "tradeloom.users.v1.BrokerCredentialLeased": (detail) => ["Venue's key handed out", [`to ${text(detail.service)}`, `to ${text(detail.purpose)}`]],
  "tradeloom.users.v1.PersonalDataExported": () => ["Personal data exported", [], true],
  "tradeloom.users.v1.DeletionScheduled": (detail) => ["Deletion asked for", [`not before ${day(detail.purge_time)}`], true],
  "tradeloom.users.v1.DeletionCancelled": () => ["Deletion taken back", []],
  "tradeloom.orders.v1.OrderChanged": (detail) => {
    const event = object(detail.event);
    const order = object(event.order);
    const size = text(object(order.quantity).value);
    return [
      `Order ${word(event.kind, "ORDER_EVENT_KIND_") || "changed"}`,
      [`${word(order.side, "ORDER_SIDE_")} ${size} ${text(order.instrument_id)}`.trim()],
    ];
  },
};

/** A kind that is newer than this page is named by its message: "tradeloom.x.v1.ReportMade" is "Report made". */
export function happeningOf({ kind, detail }: Pick<AuditEvent, "kind" | "detail">): Happening {
  const known = KINDS[kind];
  if (known && detail !== "") {
    const [what, details, isAlarming = false] = known(parsed(detail));
    return { what, details: details.filter((each) => each !== ""), isAlarming };
  }
  const name = kind.slice(kind.lastIndexOf(".") + 1).replace(/(?<=[a-z0-9])[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return { what: name, details: detail === "" ? ["what was personal was deleted"] : [], isAlarming: false };
}

function parsed(detail: string): Detail {
  try {
    return object(JSON.parse(detail));
  } catch {
    return {};
  }
}
