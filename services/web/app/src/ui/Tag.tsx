import type { ReactNode } from "react";
import classes from "./Tag.module.css";

/** A word in a colour of Mantine's. */
export function Tag({ color, children, ...rest }: { color: string; children: ReactNode; "data-state"?: string; title?: string }) {
  const shades = { "--tag-on-dark": `var(--mantine-color-${color}-4)`, "--tag-on-light": `var(--mantine-color-${color}-9)` };
  return (
    <span className={classes.tag} style={shades as React.CSSProperties} {...rest}>
      {children}
    </span>
  );
}
