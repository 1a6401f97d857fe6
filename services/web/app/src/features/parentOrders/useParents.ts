import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import type { ParentOrderState } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { useApi } from "@/api/clients";
import { isUnderWay, LIVE_STATES } from "./words";

const PARENTS_PAGE = 50;
const CHILDREN_PAGE = 50;
/** Orders tell of what their children do at once; of slices that pass without one nobody tells. */
const LOOK_MILLISECONDS = 5_000;

export function parentsKey(accountId: string) {
  return ["parents", accountId];
}

/** The account's parent orders, newest first, a page at a time. */
export function useParents(accountId: string, states: readonly ParentOrderState[]) {
  const { parents } = useApi();
  return useInfiniteQuery({
    queryKey: [...parentsKey(accountId), "list", states],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      parents.listParentOrders({ accountId, states: [...states], pageSize: PARENTS_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: ({ state }) => {
      const isMoving = state.data?.pages.some((page) => page.parentOrders.some(isUnderWay));
      return isMoving ? LOOK_MILLISECONDS : false;
    },
  });
}

/** Those that are under way, the newest fifty of them. */
export function useParentsUnderWay(accountId: string) {
  return useParents(accountId, LIVE_STATES);
}

/** One of them, with what it has skipped. */
export function useParent(accountId: string, parentOrderId: string) {
  const { parents } = useApi();
  return useQuery({
    queryKey: [...parentsKey(accountId), "one", parentOrderId],
    queryFn: ({ signal }) => parents.getParentOrder({ parentOrderId }, { signal }),
    refetchInterval: ({ state }) => (state.data?.parentOrder && isUnderWay(state.data.parentOrder) ? LOOK_MILLISECONDS : false),
  });
}

/** Its child orders, newest first. */
export function useChildren(accountId: string, parentOrderId: string) {
  const { orders } = useApi();
  return useInfiniteQuery({
    queryKey: [...parentsKey(accountId), "children", parentOrderId],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      orders.listOrders({ accountId, parentOrderId, pageSize: CHILDREN_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
}
