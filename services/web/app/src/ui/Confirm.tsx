import { Button, Group, Modal, Stack, Text } from "@mantine/core";
import type { ReactNode } from "react";
import { RefusalAlert } from "./states";

interface Props {
  opened: boolean;
  title: string;
  /** What it does, on the button. */
  action: string;
  /** What not doing it is, on the other button. */
  leave?: string;
  isAsking: boolean;
  error: unknown;
  onConfirm(): void;
  onClose(): void;
  children: ReactNode;
}

/** Asks before something that cannot be taken back. */
export function Confirm({ opened, title, action, leave = "Cancel", isAsking, error, onConfirm, onClose, children }: Props) {
  return (
    <Modal opened={opened} onClose={onClose} title={title} centered closeOnEscape={!isAsking} closeButtonProps={{ "aria-label": "Close" }}>
      <Stack gap="md">
        <Text size="sm" component="div">
          {children}
        </Text>
        {error !== null && error !== undefined && <RefusalAlert error={error} />}
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={onClose}>
            {leave}
          </Button>
          <Button color="red" loading={isAsking} onClick={onConfirm}>
            {action}
          </Button>
        </Group>
      </Stack>
    </Modal>
  );
}
