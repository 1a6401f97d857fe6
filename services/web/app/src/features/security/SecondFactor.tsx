import { Anchor, Button, Group, PasswordInput, Stack, Text } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation } from "@tanstack/react-query";
import { useEffect, useRef, useState, type FormEvent } from "react";
import { useApi, useUser } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { CODE_DIGITS, CodeField, RecoveryCodeField } from "@/features/auth/fields";
import { Panel } from "@/ui/Panel";
import { ShownOnce } from "@/ui/ShownOnce";
import { Failed, Loading, RefusalAlert } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import { useSecondsLeft } from "@/ui/useSecondsLeft";
import { imageOf, inGroups } from "./factor";
import classes from "./SecondFactor.module.css";

type Doing = "nothing" | "settingUp" | "replacingCodes" | "disabling" | { codes: readonly string[] };

/** Sets the second factor up, gives it up, and replaces what stands in for a lost app. */
export function SecondFactor() {
  const user = useUser();
  // Kept here and not by whether one is enabled: the codes are shown after that has changed.
  const [doing, setDoing] = useState<Doing>("nothing");
  const rest = () => setDoing("nothing");

  return (
    <Panel title="Second factor" aside={<Tag color={user.totpEnabled ? "teal" : "gray"}>{user.totpEnabled ? "On" : "Off"}</Tag>}>
      <div className={classes.body}>
        {doing === "settingUp" ? (
          <SetUp onEnabled={(codes) => setDoing({ codes })} onCancel={rest} />
        ) : doing === "replacingCodes" ? (
          <ReplaceCodes onReplaced={(codes) => setDoing({ codes })} onCancel={rest} />
        ) : doing === "disabling" ? (
          <Disable onDone={rest} />
        ) : doing !== "nothing" ? (
          <RecoveryCodes codes={doing.codes} onDone={rest} />
        ) : user.totpEnabled ? (
          <Stack gap="sm">
            <Text size="sm">Signing in asks for a code of your authenticator app; so does what could hand your account to others.</Text>
            <Group gap="xs">
              <Button size="xs" variant="default" onClick={() => setDoing("replacingCodes")}>
                New recovery codes
              </Button>
              <Button size="xs" variant="default" onClick={() => setDoing("disabling")}>
                Disable
              </Button>
            </Group>
          </Stack>
        ) : (
          <Stack gap="sm" align="flex-start">
            <Text size="sm">
              A code of an authenticator app, asked for beside your password: who learns your password still does not get in. API keys need
              it.
            </Text>
            <Button size="xs" onClick={() => setDoing("settingUp")}>
              Set up a second factor
            </Button>
          </Stack>
        )}
      </div>
    </Panel>
  );
}

