import { Button, ScrollArea, Table, Text } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import type { Difference, Reconciliation } from "@gen/tradeloom/execution/v1/execution_pb.js";
import { LiveState, type Account } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { shown } from "@/lib/decimal";
import { exactTime } from "@/lib/time";
import { Panel } from "@/ui/Panel";
import { PagedRows, Row } from "@/ui/Rows";
import { Empty } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import classes from "./Reconciliations.module.css";
import { reconciliationsKey, useReconciliations } from "./useLive";
import { CAUSES, DIFFERENCES, outcomeOf, scopeOf } from "./words";

/** All digits there are: what differs may be the last. */
const PLACES_MAX = 18;

/** How our record of the account compares with the venue's, newest first. */
export function Reconciliations({ account }: { account: Account }) {
  const query = useReconciliations(account.accountId);
  return (
    <Panel title={`Compared with ${account.venue}`} aside={account.liveState !== LiveState.UNCONFIRMED && <CompareNow accountId={account.accountId} />}>
      <Text size="xs" c="dimmed" px="sm" pt="sm">
        Orders, fills and balances are compared whenever the venue is connected anew, and every minute. Of those that come around by the minute and find
        nothing only the last is kept.
      </Text>
      <PagedRows
        what="the comparisons"
        query={query}
        items={query.data?.pages.flatMap((page) => page.reconciliations) ?? []}
        empty={<Empty title="Not compared yet">That begins when the account is confirmed.</Empty>}
        more="Show older comparisons"
      >
        {(each) => <Comparison key={each.reconciliationId} reconciliation={each} venue={account.venue} />}
      </PagedRows>
    </Panel>
  );
}

function Comparison({ reconciliation, venue }: { reconciliation: Reconciliation; venue: string }) {
  const { differences, problem, cause, endTime, createTime } = reconciliation;
  const { label, color } = outcomeOf(reconciliation);
  return (
    <Row
      data-testid="comparison"
      title={
        <>
          <Tag color={color}>{label}</Tag> {exactTime(endTime ?? createTime)}
        </>
      }
      details={
        <>
          {[CAUSES[cause], endTime && problem === "" && scopeOf(reconciliation), problem].filter(Boolean).join(" · ")}
          {differences.length > 0 && <Differences differences={differences} venue={venue} />}
        </>
      }
    />
  );
}

function Differences({ differences, venue }: { differences: readonly Difference[]; venue: string }) {
  return (
    <ScrollArea type="auto">
      <Table className={classes.differences!} aria-label="Differences" mt="xs">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>What</Table.Th>
            <Table.Th>Ours</Table.Th>
            <Table.Th>{venue}'s</Table.Th>
            <Table.Th>What was made of it</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {differences.map((each, index) => (
            <Table.Tr key={index}>
              <Table.Td>
                {DIFFERENCES[each.kind]}
                <div className={classes.subject}>{subjectOf(each)}</div>
              </Table.Td>
              <Table.Td>{each.ours === "" ? "nothing" : shown(each.ours, 0, PLACES_MAX)}</Table.Td>
              <Table.Td>{each.venues === "" ? "nothing" : shown(each.venues, 0, PLACES_MAX)}</Table.Td>
              <Table.Td className={classes.explanation!}>{each.explanation}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </ScrollArea>
  );
}

/** Which fill, asset or order it is about, by the ids that find it here and at the venue. */
function subjectOf({ subject, orderId, venueOrderId }: Difference): string {
  return [subject, orderId && `order ${orderId}`, venueOrderId && `the venue's ${venueOrderId}`].filter(Boolean).join(" · ");
}

function CompareNow({ accountId }: { accountId: string }) {
  const { execution } = useApi();
  const queries = useQueryClient();
  // One comparison for one wish: a repeat of a lost answer asks for no second one.
  const [requestId, setRequestId] = useState(newRequestId);
  const asking = useMutation({
    mutationFn: () => execution.reconcile({ requestId, accountId }),
    onSuccess: () => setRequestId(newRequestId()),
    onError: (error) => notifications.show({ color: "red", title: "Not compared", message: refusalOf(error).message }),
    onSettled: () => queries.invalidateQueries({ queryKey: reconciliationsKey(accountId) }),
  });
  return (
    <Button size="compact-xs" variant="default" loading={asking.isPending} onClick={() => asking.mutate()}>
      Compare now
    </Button>
  );
}
