import { ActionIcon, Button, Tooltip } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { IconX } from "@tabler/icons-react";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { ParentOrderState, type ParentOrder } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { newRequestId } from "@/api/requestId";
import { Confirm } from "@/ui/Confirm";
import { parentsKey } from "./useParents";
import { titleOf } from "./words";

/** Ends a parent order, after a question. */
export function CancelParent({ parent, isSmall = false }: { parent: ParentOrder; isSmall?: boolean }) {
  const { parents } = useApi();
  const queries = useQueryClient();
  // Of one decision.
  const [requestId, setRequestId] = useState<string>();
  const isAsked = parent.state === ParentOrderState.CANCELING;
  const close = () => {
    setRequestId(undefined);
    canceling.reset();
  };
  const canceling = useMutation({
    mutationFn: (id: string) => parents.cancelParentOrder({ requestId: id, parentOrderId: parent.parentOrderId }),
    onSuccess: ({ parentOrder }) => {
      close();
      const isOver = parentOrder?.state === ParentOrderState.CANCELED;
      notifications.show({ color: "gray", title: isOver ? "Canceled" : "Canceling", message: `${titleOf(parent)}.` });
    },
    onSettled: () => queries.invalidateQueries({ queryKey: parentsKey(parent.accountId) }),
  });
  const open = () => setRequestId(newRequestId());
  return (
    // What is clicked in the question is no click on the row.
    <span onClick={(event) => event.stopPropagation()}>
      {isSmall ? (
        <Tooltip label={isAsked ? "Its open orders are being canceled" : "Cancel"}>
          <ActionIcon size="sm" variant="subtle" color="gray" aria-label={`Cancel ${titleOf(parent)}`} disabled={isAsked} onClick={open}>
            <IconX size={14} />
          </ActionIcon>
        </Tooltip>
      ) : (
        <Button size="compact-xs" variant="default" disabled={isAsked} onClick={open}>
          Cancel it
        </Button>
      )}
      <Confirm
        opened={requestId !== undefined}
        title={`Cancel: ${titleOf(parent)}?`}
        action="Cancel it"
        leave="Leave it"
        isAsking={canceling.isPending}
        error={canceling.error}
        onConfirm={() => requestId && !canceling.isPending && canceling.mutate(requestId)}
        onClose={close}
      >
        It places nothing more, and its open orders are canceled. What has traded stays.
      </Confirm>
    </span>
  );
}
