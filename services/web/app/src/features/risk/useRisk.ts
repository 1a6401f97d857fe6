import { useQuery } from "@tanstack/react-query";
import { useApi } from "@/api/clients";

/** Worth and locks change without anybody here doing something; looked at so often while somebody looks. */
const LOOK_MILLISECONDS = 5_000;

export const SWITCHES_KEY = ["switches"];
export const RISK_EVENTS_KEY = ["riskEvents"];

export function riskKey(accountId: string) {
  return ["risk", accountId];
}

/** The account's limits, and where it stands. */
export function useRisk(accountId: string) {
  const { risk } = useApi();
  return useQuery({
    queryKey: riskKey(accountId),
    queryFn: ({ signal }) => risk.getRiskLimits({ accountId }, { signal }),
    refetchInterval: LOOK_MILLISECONDS,
  });
}

/** The switches that are on: everybody's and the caller's own. */
export function useSwitches() {
  const { risk } = useApi();
  return useQuery({
    queryKey: SWITCHES_KEY,
    queryFn: ({ signal }) => risk.getKillSwitch({}, { signal }),
    refetchInterval: LOOK_MILLISECONDS,
  });
}
