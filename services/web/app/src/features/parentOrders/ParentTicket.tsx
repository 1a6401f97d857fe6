import { Alert, Button, Group, SegmentedControl, Select, Stack, Text, TextInput, UnstyledButton } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import { OrderSide } from "@gen/tradeloom/orders/v1/orders_pb.js";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import type { PlaceParentOrderRequest } from "@gen/tradeloom/orders/v1/parents_pb.js";
import { useEffect, useRef, useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { isOutcomeLost, refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { untilAnswered } from "@/api/untilAnswered";
import { useAccount } from "@/features/accounts/account";
import { isLive } from "@/features/live/words";
import ticketClasses from "@/features/orders/OrderTicket.module.css";
import { SIDES } from "@/features/orders/words";
import { placesOf, stepped } from "@/lib/decimal";
import { DecimalField } from "@/ui/DecimalField";
import { RefusalAlert } from "@/ui/states";
import { EMPTY_DRAFT, edited, fieldsOf, planOf, problemsOf, refusalFor, requestOf, UNITS, type Field, type ParentDraft, type Unit } from "./draft";
import { parentsKey } from "./useParents";
import { KINDS, titleOf } from "./words";

/** Ends that are often wanted, from the start on. */
const LENGTHS: readonly (readonly [label: string, hours: number])[] = [
  ["1 hour", 1],
  ["4 hours", 4],
  ["1 day", 24],
];

interface Props {
  instrument: Instrument;
  /** A price chosen elsewhere, such as in the book; a new object each time. */
  chosenPrice: { price: number } | undefined;
}

/** Composes and begins one parent order at a time. */
export function ParentTicket({ instrument, chosenPrice }: Props) {
  const { parents } = useApi();
  const { account } = useAccount();
  const queries = useQueryClient();
  const [draft, setDraft] = useState<ParentDraft>(EMPTY_DRAFT);
  // Of these contents: other ones are another intent.
  const [requestId, setRequestId] = useState(newRequestId);
  const [showsProblems, setShowsProblems] = useState(false);
  const form = useRef<HTMLFormElement>(null);
  const page = useRef(new AbortController());
  useEffect(() => {
    const leaving = new AbortController();
    page.current = leaving;
    return () => leaving.abort();
  }, []);

  const placing = useMutation({
    mutationFn: async (request: PlaceParentOrderRequest) => {
      const { parentOrder } = await untilAnswered(() => parents.placeParentOrder(request), page.current.signal);
      if (!parentOrder) throw new Error("the answer names no parent order");
      return parentOrder;
    },
    onSuccess: async (placed) => {
      setShowsProblems(false);
      setDraft((before) => ({ ...before, quantity: "", displayQuantity: "", purchase: "", endTime: "" }));
      setRequestId(newRequestId());
      notifications.show({ color: "teal", title: "Under way", message: `${titleOf(placed)}.` });
      await queries.invalidateQueries({ queryKey: parentsKey(account.accountId) });
    },
  });
  const lot = instrument.lotSize?.value ?? "1";
  const tick = instrument.tickSize?.value ?? "1";
  const refusal = placing.error ? refusalOf(placing.error) : undefined;
  const isLost = refusal !== undefined && isOutcomeLost(refusal);
  const isLocked = placing.isPending || isLost;

  const found = problemsOf(draft, instrument);
  const problem = (field: Field) => (showsProblems && !isLocked ? found[field] : undefined) ?? refusalFor(refusal, field, draft);
  const edit = (change: Partial<ParentDraft>) => {
    if (isLocked) return;
    setDraft(edited(draft, change));
    setRequestId(newRequestId());
    placing.reset();
  };
  useEffect(() => {
    const text = chosenPrice?.price.toFixed(placesOf(tick));
    if (text !== undefined && draft.kind !== "dca") edit({ limitPrice: stepped(text, tick, 0) });
    // A choice counts once, when it is made
  }, [chosenPrice]);

  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (isLocked) return;
    setShowsProblems(true);
    const first = fieldsOf(draft).find((field) => found[field]);
    if (first) return form.current?.querySelector<HTMLInputElement>(`[name=${first}]`)?.focus();
    placing.mutate(requestOf(requestId, account.accountId, instrument.instrumentId, draft));
  };
  const leaveIt = () => {
    placing.reset();
    setRequestId(newRequestId());
  };

  const { kind } = draft;
  const number = (field: Field, label: string, of: keyof ParentDraft, unit: string, step: string, placeholder?: string) => (
    <DecimalField
      label={label}
      name={field}
      unit={unit}
      step={step}
      isLocked={isLocked}
      value={String(draft[of])}
      onChange={(value) => edit({ [of]: value })}
      problem={problem(field)}
      {...(placeholder !== undefined && { placeholder })}
    />
  );
  const time = (field: "start_time" | "end_time", label: string, of: "startTime" | "endTime", description?: string) => (
    <TextInput
      label={label}
      description={description}
      name={field}
      type="datetime-local"
      size="xs"
      disabled={isLocked}
      value={draft[of]}
      onChange={(event) => edit({ [of]: event.currentTarget.value })}
      error={problem(field)}
    />
  );
  const plan = isLocked || refusal ? undefined : planOf(draft, instrument);
  const isBesideAField = refusal !== undefined && fieldsOf(draft).some((field) => refusalFor(refusal, field, draft) !== undefined);

  return (
    <form ref={form} className={ticketClasses.ticket} onSubmit={submit} aria-label="Parent order ticket" noValidate>
      <Stack gap={10}>
        <SegmentedControl
          fullWidth
          size="xs"
          aria-label="Kind of schedule"
          disabled={isLocked}
          value={kind}
          onChange={(value) => edit({ kind: value as ParentDraft["kind"] })}
          data={Object.entries(KINDS).map(([value, { label }]) => ({ value, label }))}
        />
        <Text size="xs" c="dimmed">
          {KINDS[kind].hint}
        </Text>
        {kind !== "dca" && (
          <div className={ticketClasses.sides} role="radiogroup" aria-label="Side">
            {[OrderSide.BUY, OrderSide.SELL].map((side) => (
              <label key={side} className={ticketClasses.side} data-side={SIDES[side]} data-chosen={draft.side === side || undefined}>
                <input type="radio" name="parent_side" checked={draft.side === side} disabled={isLocked} onChange={() => edit({ side })} />
                {SIDES[side]}
              </label>
            ))}
          </div>
        )}
        {kind === "dca" ? (
          <Group gap={6} align="flex-start" wrap="nowrap">
            {draft.purchaseIn === "amount"
              ? number("amount", "Each purchase for", "purchase", instrument.quoteAsset, "1")
              : number("quantity", "Each purchase of", "purchase", instrument.baseAsset, lot)}
            <Select
              label="In"
              w={96}
              flex="none"
              allowDeselect={false}
              disabled={isLocked}
              value={draft.purchaseIn}
              onChange={(value) => value && edit({ purchaseIn: value as ParentDraft["purchaseIn"], purchase: "" })}
              data={[
                { value: "amount", label: instrument.quoteAsset },
                { value: "quantity", label: instrument.baseAsset },
              ]}
            />
          </Group>
        ) : (
          number("quantity", "Quantity in all", "quantity", instrument.baseAsset, lot, `in steps of ${lot}`)
        )}
        {kind === "iceberg" && number("display_quantity", "Shown at a time", "displayQuantity", instrument.baseAsset, lot)}
        {kind !== "dca" && number("limit_price", "Limit price", "limitPrice", instrument.quoteAsset, tick, kind === "twap" ? "none: the market's" : undefined)}
        {kind !== "iceberg" && (
          <>
            <Group gap={6} align="flex-start" wrap="nowrap">
              <TextInput
                label={kind === "dca" ? "A purchase every" : "A slice every"}
                name="interval_seconds"
                inputMode="numeric"
                autoComplete="off"
                disabled={isLocked}
                value={draft.interval}
                onChange={(event) => edit({ interval: event.currentTarget.value })}
                error={problem("interval_seconds")}
              />
              <Select
                label="Unit"
                w={110}
                flex="none"
                allowDeselect={false}
                disabled={isLocked}
                value={draft.unit}
                onChange={(value) => value && edit({ unit: value as Unit })}
                data={Object.keys(UNITS).filter((unit) => kind === "twap" || unit !== "seconds")}
              />
            </Group>
            {time("start_time", "Starts", "startTime", "Empty: now.")}
          </>
        )}
        {kind === "dca" && (
          <SegmentedControl
            size="xs"
            aria-label="How long it goes on"
            disabled={isLocked}
            value={draft.until}
            onChange={(value) => edit({ until: value as ParentDraft["until"] })}
            data={[
              { value: "purchases", label: "So many times" },
              { value: "endTime", label: "Until a time" },
            ]}
          />
        )}
        {kind === "dca" && draft.until === "purchases" && (
          <TextInput
            label="Purchases"
            name="purchases"
            inputMode="numeric"
            autoComplete="off"
            disabled={isLocked}
            value={draft.purchases}
            onChange={(event) => edit({ purchases: event.currentTarget.value })}
            error={problem("purchases")}
          />
        )}
        {fieldsOf(draft).includes("end_time") && (
          <div>
            {time("end_time", "Ends", "endTime")}
            {kind === "twap" && (
              <Group gap={4} grow mt={6}>
                {LENGTHS.map(([label, hours]) => (
                  <UnstyledButton
                    key={label}
                    className={ticketClasses.share!}
                    disabled={isLocked}
                    aria-label={`Ends ${label} after the start`}
                    onClick={() => edit({ endTime: after(draft.startTime, hours) })}
                  >
                    {label}
                  </UnstyledButton>
                ))}
              </Group>
            )}
          </div>
        )}
        {plan && (
          <Text size="xs" c="dimmed" data-testid="plan">
            {plan}
          </Text>
        )}
        {refusal && !isLost && !isBesideAField && <RefusalAlert error={refusal} />}
        {refusal && isBesideAField && (
          <Text size="xs" c="dimmed" ff="monospace" data-reason={refusal.reason}>
            {refusal.domain} · {refusal.reason}
          </Text>
        )}
        {isLost ? (
          <Alert color="yellow" variant="light" p="xs" role="alert" title="The answer was lost">
            <Text size="sm">{refusal.message} The parent order may have begun. Sending it again begins it once at most.</Text>
            <Group gap="xs" mt="xs">
              <Button size="xs" type="button" onClick={() => placing.mutate(placing.variables!)}>
                Send it again
              </Button>
              <Button size="xs" type="button" variant="default" onClick={leaveIt}>
                Leave it
              </Button>
            </Group>
          </Alert>
        ) : (
          <Button
            type="submit"
            fullWidth
            size="md"
            className={ticketClasses.submit!}
            data-side={SIDES[draft.side]}
            loading={placing.isPending}
            data-testid="place-parent-order"
          >
            {SIDES[draft.side]} {instrument.symbol} by {KINDS[kind].label}
            {isLive(account) && ", real money"}
          </Button>
        )}
      </Stack>
    </form>
  );
}

/** So many hours after the start, or after now, as a field for date and time has it: to the minute, and so no slice longer. */
function after(startTime: string, hours: number): string {
  const start = startTime === "" ? Date.now() : Math.max(Date.now(), new Date(startTime).getTime());
  const end = new Date(start + hours * 3_600_000);
  return new Date(end.getTime() - end.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
}
