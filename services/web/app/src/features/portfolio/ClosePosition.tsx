import { Button, Stack, TextInput } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation } from "@tanstack/react-query";
import type { Position } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { useAccount } from "@/features/accounts/account";
import { useAccountOrders } from "@/features/orders/AccountOrdersProvider";
import { problemOf } from "@/features/orders/ticket";
import { shown, typed } from "@/lib/decimal";
import { Confirm } from "@/ui/Confirm";

/** Closes a position, or a part of it, at the market's price, after a question. */
export function ClosePosition({ position }: { position: Position }) {
  const { portfolio } = useApi();
  const { account } = useAccount();
  const { take } = useAccountOrders();
  const { instrumentId } = position;
  // Of one decision about one quantity.
  const [requestId, setRequestId] = useState<string>();
  const [quantity, setQuantity] = useState("");
  const part = typed(quantity);
  const problem = part === "" ? undefined : problemOf(quantity, undefined);
  const closing = useMutation({
    mutationFn: async (id: string) => {
      const { order } = await portfolio.closePosition({
        requestId: id,
        accountId: account.accountId,
        instrumentId,
        ...(part !== "" && { quantity: { value: part } }),
      });
      if (order) take([order]);
    },
    onSuccess: () => {
      close();
      notifications.show({ color: "gray", title: `Closing ${instrumentId}`, message: "An order at the market's price is on its way." });
    },
  });
  const close = () => {
    setRequestId(undefined);
    setQuantity("");
    closing.reset();
  };
  const refusal = closing.error ? refusalOf(closing.error) : undefined;
  return (
    <>
      <Button size="compact-xs" variant="default" aria-label={`Close ${instrumentId}`} onClick={() => setRequestId(newRequestId())}>
        Close
      </Button>
      <Confirm
        opened={requestId !== undefined}
        title={`Close ${instrumentId}?`}
        action="Close it"
        isAsking={closing.isPending}
        error={closing.error}
        onConfirm={() => requestId && !problem && !closing.isPending && closing.mutate(requestId)}
        onClose={close}
      >
        <Stack gap="sm">
          <span>
            You hold {shown(position.quantity?.value, 0)}. An order that only reduces trades it at the market's price. On a margin account orders
            that only reduce, such as the legs of a bracket, are canceled for it where they leave no room; on a cash account what open orders
            have set aside stays, so cancel those first.
          </span>
          <TextInput
            label="Only so much of it"
            placeholder="all"
            inputMode="decimal"
            autoComplete="off"
            value={quantity}
            onChange={(event) => {
              setQuantity(event.currentTarget.value);
              setRequestId(newRequestId());
              closing.reset();
            }}
            error={problem ?? violationOf(refusal, "quantity")}
          />
        </Stack>
      </Confirm>
    </>
  );
}
