import { Button, Checkbox, Group, SegmentedControl, Stack, Text, TextInput } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { KillSwitchMode } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { useState, type FormEvent, type ReactNode } from "react";
import { refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { RefusalAlert } from "@/ui/states";
import { RISK_EVENTS_KEY, SWITCHES_KEY } from "./useRisk";
import { MODES } from "./words";

const REASON_LENGTH_MAX = 200;

/** What is asked for, whoever it is for. */
export interface Switching {
  requestId: string;
  mode: KillSwitchMode;
  reason: string;
  cancelOpenOrders: boolean;
}

interface Props {
  name: string;
  needsReason: boolean;
  /** Changes with whom it is for: that is another request. */
  target: string;
  act(switching: Switching): Promise<unknown>;
  /** Chooses whom it is for. */
  children?: ReactNode;
}

/** Stops trading. */
export function SwitchForm({ name, needsReason, target, act, children }: Props) {
  const [mode, setMode] = useState(KillSwitchMode.REDUCE_ONLY);
  const [reason, setReason] = useState("");
  const [cancelOpenOrders, setCancelOpenOrders] = useState(true);
  const contents = JSON.stringify([target, mode, reason.trim(), cancelOpenOrders]);
  const [request, setRequest] = useState({ contents, requestId: newRequestId() });
  const queries = useQueryClient();
  const switching = useMutation({
    mutationFn: () => {
      // Other contents are another intent.
      const meant = request.contents === contents ? request : { contents, requestId: newRequestId() };
      setRequest(meant);
      return act({ requestId: meant.requestId, mode, reason: reason.trim(), cancelOpenOrders });
    },
    onSuccess: async () => {
      setRequest({ contents: "", requestId: "" });
      notifications.show({ color: "yellow", title: "Trading is stopped", message: MODES[mode].hint });
      await queries.invalidateQueries({ queryKey: SWITCHES_KEY });
      await queries.invalidateQueries({ queryKey: RISK_EVENTS_KEY });
    },
  });
  const refusal = switching.error ? refusalOf(switching.error) : undefined;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (!switching.isPending && (!needsReason || reason.trim() !== "")) switching.mutate();
  };
  return (
    <form onSubmit={submit} aria-label={name}>
      <Stack gap="sm" p="sm">
        {children}
        <SegmentedControl
          size="xs"
          aria-label="How much is forbidden"
          value={String(mode)}
          onChange={(value) => setMode(Number(value))}
          data={[KillSwitchMode.REDUCE_ONLY, KillSwitchMode.HALT].map((each) => ({ value: String(each), label: MODES[each].label }))}
        />
        <Text size="xs" c="dimmed">
          From then on {MODES[mode].hint}. Canceling is always allowed.
        </Text>
        <TextInput
          label="Why"
          required={needsReason}
          maxLength={REASON_LENGTH_MAX}
          autoComplete="off"
          value={reason}
          onChange={(event) => setReason(event.currentTarget.value)}
          error={violationOf(refusal, "reason")}
        />
        <Checkbox
          size="xs"
          label="Cancel the open orders, too"
          checked={cancelOpenOrders}
          onChange={(event) => setCancelOpenOrders(event.currentTarget.checked)}
        />
        {refusal && <RefusalAlert error={refusal} />}
        <Group>
          <Button type="submit" size="xs" color="red" loading={switching.isPending}>
            Stop trading
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
