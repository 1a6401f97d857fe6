import { Alert, Anchor, Button, Center, Group, Paper, PasswordInput, Stack, Text, TextInput, Title } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { FIELD_OF_REASON, refusalOf, violationOf, type Refusal } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { RefusalAlert } from "@/ui/states";

const PASSWORD_LENGTH_MIN = 12;

export function SignInPage({ because }: { because?: string }) {
  const { session } = useApi();
  const [registers, setRegisters] = useState(false);
  const [email, setEmail] = useState("");
  const [fullName, setFullName] = useState("");
  const [password, setPassword] = useState("");
  // Of one form's contents: registering again after a lost answer is the same registration.
  const [requestId, setRequestId] = useState(newRequestId);

  const entering = useMutation({
    mutationFn: async () => {
      if (registers) await session.register(email.trim(), password, fullName.trim(), requestId);
      else await session.signIn(email.trim(), password);
    },
  });
  const refusal = entering.error ? refusalOf(entering.error) : undefined;

  const edit = (set: (value: string) => void) => (value: string) => {
    set(value);
    setRequestId(newRequestId());
    if (!entering.isPending) entering.reset();
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (!entering.isPending) entering.mutate();
  };
  const change = () => {
    setRegisters(!registers);
    entering.reset();
  };

  return (
    <Center mih="100%" p="md" component="main">
      <Stack w="100%" maw={380} gap="lg">
        <Group gap="sm" justify="center">
          <img src="/favicon.svg" width={34} height={34} alt="" />
          <Title order={1} size="h3">
            Tradeloom
          </Title>
        </Group>
        {because && !entering.error && (
          <Alert color="yellow" variant="light" role="status">
            {because}
          </Alert>
        )}
        <Paper withBorder p="lg" radius="md" bg="var(--panel)">
          <form onSubmit={submit} aria-label={registers ? "Register" : "Sign in"}>
            <Stack gap="sm">
              <Title order={2} size="h4">
                {registers ? "Open your account" : "Sign in"}
              </Title>
              {refusal && !isBesideAField(refusal) && <RefusalAlert error={refusal} />}
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
              <Button type="submit" loading={entering.isPending} fullWidth mt="xs">
                {registers ? "Register" : "Sign in"}
              </Button>
            </Stack>
          </form>
        </Paper>
        <Text size="sm" ta="center" c="dimmed">
          {registers ? "Registered already? " : "New here? "}
          <Anchor component="button" type="button" size="sm" onClick={change}>
            {registers ? "Sign in" : "Register"}
          </Anchor>
        </Text>
      </Stack>
    </Center>
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
