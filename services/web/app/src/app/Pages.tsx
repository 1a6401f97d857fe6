import { Center, Loader, Stack, Text } from "@mantine/core";
import { lazy, Suspense } from "react";
import { Navigate, Route, Routes, useLocation } from "react-router";
import { useSession } from "@/api/clients";
import { AccountGate } from "@/features/accounts/AccountGate";
import { SignInPage } from "@/features/auth/SignInPage";
import { OrdersPage } from "@/features/orders/OrdersPage";
import { PortfolioPage } from "@/features/portfolio/PortfolioPage";
import { Boundary } from "@/ui/Boundary";
import { Empty, Loading } from "@/ui/states";
import { PATHS } from "./paths";
import { Shell } from "./Shell";

// The chart is a third of the page's weight, and nobody needs it to sign in.
const TradePage = lazy(async () => ({ default: (await import("@/features/trade/TradePage")).TradePage }));

/** Where to go after signing in. */
interface From {
  from?: string;
}

export function Pages() {
  const session = useSession();
  const location = useLocation();

  if (session.phase === "restoring") {
    return (
      <Center h="100%">
        <Stack align="center" gap="xs" role="status">
          <Loader size="sm" />
          <Text c="dimmed" size="sm">
            {session.refusal ? `${session.refusal.message} Trying again …` : "Signing in …"}
          </Text>
        </Stack>
      </Center>
    );
  }

  if (session.phase === "signedOut") {
    return (
      <Routes>
        <Route path={PATHS.signIn} element={<SignInPage {...(session.because && { because: session.because })} />} />
        <Route path="*" element={<Navigate to={PATHS.signIn} replace state={{ from: location.pathname } satisfies From} />} />
      </Routes>
    );
  }

  const { from } = (location.state ?? {}) as From;
  return (
    <AccountGate>
      <Shell user={session.user}>
        <Boundary place={location.pathname}>
          <Suspense fallback={<Loading what="the page" />}>
            <Routes>
              <Route path={`${PATHS.trade}/:instrumentId?`} element={<TradePage />} />
              <Route path={PATHS.orders} element={<OrdersPage />} />
              <Route path={PATHS.portfolio} element={<PortfolioPage />} />
              <Route path={PATHS.signIn} element={<Navigate to={from ?? PATHS.trade} replace />} />
              <Route path="/" element={<Navigate to={PATHS.trade} replace />} />
              <Route path={PATHS.home} element={<Navigate to={PATHS.trade} replace />} />
              <Route path="*" element={<Empty title="There is no such page" />} />
            </Routes>
          </Suspense>
        </Boundary>
      </Shell>
    </AccountGate>
  );
}
