import { Anchor, Button, Stack, Text, Title } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation } from "@tanstack/react-query";
import { useRef, useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import type { Proof } from "@/api/session";
import { RefusalAlert } from "@/ui/states";
import { useSecondsLeft } from "@/ui/useSecondsLeft";
import { CODE_DIGITS, CodeField, RecoveryCodeField } from "./fields";

/** So few recovery codes make others advisable. */
const RECOVERY_CODES_FEW = 3;

/** Finishes a sign-in that asked for a second factor. */
export function SecondStep({ challenge, onVoid }: { challenge: string; onVoid(because?: string): void }) {
  const { session } = useApi();
  const [code, setCode] = useState("");
  const [recoveryCode, setRecoveryCode] = useState("");
  const [isAppLost, setIsAppLost] = useState(false);
  const field = useRef<HTMLInputElement>(null);

  const proving = useMutation({
    mutationFn: (proof: Proof) => session.answerChallenge(challenge, proof),
    onSuccess: (left, proof) => {
      if (!("recoveryCode" in proof)) return;
      notifications.show({
        color: left <= RECOVERY_CODES_FEW ? "yellow" : "gray",
        title: `${left} recovery code${left === 1 ? "" : "s"} left`,
        message: left <= RECOVERY_CODES_FEW ? "Make new ones in your account, under Security." : "The one you used is void now.",
        autoClose: 15_000,
      });
    },
    onError: (error) => {
      const refusal = refusalOf(error);
      if (refusal.reason === "CHALLENGE_INVALID") return onVoid(refusal.message);
      if (refusal.reason === "CODE_INVALID") setCode("");
      field.current?.focus();
    },
  });
  const secondsLeft = useSecondsLeft(proving.error);
  const isHeld = proving.isPending || secondsLeft > 0;
  const prove = (proof: Proof) => {
    if (!isHeld) proving.mutate(proof);
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (isAppLost) prove({ recoveryCode: recoveryCode.trim() });
    else if (code.length === CODE_DIGITS) prove({ code });
  };

  return (
    <form onSubmit={submit} aria-label="Second step">
      <Stack gap="sm">
        <div>
          <Title order={2} size="h4">
            Second step
          </Title>
          <Text size="sm" c="dimmed" mt={4}>
            {isAppLost ? "Each of your recovery codes lets you in once." : "Type the code that your authenticator app shows now."}
          </Text>
        </div>
        {proving.error && <RefusalAlert error={proving.error} />}
        {isAppLost ? (
          <RecoveryCodeField key="recovery" ref={field} value={recoveryCode} onChange={setRecoveryCode} autoFocus />
        ) : (
          <CodeField key="code" ref={field} value={code} onChange={setCode} onComplete={(whole) => prove({ code: whole })} autoFocus />
        )}
        <Button type="submit" loading={proving.isPending} disabled={secondsLeft > 0} fullWidth mt="xs">
          Sign in
        </Button>
        <Anchor
          component="button"
          type="button"
          size="sm"
          onClick={() => {
            setIsAppLost(!isAppLost);
            if (secondsLeft === 0) proving.reset();
          }}
        >
          {isAppLost ? "Use the authenticator app" : "Use a recovery code instead"}
        </Anchor>
        <Anchor component="button" type="button" size="sm" c="dimmed" onClick={() => onVoid()}>
          Sign in as somebody else
        </Anchor>
      </Stack>
    </form>
  );
}
