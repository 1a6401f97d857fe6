import { Button, PasswordInput, Stack, Text } from "@mantine/core";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { NewPasswordFields, newPasswordProblem } from "@/features/auth/fields";
import { Panel } from "@/ui/Panel";
import { RefusalAlert } from "@/ui/states";
import { useSecondsLeft } from "@/ui/useSecondsLeft";
import { SESSIONS_KEY } from "./Sessions";

export function ChangePassword() {
  const { auth } = useApi();
  const queries = useQueryClient();
  const [current, setCurrent] = useState("");
  const [password, setPassword] = useState("");
  const [again, setAgain] = useState("");
  // Of these contents: the same change after a lost answer, or after the second factor was asked for.
  const [requestId, setRequestId] = useState(newRequestId);
  const changing = useMutation({
    mutationFn: () => auth.changePassword({ requestId, currentPassword: current, newPassword: password }),
    onSuccess: () => {
      setCurrent("");
      setPassword("");
      setAgain("");
      setRequestId(newRequestId());
      void queries.invalidateQueries({ queryKey: SESSIONS_KEY });
    },
  });
  const refusal = changing.error ? refusalOf(changing.error) : undefined;
  const secondsLeft = useSecondsLeft(changing.error);
  const isWrong = refusal?.reason === "CREDENTIALS_INVALID";
  const edit = (set: (value: string) => void) => (value: string) => {
    set(value);
    setRequestId(newRequestId());
    if (!changing.isPending && secondsLeft === 0) changing.reset();
  };

  return (
    <Panel title="Password">
      <form
        aria-label="Change the password"
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          if (!changing.isPending && secondsLeft === 0 && password === again) changing.mutate();
        }}
      >
        <Stack gap="sm" p="sm" maw={340}>
          {refusal && !isWrong && !newPasswordProblem(refusal) && <RefusalAlert error={changing.error} />}
          <PasswordInput
            label="Present password"
            name="current_password"
            autoComplete="current-password"
            required
            value={current}
            onChange={(event) => edit(setCurrent)(event.currentTarget.value)}
            error={isWrong && "This is not your password"}
          />
          <NewPasswordFields password={password} again={again} onPassword={edit(setPassword)} onAgain={edit(setAgain)} refusal={refusal} />
          <Button type="submit" size="xs" loading={changing.isPending} disabled={secondsLeft > 0 || password !== again} w="fit-content">
            Change it
          </Button>
          <Text size="xs" c="dimmed" role="status">
            {changing.isSuccess
              ? `Your password is changed. Other sessions that ended: ${changing.data.endedSessionCount}.`
              : "It ends every other session of yours."}
          </Text>
        </Stack>
      </form>
    </Panel>
  );
}
