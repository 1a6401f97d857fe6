import { Button, Group, Text } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { LiveState, type Account } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { BrokerCredentialState } from "@gen/tradeloom/users/v1/users_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { newRequestId } from "@/api/requestId";
import { ACCOUNTS_KEY } from "@/features/accounts/account";
import { dayAndClock } from "@/lib/time";
import { Confirm } from "@/ui/Confirm";
import { Panel } from "@/ui/Panel";
import { Row, Rows } from "@/ui/Rows";
import { Failed } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import { useCredential, useLiveTrading } from "./useLive";
import { KEY_STATES, LIVE_STATES, stopText } from "./words";

/** What an account needs before it trades real money, and how it is started and stopped. */
export function Standing({ account }: { account: Account }) {
  const trading = useLiveTrading();
  const credential = useCredential(account.accountId);
  const { liveState, stopReason } = account;
  const { label, color, hint } = LIVE_STATES[liveState];
  const isRunning = liveState === LiveState.ON || liveState === LiveState.CONNECTING;
  const key = credential.data;
  const isUsable = key?.state === BrokerCredentialState.USABLE;
  return (
    <Panel title={`Real money of ${account.name} at ${account.venue}`}>
      <Rows label="What it needs to trade">
        <Row
          title={
            <>
              1. Enabled for all by an operator
              {trading.data && <Tag color={trading.data.enabled ? "teal" : "red"}>{trading.data.enabled ? "Yes" : "No"}</Tag>}
            </>
          }
          details={
            trading.data?.setTime ? (
              `“${trading.data.reason}” · ${dayAndClock(trading.data.setTime)}`
            ) : trading.isError ? (
              <Failed what="whether it is" error={trading.error} onRetry={() => void trading.refetch()} />
            ) : (
              "At first it is not."
            )
          }
        />
        <Row
          title={
            <>
              2. A key that may trade, and move no money out
              {credential.isSuccess && <Tag color={key ? KEY_STATES[key.state].color : "red"}>{key ? KEY_STATES[key.state].label : "None"}</Tag>}
            </>
          }
          details={key ? `${key.label}, ending in ${key.apiKeyEnding}` : "Put one beside."}
        />
        <Row
          data-testid="live-state"
          title={
            <>
              3. Confirmed by you{" "}
              <Tag color={color} data-state={LiveState[liveState]}>
                {label}
              </Tag>
            </>
          }
          details={[stopReason !== "" && stopText(stopReason), hint].filter(Boolean).join(" ")}
        />
      </Rows>
      <Group p="sm" gap="xs">
        {isRunning ? <Stop account={account} /> : <Start account={account} isUsable={isUsable} />}
        {!isRunning && !isUsable && credential.isSuccess && (
          <Text size="xs" c="dimmed">
            First it needs a key that the venue found usable.
          </Text>
        )}
      </Group>
    </Panel>
  );
}

function Start({ account, isUsable }: { account: Account; isUsable: boolean }) {
  const { live } = useApi();
  const queries = useQueryClient();
  // Of one decision.
  const [requestId, setRequestId] = useState<string>();
  const close = () => {
    setRequestId(undefined);
    confirming.reset();
  };
  const confirming = useMutation({
    mutationFn: (id: string) => live.confirmLiveTrading({ requestId: id, accountId: account.accountId }),
    onSuccess: async () => {
      await queries.invalidateQueries({ queryKey: ACCOUNTS_KEY });
      close();
      notifications.show({ color: "red", title: "Confirmed", message: `Once ${account.venue} has told what the account holds, it trades.` });
    },
  });
  return (
    <>
      <Button size="xs" color="red" disabled={!isUsable} onClick={() => setRequestId(newRequestId())}>
        Trade real money
      </Button>
      <Confirm
        opened={requestId !== undefined}
        title="Trade real money?"
        action="Trade real money"
        leave="Not now"
        isAsking={confirming.isPending}
        error={confirming.error}
        onConfirm={() => requestId && !confirming.isPending && confirming.mutate(requestId)}
        onClose={close}
      >
        Orders of <b>{account.name}</b> will be sent to {account.venue} with its key, and trade what you own there. What {account.venue} says the account
        holds becomes its balances. You are asked for a fresh code of your second factor.
      </Confirm>
    </>
  );
}

function Stop({ account }: { account: Account }) {
  const { live } = useApi();
  const queries = useQueryClient();
  const [requestId, setRequestId] = useState<string>();
  const close = () => {
    setRequestId(undefined);
    stopping.reset();
  };
  const stopping = useMutation({
    mutationFn: (id: string) => live.stopLiveTrading({ requestId: id, accountId: account.accountId }),
    onSuccess: async () => {
      await queries.invalidateQueries({ queryKey: ACCOUNTS_KEY });
      close();
      notifications.show({ color: "yellow", title: "Stopped", message: `${account.name} trades nothing until you confirm it anew.` });
    },
  });
  return (
    <>
      <Button size="xs" color="red" variant="outline" onClick={() => setRequestId(newRequestId())}>
        Stop it
      </Button>
      <Confirm
        opened={requestId !== undefined}
        title={`Stop trading real money on ${account.name}?`}
        action="Stop it"
        leave="Let it go on"
        isAsking={stopping.isPending}
        error={stopping.error}
        onConfirm={() => requestId && !stopping.isPending && stopping.mutate(requestId)}
        onClose={close}
      >
        No order of it is taken until you confirm it anew. What was not sent yet is rejected; what rests at {account.venue} stays there, is followed, and
        can be canceled.
      </Confirm>
    </>
  );
}
