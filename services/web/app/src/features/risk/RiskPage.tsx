import { Button, Select, SimpleGrid, Stack, Text } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useInfiniteQuery, useMutation, useQueryClient } from "@tanstack/react-query";
import { KillSwitchScope, type KillSwitch, type RiskStanding } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { newRequestId } from "@/api/requestId";
import { useAccount } from "@/features/accounts/account";
import { shown } from "@/lib/decimal";
import { dateAndClock, exactTime } from "@/lib/time";
import { Confirm } from "@/ui/Confirm";
import { Panel } from "@/ui/Panel";
import { PagedRows, Row, Rows } from "@/ui/Rows";
import { Empty, Failed, Loading } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import { LimitsForm } from "./LimitsForm";
import { SwitchForm, type Switching } from "./SwitchForm";
import { keyOf, SwitchRow } from "./SwitchRow";
import { riskKey, RISK_EVENTS_KEY, useRisk, useSwitches } from "./useRisk";
import { EVENT_KINDS, eventText, LOCKS, SCOPES } from "./words";

const EVENTS_PAGE = 50;
const NOT_NOTED = "Not noted yet.";

/** What holds the account back: limits, locks and kill switches, and what they did. */
export function RiskPage() {
  const { account } = useAccount();
  const { accountId } = account;
  const risk = useRisk(accountId);
  if (risk.isPending) return <Loading what="the account's limits" />;
  if (!risk.data) return <Failed what="the account's limits" error={risk.error} onRetry={() => void risk.refetch()} />;
  return (
    <Stack gap="xs">
      <SimpleGrid cols={{ base: 1, md: 2 }} spacing="xs">
        <Standing accountId={accountId} standing={risk.data.standing} />
        <KillSwitches key={accountId} accountId={accountId} />
      </SimpleGrid>
      <Panel title={`Limits of ${account.name}`}>
        <LimitsForm key={accountId} accountId={accountId} present={risk.data} />
      </Panel>
      <Events key={accountId} accountId={accountId} />
    </Stack>
  );
}

function Standing({ accountId, standing }: { accountId: string; standing: RiskStanding | undefined }) {
  const asset = standing?.valuationAsset ?? "";
  const sum = (amount: { value: string } | undefined, without: string) => (amount ? `${shown(amount.value, 2, 2)} ${asset}` : without);
  const locks = standing?.locks ?? [];
  return (
    <Panel title="Where it stands" aside={locks.length > 0 && <LiftLocks accountId={accountId} />}>
      <Rows label="Where the account stands">
        <Row title="Worth now" details={sum(standing?.equity, "Not known: something it holds has no price now.")} />
        <Row title="When its day began" details={[sum(standing?.dayStartEquity, NOT_NOTED), standing?.dayStartTime && dateAndClock(standing.dayStartTime)].filter(Boolean).join(" · ")} />
        <Row title="At its highest" details={sum(standing?.peakEquity, NOT_NOTED)} />
        {locks.map((lock) => (
          <Row key={lock} title={<Tag color="red">{LOCKS[lock].label}</Tag>} details={LOCKS[lock].hint} />
        ))}
        {locks.length === 0 && <Row title={<Tag color="teal">Not locked</Tag>} details="What it loses counts by the limits below." />}
      </Rows>
    </Panel>
  );
}

function LiftLocks({ accountId }: { accountId: string }) {
  const { risk } = useApi();
  const queries = useQueryClient();
  const [requestId, setRequestId] = useState<string>();
  const lifting = useMutation({
    mutationFn: (id: string) => risk.liftRiskLocks({ requestId: id, accountId }),
    onSuccess: async () => {
      setRequestId(undefined);
      notifications.show({ color: "teal", title: "Lifted", message: "Losses count from this moment on." });
      await queries.invalidateQueries({ queryKey: riskKey(accountId) });
      await queries.invalidateQueries({ queryKey: RISK_EVENTS_KEY });
    },
  });
  return (
    <>
      <Button size="compact-xs" variant="default" onClick={() => setRequestId(newRequestId())}>
        Lift the locks
      </Button>
      <Confirm
        opened={requestId !== undefined}
        title="Lift the account's locks?"
        action="Lift them"
        isAsking={lifting.isPending}
        error={lifting.error}
        onConfirm={() => requestId && !lifting.isPending && lifting.mutate(requestId)}
        onClose={() => {
          setRequestId(undefined);
          lifting.reset();
        }}
      >
        It may trade again at once. What it lost so far no longer counts: its day and its highest worth begin now.
      </Confirm>
    </>
  );
}

