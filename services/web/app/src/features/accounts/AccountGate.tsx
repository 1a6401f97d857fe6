import { Center, Stack } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useMemo, useState, type ReactNode } from "react";
import { useApi } from "@/api/clients";
import { EmailBanner } from "@/features/auth/EmailBanner";
import { AccountOrdersProvider } from "@/features/orders/AccountOrdersProvider";
import { Failed, Loading } from "@/ui/states";
import { AccountContext, ACCOUNTS_KEY, rememberChoice, rememberedChoice } from "./account";
import { OpenAccountForm } from "./OpenAccountForm";

/** So many accounts can be chosen from. */
const ACCOUNTS_SHOWN_MAX = 200;

/** Shows the pages of one account, or asks to open the first one. */
export function AccountGate({ children }: { children: ReactNode }) {
  const { portfolio, session } = useApi();
  const [choice, setChoice] = useState(rememberedChoice);
  const query = useQuery({
    queryKey: ACCOUNTS_KEY,
    queryFn: async ({ signal }) => (await portfolio.listAccounts({ pageSize: ACCOUNTS_SHOWN_MAX }, { signal })).accounts,
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
  if (query.isError) return <Failed what="your accounts" error={query.error} onRetry={() => void query.refetch()} />;
  if (!chosen) {
    return (
      <Stack mih="100%" gap={0}>
        <EmailBanner />
        <Center flex={1} p="md" component="main">
          <OpenAccountForm isFirst onOpened={() => {}} onSignOut={() => void session.signOut()} />
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
