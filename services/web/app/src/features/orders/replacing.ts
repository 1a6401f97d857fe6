import { create } from "@bufbuild/protobuf";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { OrderState, ReplacementSchema, type Order, type Replacement } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { typed } from "@/lib/decimal";
import { problemOf } from "./ticket";

/** What can be changed of an order, as text. */
export interface Change {
  quantity: string;
  limitPrice: string;
  stopPrice: string;
  trail: string;
}

export type ChangeField = keyof Change;

export const CHANGES: Record<ChangeField, { label: string; field: string }> = {
  quantity: { label: "Quantity, what has traded included", field: "quantity" },
  limitPrice: { label: "Limit price", field: "limit_price" },
  stopPrice: { label: "Stop price", field: "stop_price" },
  trail: { label: "Trails by", field: "trail" },
};

const REPLACEABLE = new Set([OrderState.NEW, OrderState.PARTIALLY_FILLED, OrderState.HELD]);

/** What a parent order has placed goes by its schedule alone. */
export function isReplaceable(order: Order): boolean {
  return REPLACEABLE.has(order.state) && order.parentOrderId === "";
}

/** What the contract takes a change of: an order in a group keeps its quantity, and a stop that was reached is gone. */
export function changeable(order: Order): ChangeField[] {
  const isWaiting = order.triggerTime === undefined;
  const fields: [ChangeField, boolean][] = [
    ["quantity", order.groupId === ""],
    ["limitPrice", order.limitPrice !== undefined],
    ["stopPrice", isWaiting && order.stopPrice !== undefined && order.trail === undefined],
    ["trail", isWaiting && order.trail !== undefined],
  ];
  return fields.filter(([, may]) => may).map(([field]) => field);
}

export function changeOf(order: Order): Change {
  return {
    quantity: order.quantity?.value ?? "",
    limitPrice: order.limitPrice?.value ?? "",
    stopPrice: order.stopPrice?.value ?? "",
    trail: order.trail?.distance.value?.value ?? "",
  };
}

/** What is other than it was; undefined if nothing is. */
export function replacementOf(order: Order, change: Change): Replacement | undefined {
  const before = changeOf(order);
  const changed = new Set(changeable(order).filter((field) => typed(change[field]) !== before[field]));
  if (changed.size === 0) return undefined;
  const of = (field: ChangeField) => ({ value: typed(change[field]) });
  return create(ReplacementSchema, {
    ...(changed.has("quantity") && { quantity: of("quantity") }),
    ...(changed.has("limitPrice") && { limitPrice: of("limitPrice") }),
    ...(changed.has("stopPrice") && { stopPrice: of("stopPrice") }),
    ...(changed.has("trail") && { trail: { distance: { case: order.trail?.distance.case ?? "amount", value: of("trail") } } }),
  });
}

/** What the page can tell is wrong before asking. */
export function problemsOfChange(order: Order, change: Change, instrument: Instrument | undefined): Partial<Record<ChangeField, string>> {
  const tick = instrument?.tickSize?.value;
  const steps: Change = {
    quantity: instrument?.lotSize?.value ?? "",
    limitPrice: tick ?? "",
    stopPrice: tick ?? "",
    trail: order.trail?.distance.case === "amount" ? (tick ?? "") : "",
  };
  const found = changeable(order).map((field) => [field, problemOf(change[field], steps[field] || undefined)] as const);
  return Object.fromEntries(found.filter(([, problem]) => problem !== undefined));
}
