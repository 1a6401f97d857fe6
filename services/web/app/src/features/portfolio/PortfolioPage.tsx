import { Paper, SimpleGrid, Stack, Tabs, Text } from "@mantine/core";
import { lazy, Suspense } from "react";
import { useAccount } from "@/features/accounts/account";
import { shown } from "@/lib/decimal";
import { Panel } from "@/ui/Panel";
import { Failed, Loading } from "@/ui/states";
import { StreamBadge } from "@/ui/StreamBadge";
import { BalancesTable } from "./BalancesTable";
import { Fills } from "./Fills";
import { Ledger } from "./Ledger";
import { MarginStandings } from "./MarginStandings";
import { PositionsTable } from "./PositionsTable";
import classes from "./PortfolioPage.module.css";
import { useLivePortfolio } from "./usePortfolio";

// Charts are a third of the page's weight.
const EquityChart = lazy(async () => ({ default: (await import("./EquityChart")).EquityChart }));

export function PortfolioPage() {
  const { account } = useAccount();
  const { query, stream } = useLivePortfolio(account.accountId);
  if (query.isPending) return <Loading what="the portfolio" />;
  if (!query.data) return <Failed what="the portfolio" error={query.error} onRetry={() => void query.refetch()} />;
  const { balances, positions, equity, margins } = query.data;
  return (
    <Stack gap="xs">
      <SimpleGrid cols={{ base: 1, xs: 2, md: 4 }} spacing="xs">
        {[...equity].sort((left, right) => (left.asset < right.asset ? -1 : 1)).map(({ asset, amount }) => (
          <Paper key={asset} withBorder p="sm" radius="md" bg="var(--panel)">
            <Text size="xs" c="dimmed">
              Worth in {asset}
            </Text>
            <Text size="xl" fw={600} data-testid={`equity-${asset}`}>
              {shown(amount?.value, 2, 2)}
            </Text>
          </Paper>
        ))}
      </SimpleGrid>
      <Suspense fallback={<Loading what="the chart" />}>
        <EquityChart accountId={account.accountId} />
      </Suspense>
      <Panel title="Positions" aside={<StreamBadge what="Portfolio" state={stream} />}>
        <PositionsTable positions={positions} />
      </Panel>
      {margins.length > 0 && (
        <Panel title="Margin">
          <MarginStandings margins={margins} />
        </Panel>
      )}
      <Panel title="Balances">
        <BalancesTable balances={balances} />
      </Panel>
      <Tabs defaultValue="fills" className={classes.tabs!} keepMounted={false}>
        <Tabs.List aria-label="What happened">
          <Tabs.Tab value="fills">Fills</Tabs.Tab>
          <Tabs.Tab value="ledger">Ledger</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="fills">
          <Fills accountId={account.accountId} />
        </Tabs.Panel>
        <Tabs.Panel value="ledger">
          <Ledger accountId={account.accountId} assets={balances.map(({ asset }) => asset)} />
        </Tabs.Panel>
      </Tabs>
    </Stack>
  );
}
