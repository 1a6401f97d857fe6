import { Anchor, Button, Stack, Text, TextInput, Title } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { Link } from "react-router";
import { useApi, useSession } from "@/api/clients";
import { refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { PATHS } from "@/app/paths";
import { RefusalAlert } from "@/ui/states";
import { useSecondsLeft } from "@/ui/useSecondsLeft";
import { EntryPage } from "./EntryPage";
import { NewPasswordFields, newPasswordProblem } from "./fields";

/** Asks for the link by mail; with the token of one, sets the new password. */
export function ResetPasswordPage({ token }: { token: string | undefined }) {
  const [isAskingAnew, setIsAskingAnew] = useState(false);
  const { phase } = useSession();
  return (
    <EntryPage
      beside={
        <Anchor component={Link} to={phase === "signedIn" ? PATHS.home : PATHS.signIn} size="sm" ta="center">
          {phase === "signedIn" ? "Back" : "Back to signing in"}
        </Anchor>
      }
    >
      {token !== undefined && !isAskingAnew ? <SetPassword token={token} onAskAnew={() => setIsAskingAnew(true)} /> : <AskForLink />}
    </EntryPage>
  );
}

function AskForLink() {
  const { session } = useApi();
  const [email, setEmail] = useState("");
  const asking = useMutation({
    mutationFn: (address: string) => session.auth.requestPasswordReset({ requestId: newRequestId(), email: address }),
  });
  const refusal = asking.error ? refusalOf(asking.error) : undefined;
  const problem = violationOf(refusal, "email");
  const secondsLeft = useSecondsLeft(asking.error);

  if (asking.isSuccess) {
    return (
      <Stack gap="sm" role="status">
        <Title order={2} size="h4">
          Look into your mail
        </Title>
        <Text size="sm">
          If somebody is registered as <b>{asking.variables}</b>, a link for a new password is on its way. It works once, for 30 minutes.
        </Text>
        <Anchor component="button" type="button" size="sm" ta="left" onClick={() => asking.reset()}>
          Try another address
        </Anchor>
      </Stack>
    );
  }
  return (
    <form
      aria-label="Ask for a new password"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        if (!asking.isPending && secondsLeft === 0) asking.mutate(email.trim());
      }}
    >
      <Stack gap="sm">
        <div>
          <Title order={2} size="h4">
            Forgot your password?
          </Title>
          <Text size="sm" c="dimmed" mt={4}>
            We send a link to set a new one to the address that you signed up with.
          </Text>
        </div>
        {refusal && !problem && <RefusalAlert error={asking.error} />}
        <TextInput
          label="E-mail"
          name="email"
          type="email"
          autoComplete="username"
          required
          autoFocus
          value={email}
          onChange={(event) => {
            setEmail(event.currentTarget.value);
            if (secondsLeft === 0) asking.reset();
          }}
          error={problem}
        />
        <Button type="submit" loading={asking.isPending} disabled={secondsLeft > 0} fullWidth mt="xs">
          Send the link
        </Button>
      </Stack>
    </form>
  );
}

function SetPassword({ token, onAskAnew }: { token: string; onAskAnew(): void }) {
  const { session } = useApi();
  const [password, setPassword] = useState("");
  const [again, setAgain] = useState("");
  // Of these contents: setting the same password again after a lost answer is the same intent.
  const [requestId, setRequestId] = useState(newRequestId);
  const setting = useMutation({
    mutationFn: () => session.auth.resetPassword({ requestId, token, newPassword: password }),
    // If it was the person who is signed in here, that session has ended: asking shows it.
    onSuccess: () => session.snapshot().phase === "signedIn" && void session.renew(session.generation).catch(() => {}),
  });
  const refusal = setting.error ? refusalOf(setting.error) : undefined;
  const edit = (set: (value: string) => void) => (value: string) => {
    set(value);
    setRequestId(newRequestId());
    if (!setting.isPending) setting.reset();
  };

  if (setting.isSuccess) {
    return (
      <Stack gap="sm" role="status">
        <Title order={2} size="h4">
          Your password is set
        </Title>
        <Text size="sm">All your sessions have ended. Sign in with the new password.</Text>
        <Button component={Link} to={PATHS.signIn}>
          Sign in
        </Button>
      </Stack>
    );
  }
  if (refusal?.reason === "LINK_INVALID") {
    return (
      <Stack gap="sm">
        <Title order={2} size="h4">
          Set a new password
        </Title>
        <RefusalAlert error={setting.error} />
        <Button onClick={onAskAnew}>Ask for another link</Button>
      </Stack>
    );
  }
  return (
    <form
      aria-label="Set a new password"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        if (!setting.isPending && password === again) setting.mutate();
      }}
    >
      <Stack gap="sm">
        <div>
          <Title order={2} size="h4">
            Set a new password
          </Title>
          <Text size="sm" c="dimmed" mt={4}>
            It ends all your sessions. A second factor stays as it is.
          </Text>
        </div>
        {refusal && !newPasswordProblem(refusal) && <RefusalAlert error={setting.error} />}
        <NewPasswordFields password={password} again={again} onPassword={edit(setPassword)} onAgain={edit(setAgain)} refusal={refusal} />
        <Button type="submit" loading={setting.isPending} disabled={again !== password} fullWidth mt="xs">
          Set the password
        </Button>
      </Stack>
    </form>
  );
}