function SetUp({ onEnabled, onCancel }: { onEnabled(codes: readonly string[]): void; onCancel(): void }) {
  const { auth, session } = useApi();
  const [code, setCode] = useState("");
  const field = useRef<HTMLInputElement>(null);
  // A secret that was not proved is replaced by asking again, so each asking is one of its own.
  const making = useMutation({ mutationFn: (password: string) => auth.setupTotp({ requestId: newRequestId(), password }) });
  const { mutate: make } = making;
  useEffect(() => make(""), [make]);
  // Of who signed in a while ago; once asked for, the field stays until the password is right.
  const [asksPassword, setAsksPassword] = useState(false);
  const makingReason = making.error ? refusalOf(making.error).reason : "";
  if (makingReason === "PASSWORD_REQUIRED" && !asksPassword) setAsksPassword(true);

  const enabling = useMutation({
    mutationFn: (digits: string) => session.proving(auth.enableTotp({ requestId: newRequestId(), code: digits })),
    onSuccess: ({ recoveryCodes }) => {
      onEnabled(recoveryCodes);
      void session.reload().catch(() => {});
    },
    onError: (error) => {
      const { reason } = refusalOf(error);
      if (reason === "CODE_INVALID") setCode("");
      // The answer that said so was lost.
      if (reason === "TOTP_ENABLED") void session.reload().catch(() => {});
      field.current?.focus();
    },
  });
  const secondsLeft = useSecondsLeft(enabling.error);
  const enable = (digits: string) => {
    if (!enabling.isPending && secondsLeft === 0 && digits.length === CODE_DIGITS) enabling.mutate(digits);
  };

  if (asksPassword && !making.data) {
    return <PasswordFirst isPending={making.isPending} error={making.error} onPassword={make} onCancel={onCancel} />;
  }
  if (making.isError) return <Failed what="a new secret" error={making.error} onRetry={() => make("")} />;
  if (!making.data) return <Loading what="a new secret" />;
  return (
    <form
      aria-label="Set up a second factor"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        enable(code);
      }}
    >
      <div className={classes.setUp}>
        <img
          className={classes.image}
          src={imageOf(making.data.qrSvg)}
          width={200}
          height={200}
          alt="The secret as an image for the authenticator app to scan; it is written out beside it."
        />
        <Stack gap="sm" className={classes.steps!}>
          <Text size="sm">
            1. Scan the image with an authenticator app, or type this secret into it:
            <code className={classes.secret} data-testid="totp-secret">
              {inGroups(making.data.secret)}
            </code>
          </Text>
          <Text size="sm">2. Type the code that the app shows now.</Text>
          {enabling.error && <RefusalAlert error={enabling.error} />}
          <CodeField ref={field} value={code} onChange={setCode} onComplete={enable} maw={220} />
          <Group gap="xs">
            <Button type="submit" size="xs" loading={enabling.isPending} disabled={secondsLeft > 0 || code.length < CODE_DIGITS}>
              Enable
            </Button>
            <Button size="xs" variant="default" onClick={onCancel}>
              Cancel
            </Button>
          </Group>
        </Stack>
      </div>
    </form>
  );
}

interface PasswordFirstProps {
  isPending: boolean;
  error: Error | null;
  onPassword(password: string): void;
  onCancel(): void;
}

/** A session that was opened a while ago may be in other hands by now: its owner shows that it is not. */
function PasswordFirst({ isPending, error, onPassword, onCancel }: PasswordFirstProps) {
  const [password, setPassword] = useState("");
  const [hasEdited, setHasEdited] = useState(false);
  const secondsLeft = useSecondsLeft(error);
  const reason = error ? refusalOf(error).reason : "";
  const isWrong = reason === "CREDENTIALS_INVALID" && !hasEdited;
  return (
    <form
      aria-label="Your password first"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        if (isPending || secondsLeft > 0 || password === "") return;
        setHasEdited(false);
        onPassword(password);
      }}
    >
      <Stack gap="sm" maw={340}>
        <Text size="sm">You signed in a while ago, so your password is asked for once more.</Text>
        {error && reason !== "CREDENTIALS_INVALID" && reason !== "PASSWORD_REQUIRED" && <RefusalAlert error={error} />}
        <PasswordInput
          label="Password"
          name="password"
          autoComplete="current-password"
          required
          autoFocus
          value={password}
          onChange={(event) => {
            setPassword(event.currentTarget.value);
            setHasEdited(true);
          }}
          error={isWrong && "This is not your password"}
        />
        <Group gap="xs">
          <Button type="submit" size="xs" loading={isPending} disabled={secondsLeft > 0 || password === ""}>
            Go on
          </Button>
          <Button size="xs" variant="default" onClick={onCancel}>
            Cancel
          </Button>
        </Group>
      </Stack>
    </form>
  );
}

function RecoveryCodes({ codes, onDone }: { codes: readonly string[]; onDone(): void }) {
  return (
    <ShownOnce
      label="Recovery codes"
      secret={codes.join("\n")}
      fileName="tradeloom-recovery-codes.txt"
      done="I have kept them"
      onDone={onDone}
    >
      <b>Recovery codes: shown only now.</b> Each lets you in once if you lose the app. Keep them where you keep what matters, not beside your
      password.
    </ShownOnce>
  );
}

