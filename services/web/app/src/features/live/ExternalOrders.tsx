import { Button, Checkbox, Group } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { ExternalOrderState, type ExternalOrder } from "@gen/tradeloom/execution/v1/execution_pb.js";
import type { Account } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { shown } from "@/lib/decimal";
import { dayAndClock } from "@/lib/time";
import { Panel } from "@/ui/Panel";
import { PagedRows, Row } from "@/ui/Rows";
import { Empty } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import { externalOrdersKey, useExternalOrders } from "./useLive";
import { EXTERNAL_STATES, externalText } from "./words";

/** Orders at the venue that were never sent from here: its owner decides whose they are. */
export function ExternalOrders({ account }: { account: Account }) {
  const [includeDecided, setIncludeDecided] = useState(false);
  const query = useExternalOrders(account.accountId, includeDecided);
  return (
    <Panel
      title="Orders not sent from here"
      aside={
        <Checkbox
          size="xs"
          label="Also those decided"
          checked={includeDecided}
          onChange={(event) => setIncludeDecided(event.currentTarget.checked)}
        />
      }
    >
      <PagedRows
        what="the orders not sent from here"
        query={query}
        items={query.data?.pages.flatMap((page) => page.orders) ?? []}
        empty={
          <Empty title="None">
            What is ordered at {account.venue} by hand, or by another program, is listed here to be adopted or ignored.
          </Empty>
        }
        more="Show more of them"
      >
        {(order) => <External key={order.externalOrderId} order={order} />}
      </PagedRows>
    </Panel>
  );
}

const DECIDABLE = new Set([ExternalOrderState.FOUND, ExternalOrderState.IGNORED]);

function External({ order }: { order: ExternalOrder }) {
  const { execution } = useApi();
  const queries = useQueryClient();
  const { state, accountId, externalOrderId } = order;
  // Each decision about it is one intent, however often it is clicked.
  const [requestIds] = useState(() => ({ adopt: newRequestId(), ignore: newRequestId() }));
  const deciding = useMutation({
    mutationFn: async (decision: "adopt" | "ignore") => {
      const request = { requestId: requestIds[decision], externalOrderId };
      return decision === "adopt" ? execution.adoptExternalOrder(request) : execution.ignoreExternalOrder(request);
    },
    onError: (error) => notifications.show({ color: "red", title: "Nothing was decided", message: refusalOf(error).message }),
    onSettled: () => queries.invalidateQueries({ queryKey: externalOrdersKey(accountId) }),
  });
  const { label, color } = EXTERNAL_STATES[state];
  const text = externalText(order);
  return (
    <Row
      data-testid="external-order"
      title={
        <>
          {text}
          <Tag color={color} data-state={ExternalOrderState[state]}>
            {label}
          </Tag>
        </>
      }
      details={[
        `${shown(order.filledQuantity?.value ?? "0", 0)} filled`,
        `found ${dayAndClock(order.findTime)}`,
        `the venue's ${order.venueOrderId}`,
        order.clientOrderId && `client order id ${order.clientOrderId}`,
        order.orderId && `here ${order.orderId}`,
      ]
        .filter(Boolean)
        .join(" · ")}
      action={
        DECIDABLE.has(state) && (
          <Group gap={4} wrap="nowrap">
            <Button
              size="compact-xs"
              variant="default"
              aria-label={`Adopt ${text}`}
              title="From then on it is the account's: followed, and to be canceled here"
              loading={deciding.isPending && deciding.variables === "adopt"}
              disabled={deciding.isPending}
              onClick={() => deciding.mutate("adopt")}
            >
              Adopt
            </Button>
            {state === ExternalOrderState.FOUND && (
              <Button
                size="compact-xs"
                variant="default"
                aria-label={`Ignore ${text}`}
                title="It stays whose it is; what it trades changes the balances by adjustments"
                loading={deciding.isPending && deciding.variables === "ignore"}
                disabled={deciding.isPending}
                onClick={() => deciding.mutate("ignore")}
              >
                Ignore
              </Button>
            )}
          </Group>
        )
      }
    />
  );
}
