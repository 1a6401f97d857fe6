import { Alert, Anchor, Button, PasswordInput, Stack, Text, TextInput, Title } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { Link } from "react-router";
import { useApi } from "@/api/clients";
import { FIELD_OF_REASON, refusalOf, violationOf, type Refusal } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { PATHS } from "@/app/paths";
import { RefusalAlert } from "@/ui/states";
import { useSecondsLeft } from "@/ui/useSecondsLeft";
import { EntryPage } from "./EntryPage";
import { PASSWORD_LENGTH_MIN } from "./fields";
import { SecondStep } from "./SecondStep";

export function SignInPage({ because }: { because?: string }) {
  const { session } = useApi();
  const [registers, setRegisters] = useState(false);
  const [email, setEmail] = useState("");
  const [fullName, setFullName] = useState("");
  const [password, setPassword] = useState("");
  // Of one form's contents: registering again after a lost answer is the same registration.
  const [requestId, setRequestId] = useState(newRequestId);
  const [challenge, setChallenge] = useState<string>();
  const [notice, setNotice] = useState(because);

  const entering = useMutation({
    mutationFn: async () => {
      if (!registers) return session.signIn(email.trim(), password);
      await session.register(email.trim(), password, fullName.trim(), requestId);
      notifications.show({
        color: "teal",
        title: "Welcome to Tradeloom",
        message: `A mail to ${email.trim()} is on its way. Open the link in it to verify your address.`,
        autoClose: 15_000,
      });
      return undefined;
    },
    onSuccess: (asked) => {
      if (asked === undefined) return;
      setPassword("");
      setNotice(undefined);
      setChallenge(asked);
    },
  });
  const refusal = entering.error ? refusalOf(entering.error) : undefined;
  const secondsLeft = useSecondsLeft(entering.error);

  const edit = (set: (value: string) => void) => (value: string) => {
    set(value);
    setRequestId(newRequestId());
    // While it must be waited, what is typed changes nothing about that.
    if (!entering.isPending && secondsLeft === 0) entering.reset();
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    setNotice(undefined);
    if (!entering.isPending && secondsLeft === 0) entering.mutate();
  };
  const change = () => {
    setRegisters(!registers);
    entering.reset();
  };

  if (challenge !== undefined) {
    return (
      <EntryPage>
        <SecondStep
          challenge={challenge}
          onVoid={(because) => {
            setChallenge(undefined);
            setNotice(because);
          }}
        />
      </EntryPage>
    );
  }

  return (
    <EntryPage
      notice={
        notice &&
        !entering.error && (
          <Alert color="yellow" variant="light" role="status">
            {notice}
          </Alert>
        )
      }
      beside={
        <Text size="sm" ta="center" c="dimmed">
          {registers ? "Registered already? " : "New here? "}
          <Anchor component="button" type="button" size="sm" onClick={change}>
            {registers ? "Sign in" : "Register"}
          </Anchor>
        </Text>
      }
    >
      <form onSubmit={submit} aria-label={registers ? "Register" : "Sign in"}>
        <Stack gap="sm">
          <Title order={2} size="h4">
            {registers ? "Open your account" : "Sign in"}
          </Title>
          {refusal && !isBesideAField(refusal) && <RefusalAlert error={entering.error} />}
          <TextInput
            label="E-mail"
            name="email"
            type="email"
            autoComplete="username"
            required
            data-autofocus
            autoFocus
            value={email}
            onChange={(event) => edit(setEmail)(event.currentTarget.value)}
            error={besideField(refusal, "email")}
          />
          {registers && (
            <TextInput
              label="Name"
              name="name"
              autoComplete="name"
              maxLength={200}
              value={fullName}
              onChange={(event) => edit(setFullName)(event.currentTarget.value)}
              error={besideField(refusal, "full_name")}
            />
          )}
          <PasswordInput
            label="Password"
            name="password"
            autoComplete={registers ? "new-password" : "current-password"}
            required
            {...(registers && {
              minLength: PASSWORD_LENGTH_MIN,
              description: `At least ${PASSWORD_LENGTH_MIN} characters.`,
            })}
            value={password}
            onChange={(event) => edit(setPassword)(event.currentTarget.value)}
            error={besideField(refusal, "password")}
          />
          <Button type="submit" loading={entering.isPending} disabled={secondsLeft > 0} fullWidth mt="xs">
            {registers ? "Register" : "Sign in"}
          </Button>
          {!registers && (
            <Anchor component={Link} to={PATHS.resetPassword} size="sm" ta="center">
              Forgot your password?
            </Anchor>
          )}
        </Stack>
      </form>
    </EntryPage>
  );
}

const FIELDS = ["email", "full_name", "password"];

function besideField(refusal: Refusal | undefined, field: string): string | undefined {
  if (!refusal) return undefined;
  return violationOf(refusal, field) ?? (FIELD_OF_REASON[refusal.reason] === field ? refusal.message : undefined);
}

function isBesideAField(refusal: Refusal): boolean {
  return FIELDS.some((field) => besideField(refusal, field) !== undefined);
}
