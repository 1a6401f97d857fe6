import { Button, Center, Loader, Stack, Text } from "@mantine/core";
import { IconAlertTriangle, IconInbox } from "@tabler/icons-react";
import type { ReactNode } from "react";
import { refusalOf } from "@/api/refusal";
import classes from "./states.module.css";

export function Loading({ what }: { what: string }) {
  return (
    <Center mih={80} h="100%" role="status" aria-label={`Loading ${what}`}>
      <Loader size="sm" type="dots" />
    </Center>
  );
}

export function Empty({ title, children }: { title: string; children?: ReactNode }) {
  return (
    <Center mih={80} h="100%" p="md">
      <Stack align="center" gap={4}>
        <IconInbox size={22} stroke={1.4} color="var(--dimmed)" aria-hidden />
        <Text size="sm" fw={500}>
          {title}
        </Text>
        {children && (
          <Text size="xs" c="dimmed" ta="center" maw={360} component="div">
            {children}
          </Text>
        )}
      </Stack>
    </Center>
  );
}

/** A look-up that failed, its reason, and a way to ask again. */
export function Failed({ what, error, onRetry }: { what: string; error: unknown; onRetry?: () => void }) {
  return (
    <Center mih={80} h="100%" p="md">
      <Stack gap="xs" maw={420}>
        <RefusalAlert title={`Could not load ${what}`} error={error} />
        {onRetry && (
          <Button size="xs" variant="default" onClick={onRetry}>
            Try again
          </Button>
        )}
      </Stack>
    </Center>
  );
}

export function RefusalAlert({ title, error }: { title?: string; error: unknown }) {
  const refusal = isRefusal(error) ? error : refusalOf(error);
  return (
    <div className={classes.refusal} role="alert" data-reason={refusal.reason}>
      <IconAlertTriangle size={17} aria-hidden className={classes.icon} />
      <div>
        {title && (
          <Text size="sm" fw={600}>
            {title}
          </Text>
        )}
        <Text size="sm">{refusal.message}</Text>
        {refusal.violations.map(({ field, description }) => (
          <Text size="xs" key={`${field} ${description}`}>
            <b>{field}</b>: {description}
          </Text>
        ))}
        {refusal.reason && (
          <Text size="xs" c="dimmed" ff="monospace" mt={2}>
            {refusal.domain && `${refusal.domain} · `}
            {refusal.reason}
          </Text>
        )}
      </div>
    </div>
  );
}

function isRefusal(error: unknown): error is ReturnType<typeof refusalOf> {
  return typeof error === "object" && error !== null && "violations" in error && "reason" in error;
}
