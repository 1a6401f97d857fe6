import { useQuery } from "@tanstack/react-query";
import { useApi } from "@/api/clients";

const FOUND_MAX = 50;
const INSTRUMENTS_FRESH_MILLISECONDS = 60_000;

/** Instruments that the words of `query` find, the best first; all without one. */
export function useInstruments(query: string) {
  const { marketData } = useApi();
  return useQuery({
    queryKey: ["instruments", query],
    queryFn: async ({ signal }) => (await marketData.searchInstruments({ query, pageSize: FOUND_MAX }, { signal })).instruments,
    staleTime: INSTRUMENTS_FRESH_MILLISECONDS,
  });
}

export function useInstrument(instrumentId: string | undefined) {
  const { marketData } = useApi();
  return useQuery({
    queryKey: ["instrument", instrumentId],
    queryFn: async ({ signal }) => {
      const { instrument } = await marketData.getInstrument({ instrumentId: instrumentId! }, { signal });
      if (!instrument) throw new Error("the answer names no instrument");
      return instrument;
    },
    enabled: instrumentId !== undefined,
    staleTime: INSTRUMENTS_FRESH_MILLISECONDS,
  });
}
