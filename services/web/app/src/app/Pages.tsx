import { Center, Loader, Stack, Text } from "@mantine/core";
import { lazy, Suspense } from "react";
import { Navigate, Route, Routes, useLocation } from "react-router";
import { isOperator, useSession } from "@/api/clients";
import { AccountGate } from "@/features/accounts/AccountGate";
import type { MailLink } from "@/features/auth/links";
import { ResetPasswordPage } from "@/features/auth/ResetPasswordPage";
import { SignInPage } from "@/features/auth/SignInPage";
import { StepUpDialog } from "@/features/auth/StepUpDialog";
import { VerifyEmailPage } from "@/features/auth/VerifyEmailPage";
import { OrdersPage } from "@/features/orders/OrdersPage";
import { PortfolioPage } from "@/features/portfolio/PortfolioPage";
import { RiskPage } from "@/features/risk/RiskPage";
import { Boundary } from "@/ui/Boundary";
import { Empty, Loading } from "@/ui/states";
import { PATHS } from "./paths";
import { Shell } from "./Shell";

// The chart is a third of the page's weight, and nobody needs it to sign in.
const TradePage = lazy(async () => ({ default: (await import("@/features/trade/TradePage")).TradePage }));
// Seldom looked at.
const PersonalPages = lazy(async () => ({ default: (await import("./PersonalPages")).PersonalPages }));
const LivePage = lazy(async () => ({ default: (await import("@/features/live/LivePage")).LivePage }));
const AdministrationPage = lazy(async () => ({
  default: (await import("@/features/administration/AdministrationPage")).AdministrationPage,
}));

/** Where to go after signing in. */
interface From {
  from?: string;
}

export function Pages({ link }: { link: MailLink | undefined }) {
  const session = useSession();
  const location = useLocation();

  // Links out of mails are for everybody, whoever is signed in here.
  const token = link?.path === location.pathname ? link.token : undefined;
  if (location.pathname === PATHS.verifyEmail) return <VerifyEmailPage token={token} />;
  if (location.pathname === PATHS.resetPassword) return <ResetPasswordPage token={token} />;

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
  const { user } = session;
  // What belongs to the person is there before a trading account is, and when orders cannot be reached.
  const isPersonal = location.pathname.startsWith(PATHS.account) || location.pathname.startsWith(PATHS.administration);
  return (
    <>
      <StepUpDialog />
      <AccountGate isNeeded={!isPersonal}>
        <Shell user={user}>
          <Boundary place={location.pathname}>
            <Suspense fallback={<Loading what="the page" />}>
              <Routes>
                <Route path={`${PATHS.trade}/:instrumentId?`} element={<TradePage />} />
                <Route path={PATHS.orders} element={<OrdersPage />} />
                <Route path={PATHS.parentOrders} element={<OrdersPage />} />
                <Route path={PATHS.portfolio} element={<PortfolioPage />} />
                <Route path={PATHS.risk} element={<RiskPage />} />
                <Route path={PATHS.live} element={<LivePage />} />
                <Route path={`${PATHS.account}/*`} element={<PersonalPages />} />
                {isOperator(user) && <Route path={PATHS.administration} element={<AdministrationPage />} />}
                <Route path={PATHS.signIn} element={<Navigate to={from ?? PATHS.trade} replace />} />
                {/* Stripe's pages lead back here. */}
                <Route path="/" element={<Navigate to={location.search.startsWith("?checkout=") ? PATHS.plan : PATHS.trade} replace />} />
                <Route path={PATHS.home} element={<Navigate to={PATHS.trade} replace />} />
                <Route path="*" element={<Empty title="There is no such page" />} />
              </Routes>
            </Suspense>
          </Boundary>
        </Shell>
      </AccountGate>
    </>
  );
}
