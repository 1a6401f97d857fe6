import { Group, Text } from "@mantine/core";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { InstrumentState } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { useQuery } from "@tanstack/react-query";
import { useEffect } from "react";
import { useApi } from "@/api/clients";
import type { StreamState } from "@/api/resuming";
import { placesOf } from "@/lib/decimal";
import { StreamBadge } from "@/ui/StreamBadge";
import { InstrumentPicker } from "./InstrumentPicker";
import classes from "./MarketBar.module.css";
import { percentText, priceText, volumeText } from "./prices";
import type { Tape } from "./tape";

const DAY_REFRESH_MILLISECONDS = 10_000;

interface Props {
  instrument: Instrument;
  tape: Tape;
  stream: StreamState;
  onChoose(instrumentId: string): void;
}

/** What an instrument is and how its day went. */
export function MarketBar({ instrument, tape, stream, onChoose }: Props) {
  const { marketData } = useApi();
  const { instrumentId } = instrument;
  const day = useQuery({
    queryKey: ["day", instrumentId],
    queryFn: async ({ signal }) => {
      const { candles } = await marketData.getCandles({ instrumentId, barSize: "1d", pageSize: 1 }, { signal });
      return candles.at(-1) ?? null;
    },
    refetchInterval: DAY_REFRESH_MILLISECONDS,
  });
  const places = placesOf(instrument.tickSize?.value ?? "0.01");
  const today = day.data;
  const price = priceText(tape.lastPrice, places);
  useEffect(() => {
    document.title = `${price} ${instrumentId} · Tradeloom`;
    return () => {
      document.title = "Tradeloom";
    };
  }, [price, instrumentId]);
  const change = today && tape.lastPrice !== undefined && today.open > 0 ? tape.lastPrice / today.open - 1 : undefined;

  return (
    <section className={classes.bar} aria-label="Market">
      <InstrumentPicker chosen={instrumentId} onChoose={onChoose} />
      <div className={classes.last}>
        <Text
          className={tape.direction === "up" ? "rising" : tape.direction === "down" ? "falling" : ""}
          size="xl"
          fw={600}
          lh={1.1}
          data-testid="last-price"
          aria-label="Last price"
        >
          {price}
        </Text>
        <Text size="xs" c="dimmed" truncate>
          {instrument.description}
        </Text>
      </div>
      <dl className={classes.day}>
        <Item name="Day">
          {change === undefined ? "–" : <span className={change < 0 ? "falling" : "rising"}>{percentText(change)}</span>}
        </Item>
        <Item name="High">{priceText(today?.high, places)}</Item>
        <Item name="Low">{priceText(today?.low, places)}</Item>
        <Item name={`Volume ${instrument.baseAsset}`}>{today ? volumeText(today.volume) : "–"}</Item>
      </dl>
      <Group gap="xs" ml="auto">
        {instrument.state === InstrumentState.HALTED && (
          <Text size="xs" c="var(--warning)" fw={600}>
            Not trading
          </Text>
        )}
        <StreamBadge what="Ticks" state={stream} />
      </Group>
    </section>
  );
}

function Item({ name, children }: { name: string; children: React.ReactNode }) {
  return (
    <div>
      <dt>{name}</dt>
      <dd>{children}</dd>
    </div>
  );
}
