import { timestampFromDate, type Timestamp } from "@bufbuild/protobuf/wkt";
import { UserState } from "@gen/tradeloom/auth/v1/auth_pb.js";

export const PEOPLE_KEY = ["people"];

export const STATES: Record<UserState, { label: string; color: string }> = {
  [UserState.UNSPECIFIED]: { label: "–", color: "gray" },
  [UserState.ACTIVE]: { label: "Active", color: "teal" },
  [UserState.SUSPENDED]: { label: "Suspended", color: "red" },
  [UserState.PURGED]: { label: "Deleted", color: "gray" },
};

/** The end of a day as a date field has it, "2027-01-31", by the reader's own clock; undefined for none. */
export function endOfDay(day: string): Timestamp | undefined {
  if (day === "") return undefined;
  const end = new Date(`${day}T23:59:59`);
  return Number.isNaN(end.getTime()) ? undefined : timestampFromDate(end);
}
