import { ScrollArea, Table } from "@mantine/core";
import type { MarginStanding } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { product, shown } from "@/lib/decimal";
import classes from "./tables.module.css";

/** Where a margin account stands in each asset that its positions settle in. */
export function MarginStandings({ margins }: { margins: readonly MarginStanding[] }) {
  return (
    <ScrollArea type="scroll">
      <Table className={classes.table!} aria-label="Margin">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Asset</Table.Th>
            <Table.Th className="number">Wallet</Table.Th>
            <Table.Th className="number">Unrealized</Table.Th>
            <Table.Th className="number">Initial margin</Table.Th>
            <Table.Th className="number">Maintenance margin</Table.Th>
            <Table.Th className="number">Available</Table.Th>
            <Table.Th className="number">Used up</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {margins.map((margin) => (
            <Table.Tr key={margin.asset}>
              <Table.Td>{margin.asset}</Table.Td>
              <Table.Td className="number">{shown(margin.walletBalance?.value, 2, 2)}</Table.Td>
              <Table.Td className="number">{shown(margin.unrealizedProfit?.value, 2, 2)}</Table.Td>
              <Table.Td className="number">{shown(margin.initialMargin?.value, 2, 2)}</Table.Td>
              <Table.Td className="number">{shown(margin.maintenanceMargin?.value, 2, 2)}</Table.Td>
              <Table.Td className="number">{shown(margin.available?.value, 2, 2)}</Table.Td>
              <Table.Td className="number">{usedUp(margin)}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </ScrollArea>
  );
}

/** The margin ratio in percent: at 100 all is liquidated. */
function usedUp({ marginRatio, marginBalance }: MarginStanding): string {
  if (marginBalance === undefined) return "–";
  return marginRatio === undefined ? "all" : `${shown(product(marginRatio.value, "100"), 2, 2)} %`;
}
