import { Center, SegmentedControl, useComputedColorScheme } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { AreaSeries, createChart, LineType, type IChartApi, type ISeriesApi, type UTCTimestamp } from "lightweight-charts";
import { useEffect, useRef, useState } from "react";
import { useApi } from "@/api/clients";
import { COLORS } from "@/app/theme";
import { shown } from "@/lib/decimal";
import { dateAndClock } from "@/lib/time";
import { chartOf } from "@/ui/chart";
import { Panel } from "@/ui/Panel";
import { Empty, Failed, Loading } from "@/ui/states";
import classes from "./EquityChart.module.css";
import { drawnOf, PERIODS, startOf, type Period } from "./equity";

/** No period has more points than fit one page. */
const POINTS_MAX = 5_000;
/** A point is at most so much younger than the chart. */
const REFRESH_MILLISECONDS = 60_000;

/** What the account was worth over time. */
export function EquityChart({ accountId }: { accountId: string }) {
  const { portfolio } = useApi();
  const [period, setPeriod] = useState<Period>("1D");
  const query = useQuery({
    queryKey: ["equity", accountId, period],
    queryFn: ({ signal }) => {
      const startTime = startOf(period, Date.now());
      const { resolution } = PERIODS[period];
      return portfolio.getEquityHistory({ accountId, resolution, pageSize: POINTS_MAX, ...(startTime && { startTime }) }, { signal });
    },
    refetchInterval: REFRESH_MILLISECONDS,
  });
  const points = query.data?.points ?? [];
  return (
    <Panel
      title={`Worth over time${query.data ? `, in ${query.data.valuationAsset}` : ""}`}
      aside={
        <SegmentedControl
          size="xs"
          aria-label="Period"
          value={period}
          onChange={(value) => setPeriod(value as Period)}
          data={Object.keys(PERIODS)}
        />
      }
    >
      <div className={classes.frame}>
        {query.isPending ? (
          <Loading what="what it was worth" />
        ) : query.isError && points.length === 0 ? (
          <Failed what="what it was worth" error={query.error} onRetry={() => void query.refetch()} />
        ) : points.length === 0 ? (
          <Center h="100%">
            <Empty title="Nothing has changed in this time">What it is worth is noted whenever it changes.</Empty>
          </Center>
        ) : (
          <Drawn key={period} points={points} isTimed={PERIODS[period].seconds !== undefined && period !== "1Y"} />
        )}
      </div>
    </Panel>
  );
}

interface DrawnProps {
  points: Parameters<typeof drawnOf>[0];
  /** Whether hours are told apart. */
  isTimed: boolean;
}

function Drawn({ points, isTimed }: DrawnProps) {
  const scheme = useComputedColorScheme("dark");
  const colors = COLORS[scheme];
  const box = useRef<HTMLDivElement>(null);
  const drawn = useRef<{ chart: IChartApi; series: ISeriesApi<"Area"> }>(undefined);
  useEffect(() => {
    const chart = createChart(box.current!, {
      ...chartOf(scheme),
      rightPriceScale: { borderColor: colors.line },
      timeScale: { borderColor: colors.line, timeVisible: isTimed, secondsVisible: false },
    });
    // Where nothing changed there is no point: the one before holds on.
    const series = chart.addSeries(AreaSeries, {
      lineType: LineType.WithSteps,
      lineColor: colors.curve,
      lineWidth: 2,
      topColor: `${colors.curve}44`,
      bottomColor: `${colors.curve}00`,
    });
    drawn.current = { chart, series };
    return () => chart.remove();
  }, [isTimed, scheme]);
  useEffect(() => {
    drawn.current?.series.setData(drawnOf(points).map(({ time, value }) => ({ time: time as UTCTimestamp, value })));
    drawn.current?.chart.timeScale().fitContent();
  }, [points, scheme]);
  const [first, last] = [points[0]!, points.at(-1)!];
  return (
    <div
      ref={box}
      className={classes.chart}
      role="img"
      aria-label={`From ${shown(first.equity?.value)} on ${dateAndClock(first.time)} to ${shown(last.equity?.value)} on ${dateAndClock(last.time)}`}
      data-testid="equity-chart"
      data-points={points.length}
    />
  );
}
