import { Anchor, Button, Center, Loader, Stack, Text, VisuallyHidden } from "@mantine/core";
import { IconAlertTriangle, IconInbox } from "@tabler/icons-react";
import type { ReactNode } from "react";
import { Link } from "react-router";
import { inWords, isRefusal, mustWait, needsItsFields, refusalOf } from "@/api/refusal";
import { PATHS } from "@/app/paths";
import classes from "./states.module.css";
import { useSecondsLeft } from "./useSecondsLeft";

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

/** What helps against a refusal, where another page does. */
const HELP: Record<string, { path: string; label: string }> = {
  QUOTA_EXCEEDED: { path: PATHS.plan, label: "See your plan" },
  ENTITLEMENT_MISSING: { path: PATHS.plan, label: "See your plan" },
  EMAIL_NOT_VERIFIED: { path: PATHS.security, label: "Verify your address" },
};

export function RefusalAlert({ title, error }: { title?: string; error: unknown }) {
  const refusal = isRefusal(error) ? error : refusalOf(error);
  const secondsLeft = useSecondsLeft(error);
  const help = HELP[refusal.reason];
  return (
    <div className={classes.refusal} role="alert" data-reason={refusal.reason}>
      <IconAlertTriangle size={17} aria-hidden className={classes.icon} />
      <div>
        {title && (
          <Text size="sm" fw={600}>
            {title}
          </Text>
        )}
        {mustWait(refusal) && refusal.retryDelaySeconds !== undefined ? (
          <Text size="sm">
            {/* Said once; a count that is read out every second helps nobody. */}
            <VisuallyHidden>{refusal.message}</VisuallyHidden>
            <span aria-hidden data-testid="countdown">
              {refusal.what} {secondsLeft > 0 ? `Try again ${inWords(secondsLeft)}.` : "You can try again now."}
            </span>
          </Text>
        ) : (
          <Text size="sm">{refusal.message}</Text>
        )}
        {(needsItsFields(refusal) ? refusal.violations : []).map(({ field, description }) => (
          <Text size="xs" key={`${field} ${description}`}>
            <b>{field}</b>: {description}
          </Text>
        ))}
        {help && (
          <Anchor component={Link} to={help.path} size="sm">
            {help.label}
          </Anchor>
        )}
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
