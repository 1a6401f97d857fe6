import type { ChartOptions, DeepPartial } from "lightweight-charts";

/** How every chart of the page looks. */
export const CHART: DeepPartial<ChartOptions> = {
  autoSize: true,
  layout: {
    background: { color: "transparent" },
    textColor: "#8f9aad",
    fontFamily: "'Inter Variable', system-ui, sans-serif",
    // It would need inline styles; the page names TradingView at its foot.
    attributionLogo: false,
  },
  grid: { vertLines: { color: "#1a2130" }, horzLines: { color: "#1a2130" } },
  crosshair: { mode: 0 },
};

export const CHART_LINE = "#273143";
