import { ScrollArea, Table } from "@mantine/core";
import type { Balance } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { shown } from "@/lib/decimal";
import { Empty } from "@/ui/states";
import classes from "./tables.module.css";

export function BalancesTable({ balances }: { balances: readonly Balance[] }) {
  if (balances.length === 0) return <Empty title="No balances" />;
  return (
    <ScrollArea type="scroll">
      <Table className={classes.table!} aria-label="Balances">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Asset</Table.Th>
            <Table.Th className="number">Total</Table.Th>
            <Table.Th className="number">Set aside</Table.Th>
            <Table.Th className="number">Available</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {balances.map(({ asset, total, reserved, available }) => (
            <Table.Tr key={asset}>
              <Table.Td>{asset}</Table.Td>
              <Table.Td className="number">{shown(total?.value)}</Table.Td>
              <Table.Td className="number">{shown(reserved?.value)}</Table.Td>
              <Table.Td className="number">{shown(available?.value)}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </ScrollArea>
  );
}
