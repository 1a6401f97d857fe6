import { ScrollArea, Table } from "@mantine/core";
import type { Position } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { Link } from "react-router";
import { tradePath } from "@/app/paths";
import { shown, signOf } from "@/lib/decimal";
import { Empty } from "@/ui/states";
import { ClosePosition } from "./ClosePosition";
import classes from "./tables.module.css";

export function PositionsTable({ positions }: { positions: readonly Position[] }) {
  // Of margin accounts alone.
  const isBacked = positions.some(({ funding }) => funding !== undefined);
  if (positions.length === 0) return <Empty title="No positions">What a filled order buys is shown here.</Empty>;
  return (
    <ScrollArea type="scroll">
      <Table className={classes.table!} aria-label="Positions">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Instrument</Table.Th>
            <Table.Th className="number">Quantity</Table.Th>
            <Table.Th className="number">Average price</Table.Th>
            <Table.Th className="number">Mark</Table.Th>
            <Table.Th className="number">Unrealized</Table.Th>
            <Table.Th className="number">Realized</Table.Th>
            <Table.Th className="number">Fees</Table.Th>
            {isBacked && <Table.Th className="number">Funding</Table.Th>}
            {isBacked && (
              <Table.Th className="number" title="By the instrument's margin tiers. Binance's are assumed until an operator puts them; the venue goes by its own">
                Liquidation price
              </Table.Th>
            )}
            <Table.Th aria-label="Close" />
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {positions.map((position) => (
            <Table.Tr key={position.instrumentId}>
              <Table.Td>
                <Link to={tradePath(position.instrumentId)} className={classes.link!}>
                  {position.instrumentId}
                </Link>
              </Table.Td>
              <Table.Td className="number">{shown(position.quantity?.value, 0)}</Table.Td>
              <Table.Td className="number">{shown(position.averagePrice?.value, 2, 6)}</Table.Td>
              <Table.Td className="number">{shown(position.markPrice?.value)}</Table.Td>
              <Table.Td className={`number ${profitColor(position.unrealizedProfit?.value)}`}>
                {shown(position.unrealizedProfit?.value, 2, 2)}
              </Table.Td>
              <Table.Td className={`number ${profitColor(position.realizedProfit?.value)}`}>
                {shown(position.realizedProfit?.value, 2, 2)}
              </Table.Td>
              <Table.Td className="number">{shown(position.fees?.value, 2, 4)}</Table.Td>
              {isBacked && <Table.Td className="number">{shown(position.funding?.value, 2, 4)}</Table.Td>}
              {isBacked && <Table.Td className="number">{shown(position.liquidationPrice?.value)}</Table.Td>}
              <Table.Td>{signOf(position.quantity?.value ?? "0") !== 0 && <ClosePosition position={position} />}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </ScrollArea>
  );
}

function profitColor(profit: string | undefined): string {
  const sign = signOf(profit ?? "0");
  return sign > 0 ? "rising" : sign < 0 ? "falling" : "";
}
