import { NativeSelect, TextInput } from "@mantine/core";
import { AccountKind } from "@gen/tradeloom/orders/v1/orders_pb.js";

export const LEVERAGE_MAX = 125;

interface Props {
  kind: AccountKind;
  leverage: string;
  onChange(kind: AccountKind, leverage: string): void;
  error: string | undefined;
}

/** What an account trades, and of a margin account its leverage. */
export function KindInputs({ kind, leverage, onChange, error }: Props) {
  return (
    <>
      <NativeSelect
        label="It trades"
        value={kind}
        data={[
          { value: String(AccountKind.CASH), label: "All but perpetual futures, with what it has" },
          { value: String(AccountKind.MARGIN), label: "Perpetual futures, on margin" },
        ]}
        onChange={(event) => onChange(Number(event.currentTarget.value) as AccountKind, leverage)}
      />
      {kind === AccountKind.MARGIN && (
        <TextInput
          label="Leverage"
          inputMode="numeric"
          value={leverage}
          onChange={(event) => onChange(kind, event.currentTarget.value.trim())}
          error={error}
        />
      )}
    </>
  );
}