const ALL = "all";

function KillSwitches({ accountId }: { accountId: string }) {
  const { risk } = useApi();
  const { accounts } = useAccount();
  const switches = useSwitches();
  const [whose, setWhose] = useState(accountId);
  const nameOf = ({ scope, targetId }: KillSwitch) => {
    if (scope === KillSwitchScope.ACCOUNT) return accounts.find((each) => each.accountId === targetId)?.name ?? `Account ${targetId}`;
    return scope === KillSwitchScope.DEPLOYMENT ? `Deployment ${targetId}` : SCOPES[scope];
  };
  const setFor = (on: KillSwitch) => {
    // What an operator has set, only an operator lets go on.
    if (on.byOperator) return undefined;
    return (switching: Switching) =>
      risk.setKillSwitch({
        ...switching,
        accountId: on.scope === KillSwitchScope.ACCOUNT ? on.targetId : "",
        deploymentId: on.scope === KillSwitchScope.DEPLOYMENT ? on.targetId : "",
      });
  };
  const found = switches.data?.switches ?? [];
  return (
    <Panel title="Kill switch">
      {switches.isError && <Failed what="the kill switches" error={switches.error} onRetry={() => void switches.refetch()} />}
      {switches.isPending && <Loading what="the kill switches" />}
      {found.length > 0 && (
        <Rows label="Switches that are on">
          {found.map((on) => (
            <SwitchRow key={keyOf(on)} on={on} whose={nameOf(on)} act={setFor(on)} />
          ))}
        </Rows>
      )}
      {switches.data && found.length === 0 && (
        <Text size="sm" c="dimmed" px="sm" pt="sm">
          Trading goes on: no switch is on.
        </Text>
      )}
      <SwitchForm
        name="Kill switch"
        needsReason={false}
        target={whose}
        act={(switching) => risk.setKillSwitch({ ...switching, accountId: whose === ALL ? "" : whose })}
      >
        <Select
          label="Stop"
          size="xs"
          allowDeselect={false}
          value={whose}
          onChange={(value) => setWhose(value ?? accountId)}
          data={[...accounts.map((each) => ({ value: each.accountId, label: each.name })), { value: ALL, label: "All my accounts" }]}
        />
      </SwitchForm>
    </Panel>
  );
}

function Events({ accountId }: { accountId: string }) {
  const { risk } = useApi();
  const { accounts } = useAccount();
  const [whose, setWhose] = useState(accountId);
  const query = useInfiniteQuery({
    queryKey: [...RISK_EVENTS_KEY, whose],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      risk.listRiskEvents({ accountId: whose === ALL ? "" : whose, pageSize: EVENTS_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
  return (
    <Panel
      title="What happened"
      aside={
        <Select
          size="xs"
          w={160}
          aria-label="Whose events"
          allowDeselect={false}
          value={whose}
          onChange={(value) => setWhose(value ?? accountId)}
          data={[...accounts.map((each) => ({ value: each.accountId, label: each.name })), { value: ALL, label: "All, and for all" }]}
        />
      }
    >
      <PagedRows
        what="the risk events"
        query={query}
        items={query.data?.pages.flatMap((page) => page.events) ?? []}
        empty={<Empty title="Nothing has happened">Refused orders, locks, limits and switches are noted here.</Empty>}
        more="Show older events"
      >
        {(event) => {
          const { label, color } = EVENT_KINDS[event.kind];
          return (
            <Row
              key={event.riskEventId}
              title={
                <>
                  <Tag color={color}>{label}</Tag> {eventText(event)}
                </>
              }
              details={[exactTime(event.time), event.instrumentId].filter(Boolean).join(" · ")}
            />
          );
        }}
      </PagedRows>
    </Panel>
  );
}
