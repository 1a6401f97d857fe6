import { Drawer, Group, Stack, Table, Text } from "@mantine/core";
import type { ParentOrder, SkippedSlices } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { useAccountOrders } from "@/features/orders/AccountOrdersProvider";
import { OrderStateBadge } from "@/features/orders/OrdersTable";
import { priceText, TYPES } from "@/features/orders/words";
import { shown } from "@/lib/decimal";
import { dateAndClock, dayAndClock } from "@/lib/time";
import { PagedRows, Row, Rows } from "@/ui/Rows";
import { Empty, Failed } from "@/ui/states";
import { CancelParent } from "./CancelParent";
import { ParentStateTags, ProgressBar } from "./ParentsTable";
import { useChildren, useParent } from "./useParents";
import { isHeldUp, isUnderWay, reasonText, termsOf, titleOf } from "./words";

/** One parent order: what it was to do, how far it is, its children, and what it has skipped. */
export function ParentLife({ parent, onClose }: { parent: ParentOrder | undefined; onClose(): void }) {
  return (
    <Drawer
      opened={parent !== undefined}
      onClose={onClose}
      position="right"
      size={460}
      styles={{ content: { background: "var(--panel)" }, header: { background: "var(--panel)" } }}
      title={parent && <Text fw={600}>{titleOf(parent)}</Text>}
      closeButtonProps={{ "aria-label": "Close" }}
    >
      {parent && <Life key={parent.parentOrderId} listed={parent} />}
    </Drawer>
  );
}

function Life({ listed }: { listed: ParentOrder }) {
  const query = useParent(listed.accountId, listed.parentOrderId);
  const parent = query.data?.parentOrder ?? listed;
  const { refusal } = parent;
  const facts: [string, string][] = [
    ...termsOf(parent),
    ["Slices", `${parent.sliceNumber} of ${parent.slices} over with`],
    ["Working", shown(parent.workingQuantity?.value ?? "0", 0)],
    ["Filled", shown(parent.filledQuantity?.value ?? "0", 0)],
    ["Average price", shown(parent.averagePrice?.value, 2, 6)],
    ["Fees", `${shown(parent.fees?.value ?? "0", 2, 6)} ${parent.feeAsset}`],
    ["Starts", dateAndClock(parent.startTime)],
    ...optional("Ends", parent.endTime && dateAndClock(parent.endTime)),
    ...optional("Next", isUnderWay(parent) && parent.nextTime && dayAndClock(parent.nextTime)),
    ["Placed", dayAndClock(parent.createTime)],
    ...optional("Deployment", parent.deploymentId),
    ["Parent order", parent.parentOrderId],
  ];
  return (
    <Stack gap="lg">
      <Stack gap="xs">
        <Group gap="xs" justify="space-between">
          <Group gap="xs">
            <ParentStateTags parent={parent} />
            {parent.reason && (
              <Text size="sm" c="dimmed">
                {reasonText(parent.reason)}
              </Text>
            )}
          </Group>
          {isUnderWay(parent) && <CancelParent parent={parent} />}
        </Group>
        <ProgressBar parent={parent} />
        {refusal && (
          <Text size="sm" c={isHeldUp(parent) ? "var(--warning)" : "dimmed"} role="status">
            {isHeldUp(parent) ? "Held up, and tried again: " : "Was held up: "}
            slice {refusal.sliceNumber} was refused at {dayAndClock(refusal.time)}: {refusal.message}
          </Text>
        )}
        {query.isError && <Failed what="how it is now" error={query.error} onRetry={() => void query.refetch()} />}
      </Stack>
      <Table variant="vertical" withRowBorders={false} layout="fixed" fz="xs">
        <Table.Tbody>
          {facts.map(([name, value]) => (
            <Table.Tr key={name}>
              <Table.Th w={130} bg="transparent" c="dimmed" fw={500}>
                {name}
              </Table.Th>
              <Table.Td style={{ overflowWrap: "anywhere" }}>{value}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
      <Children accountId={parent.accountId} parentOrderId={parent.parentOrderId} />
      {query.data && query.data.skips.length > 0 && <Skipped skips={query.data.skips} />}
    </Stack>
  );
}

function Children({ accountId, parentOrderId }: { accountId: string; parentOrderId: string }) {
  const { known } = useAccountOrders();
  const query = useChildren(accountId, parentOrderId);
  const children = query.data?.pages.flatMap((page) => page.orders) ?? [];
  return (
    <section aria-label="Its orders">
      <Text size="xs" fw={600} component="h3" mt={0} mb={0}>
        Its orders
      </Text>
      <PagedRows what="its orders" query={query} items={children} empty={<Empty title="It has placed none yet" />} more="Show older ones">
        {(listed) => {
          const order = known.orders.get(listed.orderId) ?? listed;
          const average = order.averagePrice ? ` at ${shown(order.averagePrice.value, 2, 6)}` : "";
          return (
            <Row
              key={order.orderId}
              title={
                <>
                  Slice {order.sliceNumber} <OrderStateBadge order={order} />
                </>
              }
              details={[
                `${shown(order.filledQuantity?.value ?? "0", 0)} of ${shown(order.quantity?.value, 0)} filled${average}`,
                order.limitPrice ? `${TYPES[order.orderType]} ${priceText(order)}` : TYPES[order.orderType],
                dayAndClock(order.createTime),
              ].join(" · ")}
            />
          );
        }}
      </PagedRows>
    </section>
  );
}

function Skipped({ skips }: { skips: readonly SkippedSlices[] }) {
  return (
    <section aria-label="Skipped">
      <Text size="xs" fw={600} component="h3" mt={0} mb={0}>
        Skipped
      </Text>
      <Rows label="Skipped slices">
        {skips.map(({ firstSlice, lastSlice, reason, message, time }) => (
          <Row
            key={firstSlice}
            title={firstSlice === lastSlice ? `Slice ${firstSlice}` : `Slices ${firstSlice} to ${lastSlice}`}
            details={`${message || reason} · ${dayAndClock(time)}`}
          />
        ))}
      </Rows>
    </section>
  );
}

function optional(name: string, value: string | false | undefined): [string, string][] {
  return value ? [[name, value]] : [];
}
