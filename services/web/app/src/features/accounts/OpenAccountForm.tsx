import { ActionIcon, Anchor, Button, Group, Paper, SegmentedControl, Select, Stack, Text, TextInput, Title } from "@mantine/core";
import { IconPlus, IconTrash } from "@tabler/icons-react";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { AccountKind, AccountMode } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { useState, type FormEvent } from "react";
import { useNavigate } from "react-router";
import { useApi } from "@/api/clients";
import { refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { PATHS } from "@/app/paths";
import { VENUES } from "@/features/live/words";
import { signOf, typed, unitsOf } from "@/lib/decimal";
import { RefusalAlert } from "@/ui/states";
import { ACCOUNTS_KEY } from "./account";
import { KindInputs, LEVERAGE_MAX } from "./KindInputs";

const BALANCES_MAX = 20;
/** Those at which a live margin account may be. */
const MARGIN_VENUES = ["BINANCE"];

interface Line {
  asset: string;
  amount: string;
}

interface Props {
  isFirst?: boolean;
  onOpened(accountId: string): void;
  onSignOut?(): void;
}

const FIRST_NAMES = { [AccountMode.PAPER]: "Paper", [AccountMode.LIVE]: "Live" };
/** What worth is usually counted in at each venue. */
const VALUATIONS: Record<string, string> = { BINANCE: "USDT", KRAKEN: "USD" };

/** Opens a paper account with what it starts with, or a live one at its venue. */
export function OpenAccountForm({ isFirst = false, onOpened, onSignOut }: Props) {
  const { portfolio } = useApi();
  const queries = useQueryClient();
  const navigate = useNavigate();
  const [name, setName] = useState(isFirst ? FIRST_NAMES[AccountMode.PAPER] : "");
  const [mode, setMode] = useState<AccountMode.PAPER | AccountMode.LIVE>(AccountMode.PAPER);
  const [venue, setVenue] = useState<string>(VENUES[0]);
  const [valuationAsset, setValuationAsset] = useState(VALUATIONS[VENUES[0]]!);
  const isLive = mode === AccountMode.LIVE;
  const [lines, setLines] = useState<Line[]>([
    { asset: "USDT", amount: "100000" },
    { asset: "USD", amount: "100000" },
  ]);
  const [kind, setKind] = useState(AccountKind.CASH);
  const takesMargin = !isLive || MARGIN_VENUES.includes(venue);
  const chosen = takesMargin ? kind : AccountKind.CASH;
  const [leverage, setLeverage] = useState("1");
  // Of these contents: changing them makes another account, sending them twice does not.
  const [requestId, setRequestId] = useState(newRequestId);
  const [shownProblems, setShownProblems] = useState(false);

  const opening = useMutation({
    mutationFn: async () => {
      const { account } = await portfolio.createAccount({
        requestId,
        name: name.trim(),
        mode,
        kind: chosen,
        leverage: chosen === AccountKind.MARGIN ? Number(leverage) : 0,
        ...(isLive
          ? { venue, valuationAsset: valuationAsset.trim() }
          : { startingBalances: lines.map(({ asset, amount }) => ({ asset: asset.trim(), amount: { value: typed(amount) } })) }),
      });
      if (!account) throw new Error("the answer names no account");
      await queries.invalidateQueries({ queryKey: ACCOUNTS_KEY });
      return account;
    },
    onSuccess: (account) => {
      onOpened(account.accountId);
      if (isLive) void navigate(PATHS.live);
    },
  });
  const refusal = opening.error ? refusalOf(opening.error) : undefined;
  const problems = isLive ? [] : lines.map((line) => problemOf(line));
  const valuationProblem = isLive && !ASSET.test(valuationAsset.trim()) ? "Such as USDT" : undefined;
  const isLeverage = chosen !== AccountKind.MARGIN || (/^[0-9]{1,3}$/.test(leverage) && Number(leverage) >= 1 && Number(leverage) <= LEVERAGE_MAX);

  const title = isLive ? "Open a live account" : "Open a paper account";
  const changed = () => {
    setRequestId(newRequestId());
    opening.reset();
  };
  const editLine = (index: number, change: Partial<Line>) => {
    setLines(lines.map((line, n) => (n === index ? { ...line, ...change } : line)));
    changed();
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    setShownProblems(true);
    const isSound = isLeverage && valuationProblem === undefined && problems.every((problem) => problem === undefined);
    if (!opening.isPending && isSound) opening.mutate();
  };

  return (
    <Paper withBorder p="lg" radius="md" bg="var(--panel)" w="100%" maw={460}>
      <form onSubmit={submit} aria-label={title}>
        <Stack gap="sm">
          <div>
            <Title order={2} size="h4">
              {title}
            </Title>
            <Text size="sm" c="dimmed" mt={4}>
              {isLive
                ? "Its money is real, and stays at its venue. It trades nothing until it has a key there and you have confirmed it."
                : "Orders of a paper account fill against the live market feed, with money that is not real."}
            </Text>
          </div>
          <SegmentedControl
            size="xs"
            aria-label="Whose money"
            value={String(mode)}
            onChange={(value) => {
              const next = Number(value) as typeof mode;
              setMode(next);
              // A name that nobody chose goes with what was chosen.
              if (isFirst && name === FIRST_NAMES[mode]) setName(FIRST_NAMES[next]);
              changed();
            }}
            data={[
              { value: String(AccountMode.PAPER), label: "Paper" },
              { value: String(AccountMode.LIVE), label: "Real money" },
            ]}
          />
          {refusal && <RefusalAlert error={refusal} />}
          <TextInput
            label="Name"
            required
            maxLength={100}
            autoFocus
            value={name}
            onChange={(event) => {
              setName(event.currentTarget.value);
              changed();
            }}
            error={violationOf(refusal, "name")}
          />
          {isLive && (
            <>
              <Select
                label="Venue"
                description="Where its money is; it trades that venue's instruments alone."
                allowDeselect={false}
                value={venue}
                onChange={(value) => {
                  if (!value) return;
                  setVenue(value);
                  setValuationAsset(VALUATIONS[value] ?? "");
                  changed();
                }}
                data={[...VENUES]}
                error={violationOf(refusal, "venue")}
              />
              <TextInput
                label="Worth is counted in"
                description="Its losses, too."
                required
                value={valuationAsset}
                onChange={(event) => {
                  setValuationAsset(event.currentTarget.value.toUpperCase());
                  changed();
                }}
                error={(shownProblems && valuationProblem) || violationOf(refusal, "valuation_asset")}
              />
            </>
          )}
          {takesMargin && (
            <KindInputs
              kind={kind}
              leverage={leverage}
              onChange={(nextKind, nextLeverage) => {
                setKind(nextKind);
                setLeverage(nextLeverage);
                changed();
              }}
              error={violationOf(refusal, "leverage") ?? (shownProblems && !isLeverage ? `A whole number from 1 to ${LEVERAGE_MAX}` : undefined)}
            />
          )}
          {!isLive && (
            <>
              <Text size="sm" fw={500} component="h3" m={0}>
                It starts with
              </Text>
              {lines.map(({ asset, amount }, index) => (
                <Group key={index} gap="xs" align="flex-start" wrap="nowrap">
                  <TextInput
                    aria-label={`Asset ${index + 1}`}
                    placeholder="USDT"
                    w={110}
                    value={asset}
                    onChange={(event) => editLine(index, { asset: event.currentTarget.value.toUpperCase() })}
                    error={shownProblems && problems[index]?.asset}
                  />
                  <TextInput
                    aria-label={`Amount ${index + 1}`}
                    inputMode="decimal"
                    flex={1}
                    value={amount}
                    onChange={(event) => editLine(index, { amount: event.currentTarget.value })}
                    error={shownProblems && problems[index]?.amount}
                  />
                  <ActionIcon
                    variant="subtle"
                    color="gray"
                    size="lg"
                    aria-label={`Leave out ${asset || `asset ${index + 1}`}`}
                    disabled={lines.length === 1}
                    onClick={() => {
                      setLines(lines.filter((_, n) => n !== index));
                      changed();
                    }}
                  >
                    <IconTrash size={16} />
                  </ActionIcon>
                </Group>
              ))}
              {lines.length < BALANCES_MAX && (
                <Anchor
                  component="button"
                  type="button"
                  size="sm"
                  onClick={() => {
                    setLines([...lines, { asset: "", amount: "" }]);
                    changed();
                  }}
                >
                  <Group gap={4}>
                    <IconPlus size={14} aria-hidden /> Another asset
                  </Group>
                </Anchor>
              )}
            </>
          )}
          <Button type="submit" loading={opening.isPending} mt="xs">
            Open account
          </Button>
          {onSignOut && (
            <Anchor component="button" type="button" size="sm" c="dimmed" ta="center" onClick={onSignOut}>
              Sign out
            </Anchor>
          )}
        </Stack>
      </form>
    </Paper>
  );
}

const ASSET = /^[A-Z0-9._-]{1,16}$/;

function problemOf({ asset, amount }: Line): { asset?: string; amount?: string } | undefined {
  const plain = typed(amount);
  const problem = {
    ...(!ASSET.test(asset.trim()) && { asset: "Such as USDT" }),
    ...(unitsOf(plain) === undefined ? { amount: plain.includes(",") ? "Write decimals with a point" : "Not a plain number" } : signOf(plain) <= 0 && { amount: "Must be above zero" }),
  };
  return Object.keys(problem).length ? problem : undefined;
}
