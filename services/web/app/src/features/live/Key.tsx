import { Button, Group, Modal, PasswordInput, Stack, Text, TextInput } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import type { Account } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { BrokerCredentialState, type BrokerCredential } from "@gen/tradeloom/users/v1/users_pb.js";
import { useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { fieldOf, isOutcomeLost, refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { dateAndClock } from "@/lib/time";
import { Confirm } from "@/ui/Confirm";
import { Panel } from "@/ui/Panel";
import { Row, Rows } from "@/ui/Rows";
import { Empty, Failed, Loading, RefusalAlert } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import { CREDENTIALS_KEY, useCredential } from "./useLive";
import { KEY_PROBLEMS, KEY_STATES } from "./words";

const LABEL_LENGTH_MAX = 50;
const KEY_LENGTH_MIN = 16;
const KEY_LENGTH_MAX = 256;
const SECRET_LENGTH_MAX = 4_096;

/** The key that carries the account's orders: which, what the venue says of it, and another in its place. */
export function Key({ account }: { account: Account }) {
  const { credentials } = useApi();
  const queries = useQueryClient();
  const query = useCredential(account.accountId);
  const [isPutting, setIsPutting] = useState(false);
  const refresh = () => queries.invalidateQueries({ queryKey: CREDENTIALS_KEY });
  const testing = useMutation({
    // Each time the venue is asked anew.
    mutationFn: (credentialId: string) => credentials.testBrokerCredential({ requestId: newRequestId(), credentialId }),
    onSettled: refresh,
  });
  const key = query.data;
  return (
    <Panel
      title={`Key for ${account.venue}`}
      aside={
        query.isSuccess && (
          <Button size="compact-xs" variant={key ? "default" : "filled"} onClick={() => setIsPutting(true)}>
            {key ? "Put another" : "Put a key"}
          </Button>
        )
      }
    >
      {query.isPending ? (
        <Loading what="the key" />
      ) : query.isError ? (
        <Failed what="the key" error={query.error} onRetry={() => void query.refetch()} />
      ) : !key ? (
        <Empty title="No key yet">
          Make one at {account.venue} that may read and trade, and may not withdraw or transfer. It is kept sealed; nobody sees it again.
        </Empty>
      ) : (
        <>
          <Rows label="The account's key">
            <KeyRow credential={key} />
          </Rows>
          <Group px="sm" pb="sm" gap="xs">
            <Button size="xs" variant="default" loading={testing.isPending} onClick={() => testing.mutate(key.credentialId)}>
              Test it
            </Button>
            <Delete credential={key} onDeleted={refresh} />
          </Group>
          {testing.error && (
            <Stack px="sm" pb="sm">
              <RefusalAlert title="Not tested" error={testing.error} />
            </Stack>
          )}
        </>
      )}
      <Modal opened={isPutting} onClose={() => setIsPutting(false)} title={`${key ? "Another" : "A"} key for ${account.venue}`} centered closeButtonProps={{ "aria-label": "Close" }}>
        <PutForm
          account={account}
          present={key ?? undefined}
          onPut={async (put) => {
            await refresh();
            setIsPutting(false);
            testing.mutate(put.credentialId);
          }}
          onClose={() => setIsPutting(false)}
        />
      </Modal>
    </Panel>
  );
}

function KeyRow({ credential }: { credential: BrokerCredential }) {
  const { state, check } = credential;
  const { label, color, hint } = KEY_STATES[state];
  const said = state === BrokerCredentialState.REFUSED && check ? KEY_PROBLEMS[check.problem] : hint;
  return (
    <Row
      data-testid="key"
      title={
        <>
          {credential.label}
          <Tag color={color} data-state={BrokerCredentialState[state]}>
            {label}
          </Tag>
        </>
      }
      details={
        <>
          {said}
          <br />
          Ending in{" "}
          <Text span inherit ff="monospace">
            {credential.apiKeyEnding}
          </Text>
          {` · put ${dateAndClock(credential.updateTime)}`}
          {check && ` · the venue was asked ${dateAndClock(check.checkTime)}`}
        </>
      }
    />
  );
}

interface PutProps {
  account: Account;
  /** The one whose place it takes. */
  present: BrokerCredential | undefined;
  onPut(credential: BrokerCredential): Promise<void>;
  onClose(): void;
}

/** Both halves of a key: on this page no longer than until they are sent. */
function PutForm({ account, present, onPut, onClose }: PutProps) {
  const { credentials } = useApi();
  const [label, setLabel] = useState(present?.label ?? account.name.slice(0, LABEL_LENGTH_MAX));
  const [apiKey, setApiKey] = useState("");
  const [apiSecret, setApiSecret] = useState("");
  // Of these contents: put once, however often it is sent.
  const [requestId, setRequestId] = useState(newRequestId);
  const putting = useMutation({
    mutationFn: async () => {
      const { credential } = await credentials.putBrokerCredential({
        requestId,
        credentialId: present?.credentialId ?? "",
        accountId: account.accountId,
        venue: account.venue,
        label: label.trim(),
        apiKey: apiKey.trim(),
        apiSecret: apiSecret.trim(),
      });
      if (!credential) throw new Error("the answer names no key");
      return credential;
    },
    onSuccess: onPut,
    // Of what it was called with nothing is to stay.
    gcTime: 0,
  });
  const refusal = putting.error ? refusalOf(putting.error) : undefined;
  const at = (field: string) => violationOf(refusal, field) ?? (refusal && fieldOf(refusal) === field ? refusal.message : undefined);
  const isBesideAField = ["label", "api_key", "api_secret"].some((field) => at(field) !== undefined);
  const edit = (set: (value: string) => void) => (value: string) => {
    set(value);
    setRequestId(newRequestId());
    putting.reset();
  };
  return (
    <form
      aria-label="Put a key"
      autoComplete="off"
      onSubmit={(event: FormEvent) => {
        event.preventDefault();
        if (!putting.isPending) putting.mutate();
      }}
    >
      <Stack gap="sm">
        <Text size="sm">
          It must be allowed to read and to trade, and <b>not</b> to withdraw or transfer: such a key is refused.
          {present && " It takes the place of the one there is now, and stops the account until you confirm it anew."}
        </Text>
        {refusal && !isBesideAField && <RefusalAlert error={refusal} {...(isOutcomeLost(refusal) && { title: "Perhaps put: send it again to be sure" })} />}
        <TextInput
          label="Label"
          description="For you."
          required
          maxLength={LABEL_LENGTH_MAX}
          value={label}
          onChange={(event) => edit(setLabel)(event.currentTarget.value)}
          error={at("label")}
        />
        <TextInput
          label="API key"
          required
          data-autofocus
          autoComplete="off"
          spellCheck={false}
          minLength={KEY_LENGTH_MIN}
          maxLength={KEY_LENGTH_MAX}
          value={apiKey}
          onChange={(event) => edit(setApiKey)(event.currentTarget.value)}
          error={at("api_key")}
        />
        <PasswordInput
          label="Secret"
          required
          // Not the password of this page, which browsers would fill in.
          autoComplete="new-password"
          minLength={KEY_LENGTH_MIN}
          maxLength={SECRET_LENGTH_MAX}
          value={apiSecret}
          onChange={(event) => edit(setApiSecret)(event.currentTarget.value)}
          visibilityToggleButtonProps={{ "aria-label": "Show the secret" }}
          error={at("api_secret")}
        />
        <Group justify="flex-end" gap="xs">
          <Button variant="default" onClick={onClose} disabled={putting.isPending}>
            Cancel
          </Button>
          <Button type="submit" loading={putting.isPending}>
            Put and test it
          </Button>
        </Group>
      </Stack>
    </form>
  );
}

function Delete({ credential, onDeleted }: { credential: BrokerCredential; onDeleted(): Promise<void> }) {
  const { credentials } = useApi();
  const [requestId, setRequestId] = useState<string>();
  const close = () => {
    setRequestId(undefined);
    deleting.reset();
  };
  const deleting = useMutation({
    mutationFn: (id: string) => credentials.deleteBrokerCredential({ requestId: id, credentialId: credential.credentialId }),
    onSuccess: async () => {
      await onDeleted();
      close();
      notifications.show({ color: "gray", title: "Key deleted", message: credential.label });
    },
  });
  return (
    <>
      <Button size="xs" variant="default" onClick={() => setRequestId(newRequestId())}>
        Delete it
      </Button>
      <Confirm
        opened={requestId !== undefined}
        title={`Delete “${credential.label}”?`}
        action="Delete it"
        leave="Keep it"
        isAsking={deleting.isPending}
        error={deleting.error}
        onConfirm={() => requestId && !deleting.isPending && deleting.mutate(requestId)}
        onClose={close}
      >
        The account stops, and within five seconds nothing more is asked of {credential.venue}: orders that rest there stay, and nobody here follows them.
        Cancel them first.
      </Confirm>
    </>
  );
}
