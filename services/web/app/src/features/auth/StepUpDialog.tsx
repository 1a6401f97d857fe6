import { Anchor, Button, Group, Modal, Stack, Text } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useEffect, useRef, useState, type FormEvent } from "react";
import { Link } from "react-router";
import { useApi, useIsStepUpAsked, useUser } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { PATHS } from "@/app/paths";
import { RefusalAlert } from "@/ui/states";
import { useSecondsLeft } from "@/ui/useSecondsLeft";
import { CODE_DIGITS, CodeField } from "./fields";

/** Above the form whose call asked for it, below what is told in passing. */
const ABOVE_OTHER_DIALOGS = 390;

/** Asks for a code when a call needs a fresh second factor; the call then goes on by itself. */
export function StepUpDialog() {
  const { stepUp } = useApi();
  const isAsked = useIsStepUpAsked();
  // Whoever waits does not wait for ever.
  useEffect(() => () => stepUp.answer(false), [stepUp]);
  return (
    <Modal
      opened={isAsked}
      onClose={() => stepUp.answer(false)}
      title="Is it you?"
      centered
      size="sm"
      zIndex={ABOVE_OTHER_DIALOGS}
      // Not by the window's own keys: the dialog below hears those too, and would close with this one.
      closeOnEscape={false}
      onKeyDown={(event) => event.key === "Escape" && stepUp.answer(false)}
      closeButtonProps={{ "aria-label": "Close" }}
    >
      <Asking />
    </Modal>
  );
}

function Asking() {
  const { stepUp } = useApi();
  const user = useUser();
  if (user.totpEnabled) return <Prove />;
  return (
    <Stack gap="sm">
      <Text size="sm">
        This needs a second factor: a code of an authenticator app on your phone. You have not set one up yet; it takes a minute.
      </Text>
      <Group justify="flex-end" gap="xs">
        <Button variant="default" onClick={() => stepUp.answer(false)}>
          Not now
        </Button>
        <Button component={Link} to={PATHS.security} onClick={() => stepUp.answer(false)}>
          Set it up
        </Button>
      </Group>
    </Stack>
  );
}

function Prove() {
  const { auth, session, stepUp } = useApi();
  const [code, setCode] = useState("");
  const field = useRef<HTMLInputElement>(null);
  const proving = useMutation({
    mutationFn: (digits: string) => session.proving(auth.stepUp({ requestId: newRequestId(), code: digits })),
    onSuccess: () => stepUp.answer(true),
    onError: (error) => {
      if (refusalOf(error).reason === "CODE_INVALID") setCode("");
      field.current?.focus();
    },
  });
  const secondsLeft = useSecondsLeft(proving.error);
  const prove = (digits: string) => {
    if (!proving.isPending && secondsLeft === 0 && digits.length === CODE_DIGITS) proving.mutate(digits);
  };
  return (
    <form
      aria-label="Fresh second factor"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        prove(code);
      }}
    >
      <Stack gap="sm">
        <Text size="sm">Type the code that your authenticator app shows now. It counts for five minutes.</Text>
        {proving.error && <RefusalAlert error={proving.error} />}
        <CodeField ref={field} value={code} onChange={setCode} onComplete={prove} data-autofocus autoFocus />
        <Group justify="space-between" gap="xs">
          <Anchor component={Link} to={PATHS.security} size="sm" c="dimmed" onClick={() => stepUp.answer(false)}>
            Lost the app?
          </Anchor>
          <Button type="submit" loading={proving.isPending} disabled={secondsLeft > 0 || code.length < CODE_DIGITS}>
            Go on
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
