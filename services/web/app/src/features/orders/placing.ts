import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { Client } from "@connectrpc/connect";
import {
  GroupKind,
  OrderSide,
  OrderType,
  PlaceOrderGroupRequestSchema,
  PlaceOrderRequestSchema,
  TimeInForce,
  type Order,
  type OrderService,
  type PlaceOrderGroupRequest,
  type PlaceOrderRequest,
} from "@gen/tradeloom/orders/v1/orders_pb.js";
import { untilAnswered } from "@/api/untilAnswered";
import { typed } from "@/lib/decimal";
import { takesLimitPrice, takesStopPrice } from "./allowed";
import type { Intent } from "./ticket";

/** The order itself; of a bracket the entry. */
export function requestOf({ requestId, accountId, instrumentId, draft }: Intent): PlaceOrderRequest {
  const { side, orderType, timeInForce, postOnly, reduceOnly } = draft;
  const request: MessageInitShape<typeof PlaceOrderRequestSchema> = {
    requestId,
    accountId,
    instrumentId,
    side,
    orderType,
    timeInForce,
    quantity: { value: typed(draft.quantity) },
    postOnly,
    reduceOnly,
  };
  const limitPrice = typed(draft.limitPrice);
  if (takesLimitPrice(orderType) && limitPrice !== "") request.limitPrice = { value: limitPrice };
  if (takesStopPrice(orderType)) request.stopPrice = { value: typed(draft.stopPrice) };
  if (orderType === OrderType.TRAILING_STOP) {
    request.trail = { distance: { case: draft.trailIn, value: { value: typed(draft.trail) } } };
  }
  if (timeInForce === TimeInForce.GTD) request.expireTime = timestampFromDate(new Date(draft.expireTime));
  return create(PlaceOrderRequestSchema, request);
}

/** The entry, and two orders that leave what it has traded: whichever trades cancels the other. */
export function groupOf(intent: Intent): PlaceOrderGroupRequest {
  const { requestId, accountId, instrumentId, draft } = intent;
  const leaving = {
    requestId,
    accountId,
    instrumentId,
    side: draft.side === OrderSide.BUY ? OrderSide.SELL : OrderSide.BUY,
    timeInForce: TimeInForce.GTC,
    quantity: { value: typed(draft.quantity) },
  };
  return create(PlaceOrderGroupRequestSchema, {
    requestId,
    kind: GroupKind.BRACKET,
    orders: [
      requestOf(intent),
      { ...leaving, orderType: OrderType.LIMIT, limitPrice: { value: typed(draft.takeProfitPrice) } },
      { ...leaving, orderType: OrderType.STOP, stopPrice: { value: typed(draft.stopLossPrice) } },
    ],
  });
}

/** Places what is meant, repeating the very same request where the answer was lost. */
export async function place(orders: Client<typeof OrderService>, intent: Intent, signal: AbortSignal): Promise<Order[]> {
  const placed = await untilAnswered(asking(orders, intent), signal);
  if (placed.length === 0) throw new Error("the answer names no order");
  return placed;
}

function asking(orders: Client<typeof OrderService>, intent: Intent): () => Promise<Order[]> {
  if (intent.draft.hasBracket) {
    const group = groupOf(intent);
    return async () => (await orders.placeOrderGroup(group)).orders;
  }
  const request = requestOf(intent);
  return async () => {
    const { order } = await orders.placeOrder(request);
    return order ? [order] : [];
  };
}
