import { createTheme, Modal, type CSSVariablesResolver, type MantineColorsTuple } from "@mantine/core";

/** Night blue greys, lightest first, as Mantine counts them. */
const night: MantineColorsTuple = [
  "#dfe5ef", "#b6bfce", "#8f9aad", "#5d687c", "#273143", "#1c2432", "#151b27", "#0b0e14", "#090c11", "#06080c",
];

/** What both schemes name alike, in CSS and on charts. */
export const COLORS = {
  dark: {
    page: night[7],
    panel: night[6],
    line: night[4],
    grid: "#1a2130",
    dimmed: night[2],
    hover: night[5],
    chosen: night[4],
    outline: night[3],
    warning: "#ffd43b",
    rising: "#2fc08c",
    falling: "#f2646f",
    curve: "#748ffc",
  },
  light: {
    page: "#eef1f6",
    panel: "#ffffff",
    line: "#d5dbe5",
    grid: "#e9edf3",
    dimmed: "#56617a",
    hover: "#f0f3f8",
    chosen: "#e1e7f2",
    outline: "#8f9aad",
    warning: "#8a5a00",
    rising: "#0e7a54",
    falling: "#c22d3b",
    curve: "#3b5bdb",
  },
} as const;
export type Scheme = keyof typeof COLORS;

export const theme = createTheme({
  colors: { dark: night },
  primaryColor: "indigo",
  primaryShade: { light: 6, dark: 5 },
  fontFamily: "'Inter Variable', system-ui, sans-serif",
  fontFamilyMonospace: "ui-monospace, 'SF Mono', Menlo, Consolas, monospace",
  fontSizes: { xs: "12px", sm: "13px", md: "14px", lg: "16px", xl: "20px" },
  defaultRadius: "sm",
  cursorType: "pointer",
  focusRing: "auto",
  respectReducedMotion: true,
  components: {
    Modal: Modal.extend({ styles: { content: { background: "var(--panel)" }, header: { background: "var(--panel)" } } }),
  },
});

function variables(scheme: Scheme): Record<string, string> {
  const own = Object.fromEntries(Object.entries(COLORS[scheme]).map(([name, color]) => [`--${name}`, color]));
  return { ...own, "--mantine-color-body": COLORS[scheme].page, "--mantine-color-dimmed": COLORS[scheme].dimmed, "--mantine-color-error": COLORS[scheme].falling };
}

export const cssVariables: CSSVariablesResolver = () => ({ variables: {}, light: variables("light"), dark: variables("dark") });
