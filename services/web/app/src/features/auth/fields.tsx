import { PasswordInput, TextInput, type PasswordInputProps, type TextInputProps } from "@mantine/core";
import { violationOf, type Refusal } from "@/api/refusal";

/** As the contract asks of everyone. */
export const PASSWORD_LENGTH_MIN = 12;
export const CODE_DIGITS = 6;

interface CodeProps extends Omit<TextInputProps, "value" | "onChange"> {
  value: string;
  onChange(code: string): void;
  /** With the sixth digit, wherever it came from: typed, pasted or filled in. */
  onComplete(code: string): void;
}

/** The digits that the authenticator app shows now. */
export function CodeField({ value, onChange, onComplete, ...rest }: CodeProps) {
  return (
    <TextInput
      label="Six-digit code"
      name="code"
      inputMode="numeric"
      autoComplete="one-time-code"
      required
      {...rest}
      value={value}
      onChange={(event) => {
        const code = event.currentTarget.value.replace(/\D/g, "").slice(0, CODE_DIGITS);
        if (code === value) return;
        onChange(code);
        if (code.length === CODE_DIGITS) onComplete(code);
      }}
    />
  );
}

/** One of the codes that are kept for when the app is lost. */
export function RecoveryCodeField({ value, onChange, ...rest }: Omit<CodeProps, "onComplete">) {
  return (
    <TextInput
      label="Recovery code"
      name="recovery_code"
      autoComplete="off"
      autoCapitalize="none"
      spellCheck={false}
      maxLength={32}
      required
      {...rest}
      value={value}
      onChange={(event) => onChange(event.currentTarget.value)}
    />
  );
}

interface NewPasswordProps {
  password: string;
  again: string;
  onPassword(value: string): void;
  onAgain(value: string): void;
  refusal: Refusal | undefined;
}

/** A password that is to be: typed twice. */
export function NewPasswordFields({ password, again, onPassword, onAgain, refusal }: NewPasswordProps) {
  const field: Partial<PasswordInputProps> = { autoComplete: "new-password", required: true, minLength: PASSWORD_LENGTH_MIN };
  return (
    <>
      <PasswordInput
        {...field}
        label="New password"
        name="new_password"
        description={`At least ${PASSWORD_LENGTH_MIN} characters.`}
        value={password}
        onChange={(event) => onPassword(event.currentTarget.value)}
        error={newPasswordProblem(refusal)}
      />
      <PasswordInput
        {...field}
        label="New password, again"
        name="new_password_again"
        value={again}
        onChange={(event) => onAgain(event.currentTarget.value)}
        error={again.length >= PASSWORD_LENGTH_MIN && again !== password && "The two are not the same"}
      />
    </>
  );
}

/** What a refusal says of the new password; undefined if it is about something else. */
export function newPasswordProblem(refusal: Refusal | undefined): string | undefined {
  if (refusal?.reason === "PASSWORD_TOO_COMMON") return refusal.message;
  return violationOf(refusal, "new_password");
}
