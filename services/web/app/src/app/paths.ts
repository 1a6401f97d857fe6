/** The page's addresses. All lie under /app: the rest of the origin belongs to the REST interface. */
export const PATHS = {
  home: "/app",
  signIn: "/app/sign-in",
  verifyEmail: "/app/verify-email",
  resetPassword: "/app/reset-password",
  trade: "/app/trade",
  orders: "/app/orders",
  parentOrders: "/app/orders/parents",
  portfolio: "/app/portfolio",
  risk: "/app/risk",
  live: "/app/live",
  account: "/app/account",
  security: "/app/account/security",
  apiKeys: "/app/account/api-keys",
  plan: "/app/account/plan",
  activity: "/app/account/activity",
  administration: "/app/administration",
} as const;

export function tradePath(instrumentId: string): string {
  return `${PATHS.trade}/${encodeURIComponent(instrumentId)}`;
}
