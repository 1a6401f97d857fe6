import { Text, TextInput } from "@mantine/core";
import type { KeyboardEvent } from "react";
import { stepped, typed } from "@/lib/decimal";

interface Props {
  label: string;
  name: string;
  unit: string;
  /** What an arrow key moves it by; with shift it is ten times that. */
  step: string;
  value: string;
  placeholder?: string;
  isLocked?: boolean;
  onChange(value: string): void;
  problem: string | undefined;
}

/** A decimal as text; arrows move it by one step, with shift by ten. */
export function DecimalField({ label, name, unit, step, value, placeholder, isLocked = false, onChange, problem }: Props) {
  const stepping = (event: KeyboardEvent) => {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    event.preventDefault();
    const count = (event.key === "ArrowUp" ? 1 : -1) * (event.shiftKey ? 10 : 1);
    onChange(stepped(typed(value), step, count));
  };
  return (
    <TextInput
      label={label}
      name={name}
      inputMode="decimal"
      autoComplete="off"
      placeholder={placeholder}
      disabled={isLocked}
      rightSection={
        <Text size="xs" c="dimmed">
          {unit}
        </Text>
      }
      rightSectionWidth={64}
      value={value}
      onChange={(event) => onChange(event.currentTarget.value)}
      onKeyDown={stepping}
      error={problem}
    />
  );
}
