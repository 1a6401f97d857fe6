import { Button, Text } from "@mantine/core";
import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import type { ApiKey } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { newRequestId } from "@/api/requestId";
import { ACCOUNTS_KEY, ACCOUNTS_SHOWN_MAX } from "@/features/accounts/account";
import { date, dateAndClock } from "@/lib/time";
import { Confirm } from "@/ui/Confirm";
import { Panel } from "@/ui/Panel";
import { PagedRows, Row } from "@/ui/Rows";
import { Empty } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import { CreateApiKey } from "./CreateApiKey";
import { lifeOf, LIVES, SCOPES } from "./apiKey";

const API_KEYS_KEY = ["apiKeys"];
const API_KEYS_PAGE = 50;

/** Keys for programs: which there are, what each may do, and an end to each. */
export function ApiKeysPage() {
  const { auth, portfolio } = useApi();
  const queries = useQueryClient();
  const [isCreating, setIsCreating] = useState(false);
  const [revoked, setRevoked] = useState<ApiKey>();
  const query = useInfiniteQuery({
    queryKey: API_KEYS_KEY,
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) => auth.listApiKeys({ pageSize: API_KEYS_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
  const keys = query.data?.pages.flatMap((page) => page.apiKeys) ?? [];
  const accounts = useQuery({
    queryKey: ACCOUNTS_KEY,
    queryFn: async ({ signal }) => (await portfolio.listAccounts({ pageSize: ACCOUNTS_SHOWN_MAX }, { signal })).accounts,
  });
  const nameOf = (accountId: string) => accounts.data?.find((account) => account.accountId === accountId)?.name ?? accountId;
  const refresh = () => queries.invalidateQueries({ queryKey: API_KEYS_KEY });

  return (
    <Panel
      title="API keys"
      aside={
        <Button size="compact-xs" onClick={() => setIsCreating(true)}>
          Create a key
        </Button>
      }
    >
      <PagedRows
        what="your API keys"
        query={query}
        items={keys}
        empty={<Empty title="No API keys yet">A key lets a program of yours look, or trade, without your password.</Empty>}
        more="Show older keys"
      >
        {(key) => <KeyRow key={key.apiKeyId} apiKey={key} nameOf={nameOf} onRevoke={() => setRevoked(key)} />}
      </PagedRows>
      <CreateApiKey opened={isCreating} accounts={accounts.data ?? []} onCreated={refresh} onClose={() => setIsCreating(false)} />
      <Revoke key={revoked?.apiKeyId} apiKey={revoked} onRevoked={refresh} onClose={() => setRevoked(undefined)} />
    </Panel>
  );
}

function KeyRow({ apiKey, nameOf, onRevoke }: { apiKey: ApiKey; nameOf(accountId: string): string; onRevoke(): void }) {
  const life = lifeOf(apiKey, new Date());
  const { label, color } = LIVES[life];
  return (
    <Row
      data-testid={`api-key-${apiKey.prefix}`}
      title={
        <>
          {apiKey.name}
          <Tag color={color} data-state={life}>
            {label}
          </Tag>
          <Tag color="indigo">{SCOPES[apiKey.scope].label}</Tag>
        </>
      }
      details={
        <>
          <Text span inherit ff="monospace">
            {apiKey.prefix}…
          </Text>
          {` · ${apiKey.accountIds.length ? `only ${apiKey.accountIds.map(nameOf).join(", ")}` : "all accounts"}`}
          {` · ${apiKey.allowedNetworks.length ? `from ${apiKey.allowedNetworks.join(", ")}` : "from everywhere"}`}
          <br />
          {`Created ${date(apiKey.createTime)}`}
          {` · ${apiKey.lastUsedTime ? `last used ${dateAndClock(apiKey.lastUsedTime)}${apiKey.lastUsedAddress ? ` from ${apiKey.lastUsedAddress}` : ""}` : "never used"}`}
          {apiKey.revokeTime
            ? ` · revoked ${dateAndClock(apiKey.revokeTime)}`
            : apiKey.expireTime
              ? ` · ${life === "expired" ? "expired" : "expires"} ${dateAndClock(apiKey.expireTime)}`
              : " · never expires"}
        </>
      }
      action={
        life === "inForce" && (
          <Button size="compact-xs" variant="default" aria-label={`Revoke ${apiKey.name}`} onClick={onRevoke}>
            Revoke
          </Button>
        )
      }
    />
  );
}

function Revoke({ apiKey, onRevoked, onClose }: { apiKey: ApiKey | undefined; onRevoked(): Promise<void>; onClose(): void }) {
  const { auth } = useApi();
  const [requestId] = useState(newRequestId);
  const revoking = useMutation({
    mutationFn: (apiKeyId: string) => auth.revokeApiKey({ requestId, apiKeyId }),
    onSuccess: async () => {
      await onRevoked();
      onClose();
    },
  });
  return (
    <Confirm
      opened={apiKey !== undefined}
      title={`Revoke “${apiKey?.name ?? ""}”?`}
      action="Revoke it"
      isAsking={revoking.isPending}
      error={revoking.error}
      onConfirm={() => apiKey && revoking.mutate(apiKey.apiKeyId)}
      onClose={onClose}
    >
      Programs that use it are refused within five seconds and their streams end. What they ordered stays. It cannot be taken back.
    </Confirm>
  );
}
