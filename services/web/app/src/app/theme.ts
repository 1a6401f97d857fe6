import { createTheme, Modal, type CSSVariablesResolver, type MantineColorsTuple } from "@mantine/core";

/** Night blue greys, lightest first, as Mantine counts them. */
const night: MantineColorsTuple = [
  "#dfe5ef", "#b6bfce", "#8f9aad", "#5d687c", "#273143", "#1c2432", "#151b27", "#0b0e14", "#090c11", "#06080c",
];

export const RISING = "#2fc08c";
export const FALLING = "#f2646f";

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

export const cssVariables: CSSVariablesResolver = () => ({
  variables: { "--rising": RISING, "--falling": FALLING, "--panel": night[6], "--line": night[4], "--dimmed": night[2] },
  light: {},
  dark: { "--mantine-color-dimmed": night[2], "--mantine-color-error": FALLING },
});
