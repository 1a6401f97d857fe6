import { Table, Text } from "@mantine/core";
import { Aggressor } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { clock } from "@/lib/time";
import { Empty } from "@/ui/states";
import { priceText, volumeText } from "./prices";
import type { Tape } from "./tape";
import classes from "./Trades.module.css";

/** The newest trades of the market, newest first. */
export function Trades({ tape, places }: { tape: Tape; places: number }) {
  if (tape.trades.length === 0) return <Empty title="Waiting for the next trade" />;
  return (
    <>
      <Table
        fz={12}
        verticalSpacing={1.5}
        horizontalSpacing={6}
        withRowBorders={false}
        className={classes.trades!}
        aria-label="Market trades"
        data-testid="trades"
      >
        <Table.Tbody>
          {tape.trades.map((trade) => (
            <Table.Tr key={String(trade.sequence)}>
              <Table.Td className={colorOf(trade.aggressor)}>{priceText(trade.price, places)}</Table.Td>
              <Table.Td className="number">{volumeText(trade.quantity)}</Table.Td>
              <Table.Td className={`number ${classes.time}`} c="dimmed">
                {clock(trade.time)}
              </Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
      {tape.hasGap && (
        <Text size="xs" c="dimmed" p={12}>
          Some trades are left out here: the connection was cut or slow.
        </Text>
      )}
    </>
  );
}

function colorOf(aggressor: Aggressor): string {
  return aggressor === Aggressor.BUYER ? "rising" : aggressor === Aggressor.SELLER ? "falling" : "";
}
