import { Button, Center, Group, SegmentedControl, Text, useComputedColorScheme } from "@mantine/core";
import type { Instrument, StreamCandlesResponse } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import {
  CandlestickSeries,
  createChart,
  HistogramSeries,
  type IChartApi,
  type ISeriesApi,
  type UTCTimestamp,
} from "lightweight-charts";
import { useEffect, useRef, useState } from "react";
import { NO_DEADLINE, useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { useResumingStream } from "@/api/useResumingStream";
import { COLORS, type Scheme } from "@/app/theme";
import { placesOf } from "@/lib/decimal";
import { secondsOf } from "@/lib/time";
import { chartOf } from "@/ui/chart";
import { Panel } from "@/ui/Panel";
import { StreamBadge } from "@/ui/StreamBadge";
import classes from "./CandleChart.module.css";
import { BAR_SIZES, CandleSeries, type Bar, type BarSize } from "./candleSeries";

const SNAPSHOT_BARS = 500;
const HISTORY_PAGE_BARS = 1_000;
/** Older bars are asked for when fewer than these lie left of what is shown. */
const HISTORY_MARGIN_BARS = 50;

/** The instrument's candles, growing as they form; older ones come while one scrolls back. */
export function CandleChart({ instrument }: { instrument: Instrument }) {
  const [barSize, setBarSize] = useState<BarSize>("1m");
  const scheme = useComputedColorScheme("dark");
  return (
    <Chart
      key={`${instrument.instrumentId} ${barSize} ${scheme}`}
      instrument={instrument}
      barSize={barSize}
      scheme={scheme}
      onBarSize={setBarSize}
    />
  );
}

interface Drawn {
  chart: IChartApi;
  candles: ISeriesApi<"Candlestick">;
  volumes: ISeriesApi<"Histogram">;
}

interface ChartProps {
  instrument: Instrument;
  barSize: BarSize;
  scheme: Scheme;
  onBarSize(size: BarSize): void;
}

function Chart({ instrument, barSize, scheme, onBarSize }: ChartProps) {
  const colors = COLORS[scheme];
  const { marketData } = useApi();
  const { instrumentId } = instrument;
  const places = placesOf(instrument.tickSize?.value ?? "0.01");
  const box = useRef<HTMLDivElement>(null);
  const drawn = useRef<Drawn>(undefined);
  const series = useRef(new CandleSeries());
  const [barCount, setBarCount] = useState(0);
  const [historyError, setHistoryError] = useState<unknown>();
  const isComplete = useRef(false);
  const loading = useRef<AbortController>(undefined);

  function draw(change: ReturnType<CandleSeries["take"]>) {
    const target = drawn.current;
    if (!target || change === "unchanged") return;
    if (change === "rebuilt") {
      target.candles.setData(series.current.all.map(candleOf));
      target.volumes.setData(series.current.all.map((bar) => volumeOf(bar, colors)));
    } else {
      for (const bar of change.tail) {
        target.candles.update(candleOf(bar));
        target.volumes.update(volumeOf(bar, colors));
      }
    }
    setBarCount(series.current.all.length);
  }

  /** Candles that open before `end`, or in a span that the stream could not replay. */
  async function loadHistory(range: { startTime?: bigint; endTime: bigint }) {
    if (loading.current) return;
    const stopping = new AbortController();
    loading.current = stopping;
    try {
      const { candles } = await marketData.getCandles(
        {
          instrumentId,
          barSize,
          pageSize: HISTORY_PAGE_BARS,
          endTime: { seconds: range.endTime },
          ...(range.startTime !== undefined && { startTime: { seconds: range.startTime } }),
        },
        { signal: stopping.signal },
      );
      if (stopping.signal.aborted) return;
      if (range.startTime === undefined && candles.length < HISTORY_PAGE_BARS) isComplete.current = true;
      setHistoryError(undefined);
      draw(series.current.take(candles));
    } catch (error) {
      if (!stopping.signal.aborted) setHistoryError(error);
    } finally {
      if (loading.current === stopping) loading.current = undefined;
    }
  }

  function loadOlder() {
    const oldest = series.current.all[0];
    if (oldest && !isComplete.current && !series.current.isFull) void loadHistory({ endTime: BigInt(oldest.time) });
  }

  useEffect(() => {
    const chart = createChart(box.current!, {
      ...chartOf(scheme),
      rightPriceScale: { borderColor: colors.line, scaleMargins: { top: 0.08, bottom: 0.22 } },
      timeScale: { borderColor: colors.line, timeVisible: !["1d", "1w"].includes(barSize), secondsVisible: false, rightOffset: 4 },
    });
    const candles = chart.addSeries(CandlestickSeries, {
      upColor: colors.rising,
      downColor: colors.falling,
      wickUpColor: colors.rising,
      wickDownColor: colors.falling,
      borderVisible: false,
      priceFormat: { type: "price", precision: places, minMove: 10 ** -places },
    });
    const volumes = chart.addSeries(HistogramSeries, { priceScaleId: "", priceFormat: { type: "volume" }, lastValueVisible: false, priceLineVisible: false });
    volumes.priceScale().applyOptions({ scaleMargins: { top: 0.84, bottom: 0 } });
    drawn.current = { chart, candles, volumes };
    chart.timeScale().subscribeVisibleLogicalRangeChange((range) => {
      if (range && range.from < HISTORY_MARGIN_BARS) loadOlder();
    });
    draw(series.current.all.length ? "rebuilt" : "unchanged");
    return () => {
      loading.current?.abort();
      loading.current = undefined;
      drawn.current = undefined;
      chart.remove();
    };
    // One chart for the life of this component: its key changes with instrument, bar size and colours.
  }, []);

  const stream = useResumingStream<StreamCandlesResponse, string>(`${instrumentId} ${barSize}`, () => ({
    open: (cursor, signal) =>
      marketData.streamCandles(
        { instrumentId, barSize, afterCursor: cursor ?? "", snapshotSize: SNAPSHOT_BARS },
        { signal, ...NO_DEADLINE },
      ),
    advance: (cursor, message) => message.cursor || cursor,
    onMessage: ({ candles, gap, deletion }) => {
      if (deletion?.startTime && deletion.endTime) {
        series.current.forget(secondsOf(deletion.startTime), secondsOf(deletion.endTime));
        draw("rebuilt");
      }
      draw(series.current.take(candles));
      if (gap?.startTime && gap.endTime) void loadHistory({ startTime: gap.startTime.seconds, endTime: gap.endTime.seconds });
    },
  }));

  return (
    <Panel
      title="Chart"
      className={classes.panel!}
      aside={
        <Group gap="xs" wrap="nowrap">
          <SegmentedControl
            size="xs"
            aria-label="Bar size"
            value={barSize}
            onChange={(value) => onBarSize(value as BarSize)}
            data={[...BAR_SIZES]}
          />
          <span className={classes.live}>
            <StreamBadge what="Candles" state={stream} />
          </span>
        </Group>
      }
    >
      <div className={classes.frame}>
        <div
          ref={box}
          className={classes.chart}
          role="img"
          aria-label={`Candles of ${instrumentId}, ${barSize} each`}
          data-testid="chart"
          data-bars={barCount}
        />
        {barCount === 0 && (
          <Center className={classes.over!}>
            <Text size="sm" c="dimmed" role="status">
              {stream.phase === "ended"
                ? stream.refusal.message
                : stream.phase === "live"
                  ? "No bar has formed yet."
                  : stream.phase === "waiting"
                    ? `${stream.refusal.message} Trying again …`
                    : "Loading candles …"}
            </Text>
          </Center>
        )}
        {historyError !== undefined && (
          <Button size="compact-xs" variant="default" className={classes.again!} title={refusalOf(historyError).message} onClick={loadOlder}>
            Older bars did not load: try again
          </Button>
        )}
      </div>
    </Panel>
  );
}

function candleOf({ time, open, high, low, close }: Bar) {
  return { time: time as UTCTimestamp, open, high, low, close };
}

function volumeOf({ time, open, close, volume }: Bar, { rising, falling }: { rising: string; falling: string }) {
  return { time: time as UTCTimestamp, value: volume, color: `${close >= open ? rising : falling}55` };
}
