import { Button } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation } from "@tanstack/react-query";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { newRequestId } from "@/api/requestId";
import { useAccount } from "@/features/accounts/account";
import { Confirm } from "@/ui/Confirm";
import { useAccountOrders } from "./AccountOrdersProvider";

interface Props {
  /** Only this instrument's; all if empty. */
  instrumentId: string;
  openCount: number;
}

/** Asks to cancel all open orders of the account, or those of one instrument. */
export function CancelAll({ instrumentId, openCount }: Props) {
  const { orders } = useApi();
  const { account } = useAccount();
  const { stream } = useAccountOrders();
  // What this page does not see while its stream is away can be canceled all the same.
  const isNothingOpen = openCount === 0 && stream.phase === "live";
  // Of one decision: the orders that were placed until it is carried out.
  const [requestId, setRequestId] = useState<string>();
  const close = () => {
    setRequestId(undefined);
    canceling.reset();
  };
  const canceling = useMutation({
    mutationFn: (id: string) => orders.cancelAllOrders({ requestId: id, accountId: account.accountId, instrumentId }),
    onSuccess: ({ orderIds }) => {
      close();
      notifications.show({
        color: "gray",
        title: "Canceling",
        message: saidOf(orderIds.length),
      });
    },
  });
  const which = `${instrumentId === "" ? "All open orders" : `All open orders in ${instrumentId}`} of ${account.name}`;
  return (
    <>
      <Button size="compact-xs" variant="default" disabled={isNothingOpen} onClick={() => setRequestId(newRequestId())}>
        Cancel all
      </Button>
      <Confirm
        opened={requestId !== undefined}
        title="Cancel all open orders?"
        action="Cancel them"
        leave="Leave them"
        isAsking={canceling.isPending}
        error={canceling.error}
        onConfirm={() => requestId && !canceling.isPending && canceling.mutate(requestId)}
        onClose={close}
      >
        {which}, also those that this page does not show. What trades before the venue has canceled it stays.
      </Confirm>
    </>
  );
}

function saidOf(count: number): string {
  if (count === 0) return "Nothing was open.";
  return count === 1 ? "One order; its venue has the word." : `${count} orders; their venue has the word.`;
}
