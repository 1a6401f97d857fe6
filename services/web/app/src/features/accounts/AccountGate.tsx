import { Anchor, Center, Stack } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useMemo, useState, type ReactNode } from "react";
import { Link } from "react-router";
import { useApi } from "@/api/clients";
import { PATHS } from "@/app/paths";
import { EmailBanner } from "@/features/auth/EmailBanner";
import { DeletionBanner } from "@/features/leaving/DeletionBanner";
import { isLive } from "@/features/live/words";
import { AccountOrdersProvider } from "@/features/orders/AccountOrdersProvider";
import { Failed, Loading } from "@/ui/states";
import { AccountContext, ACCOUNTS_KEY, ACCOUNTS_SHOWN_MAX, rememberChoice, rememberedChoice } from "./account";
import { OpenAccountForm } from "./OpenAccountForm";

const LOOK_MILLISECONDS = 5_000;

interface Props {
  /** Whether the page is about an account; others are shown without one, too. */
  isNeeded: boolean;
  children: ReactNode;
}

/** Shows the pages of one account, or asks to open the first one. */
export function AccountGate({ isNeeded, children }: Props) {
  const { portfolio, session } = useApi();
  const [choice, setChoice] = useState(rememberedChoice);
  const query = useQuery({
    queryKey: ACCOUNTS_KEY,
    queryFn: async ({ signal }) => (await portfolio.listAccounts({ pageSize: ACCOUNTS_SHOWN_MAX }, { signal })).accounts,
    // What lets a live account trade, or stops it, happens elsewhere: at its venue, and to its key.
    refetchInterval: ({ state }) => (state.data?.some(isLive) ? LOOK_MILLISECONDS : false),
  });

  const accounts = query.data;
  const account = accounts?.find(({ accountId }) => accountId === choice) ?? accounts?.[0];
  const chosen = useMemo(
    () =>
      account &&
      accounts && {
        account,
        accounts,
        choose: (accountId: string) => {
          rememberChoice(accountId);
          setChoice(accountId);
        },
      },
    [account, accounts],
  );

  if (query.isPending) return <Loading what="your accounts" />;
  if (!chosen && !isNeeded) return children;
  if (query.isError) return <Failed what="your accounts" error={query.error} onRetry={() => void query.refetch()} />;
  if (!chosen) {
    return (
      <Stack mih="100%" gap={0}>
        <DeletionBanner />
        <EmailBanner />
        <Center flex={1} p="md" component="main">
          <Stack w="100%" maw={460} gap="sm">
            <OpenAccountForm isFirst onOpened={() => {}} onSignOut={() => void session.signOut()} />
            <Anchor component={Link} to={PATHS.security} size="sm" c="dimmed" ta="center">
              Security, keys and plan
            </Anchor>
          </Stack>
        </Center>
      </Stack>
    );
  }
  return (
    <AccountContext value={chosen}>
      <AccountOrdersProvider key={chosen.account.accountId} accountId={chosen.account.accountId}>
        {children}
      </AccountOrdersProvider>
    </AccountContext>
  );
}
