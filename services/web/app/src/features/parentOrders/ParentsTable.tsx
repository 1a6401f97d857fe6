import { Progress, ScrollArea, Table } from "@mantine/core";
import { OrderSide } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { ParentOrderState, type ParentOrder } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { useState, type ReactNode } from "react";
import tableClasses from "@/features/orders/OrdersTable.module.css";
import { SIDES } from "@/features/orders/words";
import { shown } from "@/lib/decimal";
import { dayAndClock } from "@/lib/time";
import { Tag } from "@/ui/Tag";
import { CancelParent } from "./CancelParent";
import { ParentLife } from "./ParentLife";
import { isHeldUp, isUnderWay, kindOf, progressOf, reasonText, STATES, titleOf } from "./words";

interface Props {
  parents: readonly ParentOrder[];
  label: string;
  /** What stands in place of no rows; what is opened stays beside it. */
  empty: ReactNode;
}

/** Parent orders as rows; a row opens what became of it, and one that is under way can be canceled. */
export function ParentsTable({ parents, label, empty }: Props) {
  // It stays shown where the list no longer has it, such as one of those under way that has ended.
  const [opened, setOpened] = useState<ParentOrder>();
  const found = opened && (parents.find((parent) => parent.parentOrderId === opened.parentOrderId) ?? opened);
  return (
    <>
      {parents.length === 0 ? empty : <Rows parents={parents} label={label} onOpen={setOpened} />}
      <ParentLife parent={found} onClose={() => setOpened(undefined)} />
    </>
  );
}

function Rows({ parents, label, onOpen }: Omit<Props, "empty"> & { onOpen(parent: ParentOrder): void }) {
  return (
    <ScrollArea type="scroll" h="100%">
      <Table className={tableClasses.table} aria-label={label} highlightOnHover stickyHeader>
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Instrument</Table.Th>
            <Table.Th>Side</Table.Th>
            <Table.Th>Kind</Table.Th>
            <Table.Th>State</Table.Th>
            <Table.Th>Progress</Table.Th>
            <Table.Th className="number">Slices</Table.Th>
            <Table.Th className="number">Average</Table.Th>
            <Table.Th>Next</Table.Th>
            <Table.Th>Placed</Table.Th>
            <Table.Th aria-label="Cancel" />
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {parents.map((parent) => (
            <Table.Tr
              key={parent.parentOrderId}
              onClick={() => onOpen(parent)}
              className={tableClasses.row!}
              data-parent-order-id={parent.parentOrderId}
            >
              <Table.Td>
                <button type="button" className={tableClasses.open} aria-label={`Show ${titleOf(parent)}`}>
                  {parent.instrumentId}
                </button>
              </Table.Td>
              <Table.Td className={parent.side === OrderSide.BUY ? "rising" : "falling"}>{SIDES[parent.side]}</Table.Td>
              <Table.Td>{kindOf(parent)}</Table.Td>
              <Table.Td>
                <ParentStateTags parent={parent} />
              </Table.Td>
              <Table.Td>
                <ProgressBar parent={parent} />
              </Table.Td>
              <Table.Td className="number">
                {parent.sliceNumber} / {parent.slices}
                {parent.skippedSlices > 0 && `, ${parent.skippedSlices} skipped`}
              </Table.Td>
              <Table.Td className="number">{shown(parent.averagePrice?.value, 2, 6)}</Table.Td>
              <Table.Td className={tableClasses.time!}>{isUnderWay(parent) ? dayAndClock(parent.nextTime) : "–"}</Table.Td>
              <Table.Td className={tableClasses.time!}>{dayAndClock(parent.createTime)}</Table.Td>
              <Table.Td>{isUnderWay(parent) && <CancelParent parent={parent} isSmall />}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </ScrollArea>
  );
}

export function ParentStateTags({ parent }: { parent: ParentOrder }) {
  const { label, color } = STATES[parent.state];
  return (
    <>
      <Tag color={color} data-state={ParentOrderState[parent.state]} {...(parent.reason && { title: reasonText(parent.reason) })}>
        {label}
      </Tag>{" "}
      {isHeldUp(parent) && (
        <Tag color="orange" title={parent.refusal!.message}>
          Held up
        </Tag>
      )}
    </>
  );
}

export function ProgressBar({ parent }: { parent: ParentOrder }) {
  const { percent, text } = progressOf(parent);
  return (
    <div>
      <span>{text}</span>
      <Progress value={percent} size="xs" miw={110} color={isUnderWay(parent) ? "indigo" : "gray"} aria-label={`Progress: ${text}`} />
    </div>
  );
}
