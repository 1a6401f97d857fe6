import { Drawer, Group, Stack, Table, Text, Timeline } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { OrderEventKind, OrderSide, type Order, type OrderEvent } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useApi } from "@/api/clients";
import { shown } from "@/lib/decimal";
import { clock, dateAndClock, dayAndClock, exactClock } from "@/lib/time";
import { Empty, Failed, Loading } from "@/ui/states";
import { useAccountOrders } from "./AccountOrdersProvider";
import { Annotate } from "./Annotate";
import { annotationOf, lifeOf } from "./accountOrders";
import classes from "./OrderLife.module.css";
import { OrderStateBadge } from "./OrdersTable";
import { OrderGroup } from "./OrderGroup";
import { EVENTS, priceText, reasonText, titleOf, TIMES_IN_FORCE, TYPES } from "./words";

const FILLS_SHOWN_MAX = 100;

/** One order from its acceptance to its end, growing as the stream tells it. */
export function OrderLife({ order, onClose }: { order: Order | undefined; onClose(): void }) {
  return (
    <Drawer
      opened={order !== undefined}
      onClose={onClose}
      position="right"
      size={420}
      styles={{ content: { background: "var(--panel)" }, header: { background: "var(--panel)" } }}
      title={order && <Text fw={600}>{titleOf(order)}</Text>}
      closeButtonProps={{ "aria-label": "Close" }}
    >
      {order && <Life key={order.orderId} order={order} />}
    </Drawer>
  );
}

function Life({ order }: { order: Order }) {
  const { orders } = useApi();
  const { known } = useAccountOrders();
  const events = lifeOf(known, order.orderId);
  const annotation = annotationOf(known, order.orderId);
  const fills = useQuery({
    queryKey: ["executions", order.accountId, order.orderId],
    queryFn: async ({ signal }) =>
      (await orders.listExecutions({ accountId: order.accountId, orderId: order.orderId, pageSize: FILLS_SHOWN_MAX }, { signal }))
        .executions,
  });

  const facts: [string, string][] = [
    ["Type", `${TYPES[order.orderType]}, ${TIMES_IN_FORCE[order.timeInForce].short}`],
    ["Price", priceText(order)],
    ...optional("Worst price", order.protectionPrice && shown(order.protectionPrice.value)),
    ...optional("Expires", order.expireTime && dateAndClock(order.expireTime)),
    ...optional("Only", [order.postOnly && "rests", order.reduceOnly && "reduces"].filter(Boolean).join(", ")),
    ["Filled", `${shown(order.filledQuantity?.value ?? "0", 0)} of ${shown(order.quantity?.value, 0)}`],
    ["Average price", shown(order.averagePrice?.value, 2, 6)],
    ["Fees", `${shown(order.fees?.value, 2, 6)} ${order.feeAsset}`],
    ["Placed", dayAndClock(order.createTime)],
    ["Order", order.orderId],
    ...optional("Parent order", order.parentOrderId && `slice ${order.sliceNumber} of ${order.parentOrderId}`),
    ...optional("Made", order.external && "at the venue by hand, and adopted since"),
  ];

  return (
    <Stack gap="lg">
      <Group gap="xs">
        <OrderStateBadge order={order} />
        {order.reason && (
          <Text size="sm" c="dimmed">
            {reasonText(order.reason)}
          </Text>
        )}
      </Group>
      <Table variant="vertical" withRowBorders={false} layout="fixed" fz="xs">
        <Table.Tbody>
          {facts.map(([name, value]) => (
            <Table.Tr key={name}>
              <Table.Th w={110} bg="transparent" c="dimmed" fw={500}>
                {name}
              </Table.Th>
              <Table.Td style={{ overflowWrap: "anywhere" }}>{value}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
      {order.groupId !== "" && <OrderGroup accountId={order.accountId} groupId={order.groupId} ownId={order.orderId} />}
      <section aria-label="Its life">
        <Text size="xs" fw={600} component="h3" mt={0} mb="sm">
          Its life
        </Text>
        {events.length === 0 ? (
          <Text size="xs" c="dimmed">
            Placed before this page was opened. It last changed at {clock(order.updateTime)}.
          </Text>
        ) : (
          <Timeline active={events.length} bulletSize={12} lineWidth={2} color="indigo" className={classes.life!} data-testid="order-life">
            {events.map((event) => (
              <Timeline.Item key={String(event.accountSequence)} title={<Text size="sm">{EVENTS[event.kind]}</Text>}>
                <Text size="xs" c="dimmed">
                  {exactClock(event.time)}
                  {detailOf(event)}
                </Text>
              </Timeline.Item>
            ))}
          </Timeline>
        )}
      </section>
      <section aria-label="Fills">
        <Text size="xs" fw={600} component="h3" mt={0} mb="xs">
          Fills
        </Text>
        {fills.isPending ? (
          <Loading what="fills" />
        ) : fills.isError ? (
          <Failed what="the fills" error={fills.error} onRetry={() => void fills.refetch()} />
        ) : fills.data.length === 0 ? (
          <Empty title="Nothing has traded" />
        ) : (
          <Table fz="xs" aria-label="Fills of the order">
            <Table.Thead>
              <Table.Tr>
                <Table.Th>Time</Table.Th>
                <Table.Th className="number">Quantity</Table.Th>
                <Table.Th className="number">Price</Table.Th>
                <Table.Th className="number">Fee</Table.Th>
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {fills.data.map((fill) => (
                <Table.Tr key={fill.executionId}>
                  <Table.Td>{clock(fill.time)}</Table.Td>
                  <Table.Td className={`number ${fill.side === OrderSide.BUY ? "rising" : "falling"}`}>
                    {shown(fill.quantity?.value, 0)}
                  </Table.Td>
                  <Table.Td className="number">{shown(fill.price?.value)}</Table.Td>
                  <Table.Td className="number">{shown(fill.fee?.value, 2, 6)}</Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        )}
      </section>
      <Annotate key={`${annotation.note}\n${annotation.tags.join()}`} orderId={order.orderId} annotation={annotation} />
    </Stack>
  );
}

function optional(name: string, value: string | false | undefined): [string, string][] {
  return value ? [[name, value]] : [];
}

function detailOf({ kind, execution, order }: OrderEvent): string {
  if (kind === OrderEventKind.FILLED && execution) {
    return ` · ${shown(execution.quantity?.value, 0)} at ${shown(execution.price?.value)}`;
  }
  return order?.reason ? ` · ${reasonText(order.reason)}` : "";
}
