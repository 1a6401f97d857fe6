import { Button, Group, Modal, Stack, Text, TextInput } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation } from "@tanstack/react-query";
import type { Order } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { fieldOf, refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { useInstrument } from "@/features/market/useInstruments";
import { RefusalAlert } from "@/ui/states";
import { useAccountOrders } from "./AccountOrdersProvider";
import { changeable, changeOf, CHANGES, problemsOfChange, replacementOf, type ChangeField } from "./replacing";
import { titleOf } from "./words";

/** Asks the venue to change an open order. */
export function ReplaceOrder({ order, onClose }: { order: Order | undefined; onClose(): void }) {
  return (
    <Modal opened={order !== undefined} onClose={onClose} title={order && `Change: ${titleOf(order)}`} centered closeButtonProps={{ "aria-label": "Close" }}>
      {order && <Replacing key={order.orderId} order={order} onClose={onClose} />}
    </Modal>
  );
}

function Replacing({ order, onClose }: { order: Order; onClose(): void }) {
  const { orders } = useApi();
  const { take } = useAccountOrders();
  const instrument = useInstrument(order.instrumentId);
  const [change, setChange] = useState(() => changeOf(order));
  // Of these contents: other ones are another intent.
  const [requestId, setRequestId] = useState(newRequestId);
  const [showsProblems, setShowsProblems] = useState(false);
  const replacement = replacementOf(order, change);
  const found = problemsOfChange(order, change, instrument.data);
  const replacing = useMutation({
    mutationFn: async () => {
      const { order: changed } = await orders.replaceOrder({ requestId, orderId: order.orderId, ...(replacement && { replacement }) });
      if (changed) take([changed]);
    },
    onSuccess: () => {
      notifications.show({ color: "gray", title: `Changing: ${titleOf(order)}`, message: "Until the venue has answered it may fill as it was." });
      onClose();
    },
  });
  const refusal = replacing.error ? refusalOf(replacing.error) : undefined;
  const refusedAt = (field: ChangeField) => {
    const name = CHANGES[field].field;
    return violationOf(refusal, `replacement.${name}`) ?? (refusal && fieldOf(refusal) === name ? refusal.message : undefined);
  };
  const fields = changeable(order);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    setShowsProblems(true);
    if (replacement && !replacing.isPending && Object.keys(found).length === 0) replacing.mutate();
  };
  return (
    <form onSubmit={submit} aria-label="Change the order" noValidate>
      <Stack gap="sm">
        {fields.map((field, index) => (
          <TextInput
            key={field}
            label={CHANGES[field].label}
            inputMode="decimal"
            autoComplete="off"
            data-autofocus={index === 0 || undefined}
            value={change[field]}
            onChange={(event) => {
              setChange({ ...change, [field]: event.currentTarget.value });
              setRequestId(newRequestId());
              replacing.reset();
            }}
            error={(showsProblems && found[field]) || refusedAt(field)}
          />
        ))}
        {fields.length === 0 && <Text size="sm">Nothing of this order can be changed.</Text>}
        {refusal && <RefusalAlert error={refusal} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={onClose}>
            Leave it
          </Button>
          <Button type="submit" loading={replacing.isPending} disabled={!replacement}>
            Change it
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
