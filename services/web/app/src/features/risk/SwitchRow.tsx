import { Button } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { KillSwitchMode, type KillSwitch } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { useState } from "react";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { dayAndClock } from "@/lib/time";
import { Row } from "@/ui/Rows";
import { Tag } from "@/ui/Tag";
import type { Switching } from "./SwitchForm";
import { RISK_EVENTS_KEY, SWITCHES_KEY } from "./useRisk";
import { MODES } from "./words";

interface Props {
  on: KillSwitch;
  /** Whom it is for. */
  whose: string;
  /** Lets trading go on; undefined where that is for others to decide. */
  act: ((switching: Switching) => Promise<unknown>) | undefined;
}

/** A kill switch that is on, and a way to let trading go on. */
export function SwitchRow({ on, whose, act }: Props) {
  const queries = useQueryClient();
  // Letting trading go on after this switch is one intent, however often it is clicked.
  const [requestId] = useState(newRequestId);
  const lifting = useMutation({
    mutationFn: () => act!({ requestId, mode: KillSwitchMode.OFF, reason: "trading goes on", cancelOpenOrders: false }),
    onSuccess: () => notifications.show({ color: "teal", title: "Trading goes on", message: whose }),
    onError: (error) => notifications.show({ color: "red", title: "Trading does not go on", message: refusalOf(error).message }),
    onSettled: async () => {
      await queries.invalidateQueries({ queryKey: SWITCHES_KEY });
      await queries.invalidateQueries({ queryKey: RISK_EVENTS_KEY });
    },
  });
  const { label, color, hint } = MODES[on.mode];
  return (
    <Row
      title={
        <>
          {whose} <Tag color={color}>{label}</Tag>
        </>
      }
      details={[hint, on.reason, `since ${dayAndClock(on.time)}`, on.byOperator ? "set by an operator" : ""].filter(Boolean).join(" · ")}
      action={
        act && (
          <Button size="compact-xs" variant="default" loading={lifting.isPending} onClick={() => lifting.mutate()}>
            Let trading go on
          </Button>
        )
      }
    />
  );
}

/** Another setting of the same switch is another row, whose intent is another. */
export function keyOf({ scope, targetId, mode, time }: KillSwitch): string {
  return `${scope} ${targetId} ${mode} ${time?.seconds ?? 0n}.${time?.nanos ?? 0}`;
}
