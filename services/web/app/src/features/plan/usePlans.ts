import { useQuery } from "@tanstack/react-query";
import { useApi } from "@/api/clients";

/** More plans than an installation may have. */
const PLANS_SHOWN_MAX = 100;

/** The plans that are offered, all features, and whether plans are paid here. */
export function usePlans() {
  const { billing } = useApi();
  return useQuery({
    queryKey: ["plans"],
    queryFn: ({ signal }) => billing.listPlans({ pageSize: PLANS_SHOWN_MAX }, { signal }),
    staleTime: 60_000,
  });
}
