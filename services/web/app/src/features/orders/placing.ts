import { create, type MessageInitShape } from "@bufbuild/protobuf";
import type { Client } from "@connectrpc/connect";
import {
  OrderType,
  PlaceOrderRequestSchema,
  type Order,
  type OrderService,
  type PlaceOrderRequest,
} from "@gen/tradeloom/orders/v1/orders_pb.js";
import { backoffMilliseconds, pause } from "@/api/backoff";
import { isOutcomeLost, isTransient, refusalOf } from "@/api/refusal";
import { typed } from "@/lib/decimal";
import type { Intent } from "./ticket";

/** A lost answer is asked for again so many times before a person is asked. */
export const ATTEMPTS_MAX = 3;

export function requestOf({ requestId, accountId, instrumentId, draft }: Intent): PlaceOrderRequest {
  const { side, orderType, timeInForce } = draft;
  const request: MessageInitShape<typeof PlaceOrderRequestSchema> = {
    requestId,
    accountId,
    instrumentId,
    side,
    orderType,
    timeInForce,
    quantity: { value: typed(draft.quantity) },
  };
  if (orderType === OrderType.LIMIT) request.limitPrice = { value: typed(draft.limitPrice) };
  return create(PlaceOrderRequestSchema, request);
}

/** Places the order, repeating the very same request where the answer was lost. */
export async function place(orders: Client<typeof OrderService>, intent: Intent, signal: AbortSignal): Promise<Order> {
  const request = requestOf(intent);
  for (let attempt = 1; ; attempt += 1) {
    try {
      const { order } = await orders.placeOrder(request);
      if (!order) throw new Error("the answer names no order");
      return order;
    } catch (error) {
      const refusal = refusalOf(error);
      const repeatable = isOutcomeLost(refusal) && isTransient(refusal);
      if (!repeatable || attempt >= ATTEMPTS_MAX || signal.aborted) throw error;
      await pause(backoffMilliseconds(attempt), signal);
    }
  }
}
