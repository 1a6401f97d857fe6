import { Button, Group, Stack, Text, TextInput } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import type { LiveTrading } from "@gen/tradeloom/orders/v1/live_pb.js";
import { useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { LIVE_TRADING_KEY, useLiveTrading } from "@/features/live/useLive";
import { dayAndClock } from "@/lib/time";
import { Panel } from "@/ui/Panel";
import { Row, Rows } from "@/ui/Rows";
import { Failed, Loading, RefusalAlert } from "@/ui/states";
import { Tag } from "@/ui/Tag";

const REASON_LENGTH_MAX = 200;

/** Enables trading with real money for all confirmed accounts, or disables it, for operators. */
export function LiveTradingSwitch() {
  const trading = useLiveTrading();
  return (
    <Panel title="Trading with real money">
      {trading.isPending && <Loading what="whether real money is traded" />}
      {trading.isError && <Failed what="whether real money is traded" error={trading.error} onRetry={() => void trading.refetch()} />}
      {trading.data && (
        <>
          <Rows label="Whether real money is traded">
            <Row
              title={<Tag color={trading.data.enabled ? "red" : "gray"}>{trading.data.enabled ? "Enabled" : "Disabled"}</Tag>}
              details={
                trading.data.setTime ? `“${trading.data.reason}” · since ${dayAndClock(trading.data.setTime)}` : "Nobody has ever enabled it here."
              }
            />
          </Rows>
          {/* Another setting is another form. */}
          <SetForm key={String(trading.data.revision)} present={trading.data} />
        </>
      )}
    </Panel>
  );
}

function SetForm({ present }: { present: LiveTrading }) {
  const { live } = useApi();
  const queries = useQueryClient();
  const enabled = !present.enabled;
  const [reason, setReason] = useState("");
  // Of these contents: set once, however often it is sent.
  const [requestId, setRequestId] = useState(newRequestId);
  const setting = useMutation({
    mutationFn: () => live.setLiveTrading({ requestId, enabled, reason: reason.trim() }),
    onSuccess: async () => {
      notifications.show({
        color: enabled ? "red" : "yellow",
        title: enabled ? "Real money is traded from now on" : "No real money is traded any more",
        message: enabled ? "By accounts that their owners have confirmed." : "What rests at venues stays, is followed and can be canceled.",
      });
      await queries.invalidateQueries({ queryKey: LIVE_TRADING_KEY });
    },
  });
  const refusal = setting.error ? refusalOf(setting.error) : undefined;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (!setting.isPending && reason.trim() !== "") setting.mutate();
  };
  return (
    <form onSubmit={submit} aria-label="Trading with real money">
      <Stack gap="sm" p="sm">
        <Text size="xs" c="dimmed">
          {enabled
            ? "Enabled, it trades the money of every account whose owner has confirmed it. You are asked for a fresh code of your second factor."
            : "Disabled, no order of a live account is taken: what was not sent yet is rejected; what rests at venues stays, is followed and can be canceled."}
        </Text>
        <TextInput
          label="Why"
          required
          maxLength={REASON_LENGTH_MAX}
          autoComplete="off"
          value={reason}
          onChange={(event) => {
            setReason(event.currentTarget.value);
            setRequestId(newRequestId());
            setting.reset();
          }}
          error={violationOf(refusal, "reason")}
        />
        {refusal && <RefusalAlert error={refusal} />}
        <Group>
          <Button type="submit" size="xs" color="red" variant={enabled ? "filled" : "outline"} loading={setting.isPending}>
            {enabled ? "Enable trading with real money" : "Disable trading with real money"}
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
