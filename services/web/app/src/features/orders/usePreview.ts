import { fromJsonString, toJsonString } from "@bufbuild/protobuf";
import { useDebouncedValue } from "@mantine/hooks";
import { keepPreviousData, useQuery } from "@tanstack/react-query";
import { PlaceOrderRequestSchema, type PlaceOrderRequest } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useApi } from "@/api/clients";

/** Between the last key and the asking. */
const TYPING_MILLISECONDS = 300;
/** Prices move, and with them what an order would cost; asked again so often while somebody looks. */
const REVALUE_MILLISECONDS = 5_000;
/** How long an answer for what is no longer typed is kept. */
const KEPT_MILLISECONDS = 10_000;

/** What placing it would answer now, as one types: one call at a time, and a newer one gives up the one before. */
export function usePreview(request: PlaceOrderRequest | undefined) {
  const { orders } = useApi();
  const text = request ? toJsonString(PlaceOrderRequestSchema, request) : "";
  const [asked] = useDebouncedValue(text, TYPING_MILLISECONDS);
  const query = useQuery({
    queryKey: ["preview", asked],
    queryFn: ({ signal }) => orders.previewOrder({ order: fromJsonString(PlaceOrderRequestSchema, asked) }, { signal }),
    // Nothing is asked about what has been changed since.
    enabled: text !== "" && asked === text,
    gcTime: KEPT_MILLISECONDS,
    refetchInterval: REVALUE_MILLISECONDS,
    placeholderData: keepPreviousData,
    retry: false,
  });
  return { query, isOutdated: asked !== text || query.isPlaceholderData };
}
