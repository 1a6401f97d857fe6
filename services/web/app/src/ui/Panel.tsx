import { Group, Text } from "@mantine/core";
import type { ReactNode } from "react";
import classes from "./Panel.module.css";

interface Props {
  title: string;
  aside?: ReactNode;
  className?: string;
  children: ReactNode;
}

export function Panel({ title, aside, className, children }: Props) {
  return (
    <section className={`${classes.panel} ${className ?? ""}`} aria-label={title}>
      <Group className={classes.head} justify="space-between" gap="xs" wrap="nowrap">
        <Text size="xs" fw={600} component="h2" m={0}>
          {title}
        </Text>
        {aside}
      </Group>
      <div className={classes.body}>{children}</div>
    </section>
  );
}
