/** The page's addresses. All lie under /app: the rest of the origin belongs to the REST interface. */
export const PATHS = {
  home: "/app",
  signIn: "/app/sign-in",
  trade: "/app/trade",
  orders: "/app/orders",
  portfolio: "/app/portfolio",
} as const;

export function tradePath(instrumentId: string): string {
  return `${PATHS.trade}/${encodeURIComponent(instrumentId)}`;
}