function ReplaceCodes({ onReplaced, onCancel }: { onReplaced(codes: readonly string[]): void; onCancel(): void }) {
  const { auth } = useApi();
  const [code, setCode] = useState("");
  const field = useRef<HTMLInputElement>(null);
  const replacing = useMutation({
    mutationFn: (digits: string) => auth.regenerateRecoveryCodes({ requestId: newRequestId(), code: digits }),
    onSuccess: ({ recoveryCodes }) => onReplaced(recoveryCodes),
    onError: (error) => {
      if (refusalOf(error).reason === "CODE_INVALID") setCode("");
      field.current?.focus();
    },
  });
  const secondsLeft = useSecondsLeft(replacing.error);
  const replace = (digits: string) => {
    if (!replacing.isPending && secondsLeft === 0 && digits.length === CODE_DIGITS) replacing.mutate(digits);
  };
  return (
    <form
      aria-label="New recovery codes"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        replace(code);
      }}
    >
      <Stack gap="sm">
        <Text size="sm">The codes you have are void once you have new ones.</Text>
        {replacing.error && <RefusalAlert error={replacing.error} />}
        <CodeField ref={field} value={code} onChange={setCode} onComplete={replace} autoFocus maw={220} />
        <Group gap="xs">
          <Button type="submit" size="xs" loading={replacing.isPending} disabled={secondsLeft > 0 || code.length < CODE_DIGITS}>
            Make new codes
          </Button>
          <Button size="xs" variant="default" onClick={onCancel}>
            Cancel
          </Button>
        </Group>
      </Stack>
    </form>
  );
}

function Disable({ onDone }: { onDone(): void }) {
  const { auth, session } = useApi();
  const [password, setPassword] = useState("");
  const [code, setCode] = useState("");
  const [recoveryCode, setRecoveryCode] = useState("");
  const [isAppLost, setIsAppLost] = useState(false);
  const disabling = useMutation({
    mutationFn: () =>
      auth.disableTotp({ requestId: newRequestId(), password, ...(isAppLost ? { recoveryCode: recoveryCode.trim() } : { code }) }),
    onSuccess: async () => {
      // Every access token says that there is one: the present one is refused from now on.
      await session.renew(session.generation).catch(() => {});
      await session.reload().catch(() => {});
      notifications.show({ color: "yellow", title: "Second factor disabled", message: "Your password alone lets you in again." });
      onDone();
    },
    onError: (error) => {
      const { reason } = refusalOf(error);
      if (reason === "CODE_INVALID") setCode("");
      if (reason === "TOTP_NOT_ENABLED") void session.reload().catch(() => {});
    },
  });
  const secondsLeft = useSecondsLeft(disabling.error);
  const isWhole = password !== "" && (isAppLost ? recoveryCode.trim() !== "" : code.length === CODE_DIGITS);
  const isWrongPassword = disabling.error !== null && refusalOf(disabling.error).reason === "CREDENTIALS_INVALID";
  return (
    <form
      aria-label="Disable the second factor"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        if (!disabling.isPending && secondsLeft === 0 && isWhole) disabling.mutate();
      }}
    >
      <Stack gap="sm" maw={340}>
        <Text size="sm">Your password alone will let in whoever knows it, and API keys can no longer be made.</Text>
        {disabling.error && !isWrongPassword && <RefusalAlert error={disabling.error} />}
        <PasswordInput
          label="Password"
          name="password"
          autoComplete="current-password"
          required
          autoFocus
          value={password}
          onChange={(event) => {
            setPassword(event.currentTarget.value);
            if (isWrongPassword) disabling.reset();
          }}
          error={isWrongPassword && "This is not your password"}
        />
        {isAppLost ? (
          <RecoveryCodeField value={recoveryCode} onChange={setRecoveryCode} />
        ) : (
          <CodeField value={code} onChange={setCode} onComplete={() => {}} />
        )}
        <Anchor component="button" type="button" size="sm" ta="left" onClick={() => setIsAppLost(!isAppLost)}>
          {isAppLost ? "Use the authenticator app" : "Use a recovery code instead"}
        </Anchor>
        <Group gap="xs">
          <Button type="submit" size="xs" color="red" loading={disabling.isPending} disabled={secondsLeft > 0 || !isWhole}>
            Disable
          </Button>
          <Button size="xs" variant="default" onClick={onDone}>
            Keep it
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
