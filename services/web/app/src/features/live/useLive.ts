import { create } from "@bufbuild/protobuf";
import { useInfiniteQuery, useQuery } from "@tanstack/react-query";
import { ListExternalOrdersResponseSchema, ListReconciliationsResponseSchema } from "@gen/tradeloom/execution/v1/execution_pb.js";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";

/** Venues and operators change these without anybody here doing something; looked at so often while somebody looks. */
const LOOK_MILLISECONDS = 5_000;
/** A person has twenty at most. */
const CREDENTIALS_PAGE = 100;
const RECONCILIATIONS_PAGE = 10;
const EXTERNAL_PAGE = 50;

export const LIVE_TRADING_KEY = ["liveTrading"];
export const CREDENTIALS_KEY = ["credentials"];
export const UNKNOWN_ORDERS_KEY = ["unknownOrders"];

export function reconciliationsKey(accountId: string) {
  return ["reconciliations", accountId];
}

export function externalOrdersKey(accountId: string) {
  return ["externalOrders", accountId];
}

/** Whether real money is traded here at all. */
export function useLiveTrading(isNeeded = true) {
  const { live } = useApi();
  return useQuery({
    queryKey: LIVE_TRADING_KEY,
    queryFn: async ({ signal }) => {
      const { liveTrading } = await live.getLiveTrading({}, { signal });
      if (!liveTrading) throw new Error("the answer does not say");
      return liveTrading;
    },
    enabled: isNeeded,
    refetchInterval: LOOK_MILLISECONDS,
  });
}

/** The key that carries the account's orders; null if there is none. */
export function useCredential(accountId: string) {
  const { credentials } = useApi();
  return useQuery({
    queryKey: CREDENTIALS_KEY,
    queryFn: async ({ signal }) => (await credentials.listBrokerCredentials({ pageSize: CREDENTIALS_PAGE }, { signal })).credentials,
    select: (found) => found.find((credential) => credential.accountId === accountId) ?? null,
    refetchInterval: LOOK_MILLISECONDS,
  });
}

/** Until an account is first confirmed, execution has not heard of it: then there is nothing. */
async function ifKnown<Page>(ask: () => Promise<Page>, nothing: Page): Promise<Page> {
  try {
    return await ask();
  } catch (error) {
    if (refusalOf(error).reason === "ACCOUNT_NOT_FOUND") return nothing;
    throw error;
  }
}

/** Comparisons of the account with its venue, newest first. */
export function useReconciliations(accountId: string) {
  const { execution } = useApi();
  return useInfiniteQuery({
    queryKey: reconciliationsKey(accountId),
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      ifKnown(
        () => execution.listReconciliations({ accountId, pageSize: RECONCILIATIONS_PAGE, pageToken: pageParam }, { signal }),
        create(ListReconciliationsResponseSchema),
      ),
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: LOOK_MILLISECONDS,
  });
}

/** Orders at the venue that were never sent from here. */
export function useExternalOrders(accountId: string, includeDecided: boolean) {
  const { execution } = useApi();
  return useInfiniteQuery({
    queryKey: [...externalOrdersKey(accountId), includeDecided],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      ifKnown(
        () => execution.listExternalOrders({ accountId, includeDecided, pageSize: EXTERNAL_PAGE, pageToken: pageParam }, { signal }),
        create(ListExternalOrdersResponseSchema),
      ),
    getNextPageParam: (page) => page.nextPageToken || undefined,
    refetchInterval: LOOK_MILLISECONDS,
  });
}
