import { createClient, type Client, type Transport } from "@connectrpc/connect";
import { AdminService, AuthService, type User } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { BillingService } from "@gen/tradeloom/billing/v1/billing_pb.js";
import { ExecutionService } from "@gen/tradeloom/execution/v1/execution_pb.js";
import { MarketDataService } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { LiveTradingService } from "@gen/tradeloom/orders/v1/live_pb.js";
import { OrderService, PortfolioService } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { ParentOrderService } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { RiskService } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { BrokerCredentialService, UserService } from "@gen/tradeloom/users/v1/users_pb.js";
import { createContext, useContext, useSyncExternalStore, type ReactNode } from "react";
import type { Session, SessionState } from "./session";
import type { StepUp } from "./stepUp";

/** The services this page speaks to. */
export interface Clients {
  auth: Client<typeof AuthService>;
  admin: Client<typeof AdminService>;
  billing: Client<typeof BillingService>;
  credentials: Client<typeof BrokerCredentialService>;
  execution: Client<typeof ExecutionService>;
  live: Client<typeof LiveTradingService>;
  marketData: Client<typeof MarketDataService>;
  orders: Client<typeof OrderService>;
  parents: Client<typeof ParentOrderService>;
  portfolio: Client<typeof PortfolioService>;
  risk: Client<typeof RiskService>;
  users: Client<typeof UserService>;
}

export interface Api extends Clients {
  session: Session;
  stepUp: StepUp;
}

export function clientsOver(transport: Transport): Clients {
  return {
    auth: createClient(AuthService, transport),
    admin: createClient(AdminService, transport),
    billing: createClient(BillingService, transport),
    credentials: createClient(BrokerCredentialService, transport),
    execution: createClient(ExecutionService, transport),
    live: createClient(LiveTradingService, transport),
    marketData: createClient(MarketDataService, transport),
    orders: createClient(OrderService, transport),
    parents: createClient(ParentOrderService, transport),
    portfolio: createClient(PortfolioService, transport),
    risk: createClient(RiskService, transport),
    users: createClient(UserService, transport),
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

/** Whether the person is asked for a fresh second factor; what asked for it waits meanwhile. */
export function useIsStepUpAsked(): boolean {
  const { stepUp } = useApi();
  return useSyncExternalStore(stepUp.subscribe, stepUp.snapshot);
}

export function isAdministrator(user: User): boolean {
  return user.roles.includes("admin");
}

/** Administrators may do what operators may. */
export function isOperator(user: User): boolean {
  return user.roles.includes("operator") || isAdministrator(user);
}

/** Who is signed in, for pages that nobody else sees. */
export function useUser(): User {
  const state = useSession();
  if (state.phase !== "signedIn") throw new Error("useUser needs somebody who is signed in");
  return state.user;
}
