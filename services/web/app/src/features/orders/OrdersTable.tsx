import { ActionIcon, Group, ScrollArea, Table, Tooltip } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { IconPencil, IconX } from "@tabler/icons-react";
import { OrderSide, OrderState, type Order } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useRef, useState } from "react";
import { useApi } from "@/api/clients";
import { isOutcomeLost, refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { shown } from "@/lib/decimal";
import { dayAndClock } from "@/lib/time";
import { Tag } from "@/ui/Tag";
import { useAccountOrders } from "./AccountOrdersProvider";
import { annotationOf, isDone, type Annotation } from "./accountOrders";
import { OrderLife } from "./OrderLife";
import classes from "./OrdersTable.module.css";
import { ReplaceOrder } from "./ReplaceOrder";
import { isReplaceable } from "./replacing";
import { GROUP_ROLES, priceText, reasonText, SIDES, STATES, titleOf, TYPES } from "./words";

/** Orders as rows; a row opens the order's life, and an open order can be changed and canceled. */
export function OrdersTable({ orders, label }: { orders: readonly Order[]; label: string }) {
  const [shownId, setShownId] = useState<string>();
  const [changedId, setChangedId] = useState<string>();
  const { known } = useAccountOrders();
  const found = (orderId: string | undefined) =>
    orderId === undefined ? undefined : (known.orders.get(orderId) ?? orders.find((order) => order.orderId === orderId));
  return (
    <>
      <ScrollArea type="scroll" h="100%">
        <Table className={classes.table} aria-label={label} highlightOnHover stickyHeader>
          <Table.Thead>
            <Table.Tr>
              <Table.Th>Instrument</Table.Th>
              <Table.Th>Side</Table.Th>
              <Table.Th>State</Table.Th>
              <Table.Th>Type</Table.Th>
              <Table.Th className="number">Price</Table.Th>
              <Table.Th className="number">Filled / quantity</Table.Th>
              <Table.Th className="number">Average</Table.Th>
              <Table.Th>Noted</Table.Th>
              <Table.Th>Placed</Table.Th>
              <Table.Th aria-label="Change and cancel" />
            </Table.Tr>
          </Table.Thead>
          <Table.Tbody>
            {orders.map((order) => (
              <Table.Tr key={order.orderId} onClick={() => setShownId(order.orderId)} className={classes.row!} data-order-id={order.orderId}>
                <Table.Td>
                  <button type="button" className={classes.open} aria-label={`Show ${titleOf(order)}`}>
                    {order.instrumentId}
                  </button>
                </Table.Td>
                <Table.Td className={order.side === OrderSide.BUY ? "rising" : "falling"}>{SIDES[order.side]}</Table.Td>
                <Table.Td>
                  <OrderStateBadge order={order} />
                </Table.Td>
                <Table.Td>
                  {TYPES[order.orderType]} {order.groupId !== "" && <Tag color="grape">{GROUP_ROLES[order.groupRole]}</Tag>}
                  {order.parentOrderId !== "" && <Tag color="grape">Slice {order.sliceNumber}</Tag>}
                  {order.external && <Tag color="orange">By hand</Tag>}
                </Table.Td>
                <Table.Td className="number">{priceText(order)}</Table.Td>
                <Table.Td className="number">
                  {shown(order.filledQuantity?.value ?? "0", 0)} / {shown(order.quantity?.value, 0)}
                </Table.Td>
                <Table.Td className="number">{shown(order.averagePrice?.value, 2, 6)}</Table.Td>
                <Table.Td>
                  <Noted {...annotationOf(known, order.orderId)} />
                </Table.Td>
                <Table.Td className={classes.time!}>{dayAndClock(order.createTime)}</Table.Td>
                <Table.Td>
                  {!isDone(order) && (
                    <Group gap={2} wrap="nowrap" justify="flex-end">
                      {isReplaceable(order) && <ChangeButton order={order} onChange={() => setChangedId(order.orderId)} />}
                      <CancelButton order={order} />
                    </Group>
                  )}
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      </ScrollArea>
      <OrderLife order={found(shownId)} onClose={() => setShownId(undefined)} />
      <ReplaceOrder order={found(changedId)} onClose={() => setChangedId(undefined)} />
    </>
  );
}

export function OrderStateBadge({ order }: { order: Order }) {
  const { label, color } = STATES[order.state];
  return (
    <Tag color={color} data-state={OrderState[order.state]} {...(order.reason && { title: reasonText(order.reason) })}>
      {label}
    </Tag>
  );
}

function Noted({ note, tags }: Annotation) {
  return (
    <span className={classes.noted} title={note}>
      {tags.map((tag) => (
        <Tag key={tag} color="gray">
          {tag}
        </Tag>
      ))}{" "}
      {note}
    </span>
  );
}

function ChangeButton({ order, onChange }: { order: Order; onChange(): void }) {
  return (
    <Tooltip label="Change">
      <ActionIcon
        size="sm"
        variant="subtle"
        color="gray"
        aria-label={`Change ${titleOf(order)}`}
        onClick={(event) => {
          event.stopPropagation();
          onChange();
        }}
      >
        <IconPencil size={14} />
      </ActionIcon>
    </Tooltip>
  );
}

function CancelButton({ order }: { order: Order }) {
  const { orders } = useApi();
  const { take } = useAccountOrders();
  // Until it is answered, canceling this order is one intent, however often it is clicked.
  const requestId = useRef(newRequestId());
  const [isAsking, setIsAsking] = useState(false);
  const isAsked = order.state === OrderState.PENDING_CANCEL;

  const cancel = async () => {
    setIsAsking(true);
    try {
      const { order: changed } = await orders.cancelOrder({ requestId: requestId.current, orderId: order.orderId });
      // If the venue was too late, asking once more is another intent.
      requestId.current = newRequestId();
      if (changed) take([changed]);
    } catch (error) {
      const refusal = refusalOf(error);
      if (isOutcomeLost(refusal)) {
        notifications.show({ color: "yellow", title: "Perhaps not canceled", message: `${refusal.message} Cancel it again to be sure.` });
      } else {
        notifications.show({ color: "red", title: "Not canceled", message: refusal.message });
      }
    } finally {
      setIsAsking(false);
    }
  };

  return (
    <Tooltip label={isAsked ? "The venue has not answered yet" : "Cancel"}>
      <ActionIcon
        size="sm"
        variant="subtle"
        color="gray"
        aria-label={`Cancel ${titleOf(order)}`}
        loading={isAsking}
        disabled={isAsked}
        onClick={(event) => {
          event.stopPropagation();
          void cancel();
        }}
      >
        <IconX size={14} />
      </ActionIcon>
    </Tooltip>
  );
}
