import type { OrderSide } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { ParentOrderState, type ParentOrder } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { SIDES } from "@/features/orders/words";
import { shown, unitsOf } from "@/lib/decimal";
import { inBrief } from "@/lib/time";
import type { ParentKind } from "./draft";

/** The contract's words for people. */
export const KINDS: Record<ParentKind, { label: string; hint: string }> = {
  twap: { label: "TWAP", hint: "Trades in equal parts over a time." },
  iceberg: { label: "Iceberg", hint: "Rests a part at a time, the next when the one before has traded whole." },
  dca: { label: "DCA", hint: "Buys the same again and again, a fixed time apart." },
};

export const STATES: Record<ParentOrderState, { label: string; color: string }> = {
  [ParentOrderState.UNSPECIFIED]: { label: "–", color: "gray" },
  [ParentOrderState.ACTIVE]: { label: "Under way", color: "indigo" },
  [ParentOrderState.CANCELING]: { label: "Canceling", color: "yellow" },
  [ParentOrderState.CANCELED]: { label: "Canceled", color: "gray" },
  [ParentOrderState.COMPLETED]: { label: "Completed", color: "teal" },
  [ParentOrderState.EXPIRED]: { label: "Expired", color: "gray" },
  [ParentOrderState.FAILED]: { label: "Failed", color: "red" },
};

export const LIVE_STATES = [ParentOrderState.ACTIVE, ParentOrderState.CANCELING];

export function isUnderWay({ state }: Pick<ParentOrder, "state">): boolean {
  return LIVE_STATES.includes(state);
}

const REASONS: Record<string, string> = {
  CHILD_CANCELED: "One of its orders was canceled.",
  CHILD_REJECTED: "The venue rejected one of its orders.",
  CHILD_EXPIRED: "One of its orders expired.",
  UNFILLED: "Its time was over before all of it had traded.",
};

export function reasonText(reason: string): string {
  return REASONS[reason] ?? reason;
}

export function kindOf(parent: ParentOrder): string {
  return parent.schedule.case ? KINDS[parent.schedule.case].label : "–";
}

/** Such as "Buy 2 SIM:BTCUSDT by TWAP" and "Buy SIM:BTCUSDT for 100 by DCA". */
export function titleOf(parent: ParentOrder): string {
  const { schedule, side, instrumentId } = parent;
  const what = SIDES[side as OrderSide];
  if (schedule.case === "dca" && schedule.value.purchase.case === "amount") {
    return `${what} ${instrumentId} for ${shown(schedule.value.purchase.value.value, 0)} by DCA`;
  }
  return `${what} ${quantityOf(parent)} ${instrumentId} by ${kindOf(parent)}`;
}

function quantityOf({ schedule }: ParentOrder): string {
  switch (schedule.case) {
    case "twap":
    case "iceberg":
      return shown(schedule.value.quantity?.value, 0);
    case "dca":
      return schedule.value.purchase.case === "quantity" ? shown(schedule.value.purchase.value.value, 0) : "";
    default:
      return "";
  }
}

/** How far it is: of a TWAP and an iceberg what has traded, of a DCA the purchases that are over. */
export function progressOf(parent: ParentOrder): { percent: number; text: string } {
  const { schedule, slices, sliceNumber } = parent;
  if (schedule.case === "twap" || schedule.case === "iceberg") {
    const filled = parent.filledQuantity?.value ?? "0";
    const [done, all] = [unitsOf(filled) ?? 0n, unitsOf(schedule.value.quantity?.value ?? "") ?? 0n];
    return { percent: all > 0n ? Number((done * 100n) / all) : 0, text: `${shown(filled, 0)} of ${quantityOf(parent)}` };
  }
  return { percent: slices > 0 ? Math.floor((sliceNumber * 100) / slices) : 0, text: `${sliceNumber} of ${slices} purchases` };
}

/** What it was asked to do, name by name. */
export function termsOf(parent: ParentOrder): [string, string][] {
  const { schedule } = parent;
  switch (schedule.case) {
    case "twap":
      return [
        ["Quantity", quantityOf(parent)],
        ["Limit price", schedule.value.limitPrice ? shown(schedule.value.limitPrice.value) : "none: at the market's price"],
        ["One slice every", inBrief(schedule.value.intervalSeconds)],
      ];
    case "iceberg":
      return [
        ["Quantity", quantityOf(parent)],
        ["Shown at a time", shown(schedule.value.displayQuantity?.value, 0)],
        ["Limit price", shown(schedule.value.limitPrice?.value)],
      ];
    case "dca": {
      const { purchase, intervalSeconds } = schedule.value;
      return [
        purchase.case === "amount" ? ["Each for", `${shown(purchase.value.value, 0)} ${parent.feeAsset}`] : ["Each of", quantityOf(parent)],
        ["One purchase every", inBrief(intervalSeconds)],
      ];
    }
    default:
      return [];
  }
}

/** Whether its present slice was refused and is tried again. */
export function isHeldUp({ state, refusal, sliceNumber }: ParentOrder): boolean {
  return state === ParentOrderState.ACTIVE && refusal !== undefined && refusal.sliceNumber > sliceNumber;
}
