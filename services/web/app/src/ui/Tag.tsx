import type { ReactNode } from "react";
import classes from "./Tag.module.css";

/** A word in a colour of Mantine's. */
export function Tag({ color, children, ...rest }: { color: string; children: ReactNode; "data-state"?: string; title?: string }) {
  return (
    <span className={classes.tag} style={{ "--tag": `var(--mantine-color-${color}-4)` } as React.CSSProperties} {...rest}>
      {children}
    </span>
  );
}
