import { useQuery, useQueryClient } from "@tanstack/react-query";
import type { GetPortfolioResponse, StreamPortfolioResponse } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { NO_DEADLINE, useApi } from "@/api/clients";
import { useResumingStream } from "@/api/useResumingStream";
import { useAccountOrders } from "@/features/orders/AccountOrdersProvider";

/** Prices move without orders; where no stream tells, worth is asked for again so often while somebody looks. */
const REVALUE_MILLISECONDS = 5_000;

export function portfolioKey(accountId: string) {
  return ["portfolio", accountId];
}

/** What the account holds, at least as new as the last event seen of it. */
export function usePortfolio(accountId: string, isStreamed = false) {
  const { portfolio } = useApi();
  const { known } = useAccountOrders();
  return useQuery({
    queryKey: portfolioKey(accountId),
    queryFn: ({ signal }) => portfolio.getPortfolio({ accountId, minRevision: known.revision }, { signal }),
    refetchInterval: isStreamed ? false : REVALUE_MILLISECONDS,
  });
}

/**
 * The same, told by a stream as it changes. Only where the page has no more than the orders' stream beside it: with ticks
 * and candles one window would take every place among the browser's streams, and the next could follow no orders.
 * While it waits for a place, worth is asked for.
 */
export function useLivePortfolio(accountId: string) {
  const { portfolio } = useApi();
  const queries = useQueryClient();
  const stream = useResumingStream<StreamPortfolioResponse, string>(accountId, () => ({
    open: (cursor, signal) => portfolio.streamPortfolio({ accountId, afterCursor: cursor ?? "" }, { signal, ...NO_DEADLINE }),
    advance: (cursor, message) => message.cursor || cursor,
    heartbeatSeconds: (message) => message.heartbeatSeconds || undefined,
    onMessage: ({ step }) => {
      if (step.case !== "portfolio") return;
      const told = step.value;
      queries.setQueryData<GetPortfolioResponse>(portfolioKey(accountId), (before) =>
        before && before.revision > told.revision ? before : told,
      );
    },
  }));
  return { query: usePortfolio(accountId, stream.phase === "live"), stream };
}
