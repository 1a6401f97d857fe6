import { useQuery } from "@tanstack/react-query";
import { useApi } from "@/api/clients";
import { useAccountOrders } from "@/features/orders/AccountOrdersProvider";

/** Prices move without orders; worth is asked for again so often while somebody looks. */
const REVALUE_MILLISECONDS = 5_000;

export function portfolioKey(accountId: string) {
  return ["portfolio", accountId];
}

/** What the account holds, at least as new as the last event seen of it. */
export function usePortfolio(accountId: string) {
  const { portfolio } = useApi();
  const { known } = useAccountOrders();
  return useQuery({
    queryKey: portfolioKey(accountId),
    queryFn: ({ signal }) => portfolio.getPortfolio({ accountId, minRevision: known.revision }, { signal }),
    refetchInterval: REVALUE_MILLISECONDS,
  });
}
