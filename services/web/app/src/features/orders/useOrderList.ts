import { useInfiniteQuery, type InfiniteData, type QueryClient } from "@tanstack/react-query";
import type { ListOrdersResponse, Order } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useEffect } from "react";
import { useApi } from "@/api/clients";
import { useAccountOrders } from "./AccountOrdersProvider";
import { NO_FILTER, type OrderFilter } from "./orderFilter";

const ORDERS_PAGE = 50;
/** Whoever looks for still older ones filters them. */
const PAGES_MAX = 40;

/** Brings the account's orders onto the page, newest first, a page at a time. */
export function useOrderList(accountId: string, filter: OrderFilter = NO_FILTER) {
  const { orders } = useApi();
  const { takeAnnotated, stream } = useAccountOrders();
  const query = useInfiniteQuery({
    queryKey: ["orders", accountId, filter],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      orders.listOrders({ ...filter, states: [...filter.states], accountId, pageSize: ORDERS_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page, pages) => (pages.length < PAGES_MAX && page.nextPageToken) || undefined,
    // From here on the stream tells.
    staleTime: Infinity,
  });
  const { data } = query;
  const isLive = stream.phase === "live";
  useEffect(() => {
    for (const page of data?.pages ?? []) takeAnnotated(page.orders);
  }, [data, takeAnnotated, isLive]);
  return query;
}

/** Puts an order that was noted about into the lists that were read before, which would bring the old note back. */
export function putIntoLists(queries: QueryClient, changed: Order): void {
  const put = (orders: Order[]) => orders.map((order) => (order.orderId === changed.orderId ? changed : order));
  queries.setQueriesData<InfiniteData<ListOrdersResponse> | Order[]>({ queryKey: ["orders", changed.accountId] }, (data) => {
    if (!data) return data;
    if (Array.isArray(data)) return put(data);
    return { ...data, pages: data.pages.map((page) => ({ ...page, orders: put(page.orders) })) };
  });
}
