import { Button, Group, Modal, MultiSelect, Radio, Select, Stack, Textarea, TextInput } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { ApiKeyScope } from "@gen/tradeloom/auth/v1/auth_pb.js";
import type { Account } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { isOutcomeLost, refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { ShownOnce } from "@/ui/ShownOnce";
import { RefusalAlert } from "@/ui/states";
import { EXPIRIES, expireTimeOf, networkProblem, networksOf, SCOPES } from "./apiKey";

const NAME_LENGTH_MAX = 100;

interface Props {
  opened: boolean;
  accounts: readonly Account[];
  onCreated(): Promise<void>;
  onClose(): void;
}

/** Makes a key and shows its secret, which this page then forgets. */
export function CreateApiKey({ opened, accounts, onCreated, onClose }: Props) {
  const [isBusy, setIsBusy] = useState(false);
  const [isShown, setIsShown] = useState(false);
  return (
    <Modal
      opened={opened}
      onClose={onClose}
      title={isShown ? "Your new API key" : "Create an API key"}
      centered
      // A secret that is shown once does not vanish by a slip.
      closeOnClickOutside={!isBusy && !isShown}
      closeOnEscape={!isBusy && !isShown}
      withCloseButton={!isShown}
      closeButtonProps={{ "aria-label": "Close" }}
    >
      <Form accounts={accounts} onBusy={setIsBusy} onShown={setIsShown} onCreated={onCreated} onClose={onClose} />
    </Modal>
  );
}

interface FormProps extends Omit<Props, "opened"> {
  onBusy(isBusy: boolean): void;
  onShown(isShown: boolean): void;
}

function Form({ accounts, onBusy, onShown, onCreated, onClose }: FormProps) {
  const { auth } = useApi();
  const [name, setName] = useState("");
  const [scope, setScope] = useState(ApiKeyScope.READ);
  const [accountIds, setAccountIds] = useState<string[]>([]);
  const [networks, setNetworks] = useState("");
  const [expiry, setExpiry] = useState("90");
  // Of these contents: made once, however often it is sent. Its expiry is fixed with them.
  const [intent, setIntent] = useState(newIntent);
  const creating = useMutation({
    mutationFn: () =>
      auth.createApiKey({
        requestId: intent.requestId,
        name: name.trim(),
        scope,
        accountIds,
        allowedNetworks: networksOf(networks),
        ...withExpiry(expireTimeOf(expiry, intent.begun)),
      }),
    onMutate: () => onBusy(true),
    onSuccess: () => {
      onShown(true);
      void onCreated();
    },
    onSettled: () => onBusy(false),
  });
  const refusal = creating.error ? refusalOf(creating.error) : undefined;
  const edit = <Value,>(set: (value: Value) => void) => (value: Value) => {
    set(value);
    setIntent(newIntent());
    creating.reset();
  };
  const done = () => {
    creating.reset();
    onShown(false);
    onClose();
  };

  if (creating.data) {
    const { secret } = creating.data;
    return secret ? (
      <ShownOnce label="Secret of the API key" secret={secret} done="I have kept it" onDone={done}>
        <b>Shown only now.</b> Your program exchanges it for access tokens that last 15 minutes, by <code>AuthService.ExchangeApiKey</code>.
      </ShownOnce>
    ) : (
      // The answer that had it was lost.
      <Stack gap="sm">
        The key was made, but its secret is shown only once and did not arrive. Revoke this key and create another.
        <Button onClick={done}>Close</Button>
      </Stack>
    );
  }

  return (
    <form
      aria-label="Create an API key"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        if (!creating.isPending) creating.mutate();
      }}
    >
      <Stack gap="sm">
        {refusal && !isBesideAField(creating.error) && (
          <RefusalAlert error={creating.error} {...(isOutcomeLost(refusal) && { title: "Perhaps made: send it again to be sure" })} />
        )}
        <TextInput
          label="Name"
          description="For you, such as “grid bot on the server”."
          required
          maxLength={NAME_LENGTH_MAX}
          data-autofocus
          value={name}
          onChange={(event) => edit(setName)(event.currentTarget.value)}
          error={violationOf(refusal, "name")}
        />
        <Radio.Group label="It may" value={String(scope)} onChange={(value) => edit(setScope)(Number(value))}>
          <Stack gap={6} mt={4}>
            {[ApiKeyScope.READ, ApiKeyScope.TRADE].map((each) => (
              <Radio key={each} size="xs" value={String(each)} label={SCOPES[each].label} description={SCOPES[each].hint} />
            ))}
          </Stack>
        </Radio.Group>
        <MultiSelect
          label="Accounts"
          description="None chosen: all of them, also those you open later."
          placeholder={accountIds.length ? undefined : "All"}
          data={accounts.map((account) => ({ value: account.accountId, label: account.name }))}
          value={accountIds}
          onChange={edit(setAccountIds)}
          clearable
          nothingFoundMessage="No account yet"
          error={violationOf(refusal, "account_ids")}
        />
        <Textarea
          label="Networks"
          description="From which it may be used, one a line; empty: from everywhere."
          placeholder={"203.0.113.0/24\n2001:db8::/48"}
          rows={2}
          spellCheck={false}
          value={networks}
          onChange={(event) => edit(setNetworks)(event.currentTarget.value)}
          error={networkProblem(refusal?.violations ?? [], networksOf(networks))}
        />
        <Select label="Expires" data={EXPIRIES} value={expiry} onChange={(value) => value && edit(setExpiry)(value)} allowDeselect={false} />
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={onClose} disabled={creating.isPending}>
            Cancel
          </Button>
          <Button type="submit" loading={creating.isPending}>
            Create the key
          </Button>
        </Group>
      </Stack>
    </form>
  );
}

function newIntent() {
  return { requestId: newRequestId(), begun: new Date() };
}

function withExpiry(expireTime: ReturnType<typeof expireTimeOf>) {
  return expireTime ? { expireTime } : {};
}

function isBesideAField(error: unknown): boolean {
  return ["name", "account_ids", "allowed_networks"].some((field) => violationOf(refusalOf(error), field) !== undefined);
}
