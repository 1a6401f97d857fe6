import { useInfiniteQuery } from "@tanstack/react-query";
import { useEffect } from "react";
import { useApi } from "@/api/clients";
import { useAccountOrders } from "./AccountOrdersProvider";

const ORDERS_PAGE = 50;

/** Brings the account's orders onto the page, newest first, a page at a time. */
export function useOrderList(accountId: string) {
  const { orders } = useApi();
  const { take, stream } = useAccountOrders();
  const query = useInfiniteQuery({
    queryKey: ["orders", accountId],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) => orders.listOrders({ accountId, pageSize: ORDERS_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
    // From here on the stream tells.
    staleTime: Infinity,
  });
  const { data } = query;
  const isLive = stream.phase === "live";
  useEffect(() => {
    for (const page of data?.pages ?? []) take(page.orders);
  }, [data, take, isLive]);
  return query;
}
