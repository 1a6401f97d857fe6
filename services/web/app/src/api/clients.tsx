import { createClient, type Client, type Transport } from "@connectrpc/connect";
import { MarketDataService } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { OrderService, PortfolioService } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { createContext, useContext, useSyncExternalStore, type ReactNode } from "react";
import type { Session, SessionState } from "./session";

/** The services this page speaks to. */
export interface Clients {
  marketData: Client<typeof MarketDataService>;
  orders: Client<typeof OrderService>;
  portfolio: Client<typeof PortfolioService>;
}

export interface Api extends Clients {
  session: Session;
}

export function clientsOver(transport: Transport): Clients {
  return {
    marketData: createClient(MarketDataService, transport),
    orders: createClient(OrderService, transport),
    portfolio: createClient(PortfolioService, transport),
  };
}

/** For streams: they last, whatever the deadline of a call. */
export const NO_DEADLINE = { timeoutMs: 0 } as const;

const ApiContext = createContext<Api | undefined>(undefined);

export function ApiProvider({ api, children }: { api: Api; children: ReactNode }) {
  return <ApiContext value={api}>{children}</ApiContext>;
}

export function useApi(): Api {
  const api = useContext(ApiContext);
  if (!api) throw new Error("useApi needs an ApiProvider");
  return api;
}

export function useSession(): SessionState {
  const { session } = useApi();
  return useSyncExternalStore(session.subscribe, session.snapshot);
}
