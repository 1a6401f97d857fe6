import type { ChartOptions, DeepPartial } from "lightweight-charts";
import { COLORS, type Scheme } from "@/app/theme";

/** How every chart of the page looks. */
export const chartOf = (scheme: Scheme): DeepPartial<ChartOptions> => ({
  autoSize: true,
  layout: {
    background: { color: "transparent" },
    textColor: COLORS[scheme].dimmed,
    fontFamily: "'Inter Variable', system-ui, sans-serif",
    // It would need inline styles; the page names TradingView at its foot.
    attributionLogo: false,
  },
  grid: { vertLines: { color: COLORS[scheme].grid }, horzLines: { color: COLORS[scheme].grid } },
  crosshair: { mode: 0 },
});
