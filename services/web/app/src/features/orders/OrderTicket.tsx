import { Alert, Button, Group, SegmentedControl, Select, Stack, Text, UnstyledButton } from "@mantine/core";
import { OrderSide, OrderType } from "@gen/tradeloom/orders/v1/orders_pb.js";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { useEffect, useLayoutEffect, useReducer, useRef, useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { useAccount } from "@/features/accounts/account";
import { isLive } from "@/features/live/words";
import { usePortfolio } from "@/features/portfolio/usePortfolio";
import { affordable, less, placesOf, product, shown, stepped, typed, unitsOf } from "@/lib/decimal";
import { RefusalAlert } from "@/ui/states";
import { useAccountOrders } from "./AccountOrdersProvider";
import { CONDITIONAL, isConditional, needsLimitPrice, takesLimitPrice, takesStopPrice } from "./allowed";
import classes from "./OrderTicket.module.css";
import { place, requestOf } from "./placing";
import { spendableOf } from "./spendable";
import { FIELDS, openTicket, PLACED_MILLISECONDS, problemsOf, refusalFor, ticketAfter, type Draft, type Intent } from "./ticket";
import { NumberField, PriceFields, TermFields, type Editing } from "./TicketFields";
import { TicketPreview } from "./TicketPreview";
import { forgetUnanswered, rememberUnanswered, unanswered } from "./unanswered";
import { SIDES, TYPES } from "./words";

const SHARES_PERCENT = [25, 50, 75, 100];
/** The part above the price that the service, unless set otherwise, sets aside for a market order until it has filled. */
const MARKET_ROOM = "0.05";
/** A preview places nothing, so its id stands for nothing. */
const PREVIEW_ID = "preview";

interface Props {
  instrument: Instrument;
  /** The last price, to start from and to estimate with; research data, so a double. */
  lastPrice: number | undefined;
  /** A price chosen elsewhere, such as in the book; a new object each time. */
  chosenPrice: { price: number } | undefined;
}

/** Composes and places one order at a time. */
export function OrderTicket({ instrument, lastPrice, chosenPrice }: Props) {
  const { orders } = useApi();
  const { account } = useAccount();
  const { take } = useAccountOrders();
  const { accountId } = account;
  const isReal = isLive(account);
  const portfolio = usePortfolio(accountId);
  const [ticket, act] = useReducer(ticketAfter, undefined, () => openTicket(unanswered(accountId)));
  const [showsProblems, setShowsProblems] = useState(false);
  const form = useRef<HTMLFormElement>(null);
  const page = useRef(new AbortController());
  const { draft } = ticket;

  const lot = instrument.lotSize?.value ?? "1";
  const tick = instrument.tickSize?.value ?? "1";
  const hasLimit = takesLimitPrice(draft.orderType) && typed(draft.limitPrice) !== "";
  const isBuy = draft.side === OrderSide.BUY;
  // A suggestion or an estimate, put on the tick; what is sent is what stands in the field.
  const priceText = (price: number) => stepped(price.toFixed(placesOf(tick)), tick, 0);
  const lastText = lastPrice === undefined ? "" : priceText(lastPrice);
  const stopText = takesStopPrice(draft.orderType) ? typed(draft.stopPrice) : "";
  const priceNow = needsLimitPrice(draft.orderType) || hasLimit ? typed(draft.limitPrice) : stopText || lastText;

  const found = problemsOf(draft, instrument);
  const problems = showsProblems && ticket.phase === "composing" ? found : {};
  const refusal = ticket.phase === "composing" ? ticket.refusal : undefined;
  const edit = (change: Partial<Draft>) => act({ kind: "edit", change });

  useEffect(() => {
    const leaving = new AbortController();
    page.current = leaving;
    return () => leaving.abort();
  }, []);

  useEffect(() => {
    if (chosenPrice) act({ kind: "edit", change: { orderType: OrderType.LIMIT, limitPrice: priceText(chosenPrice.price) } });
    // A choice counts once, when it is made
  }, [chosenPrice]);

  // An empty limit starts at the last price.
  const needsPrice = draft.orderType === OrderType.LIMIT && draft.limitPrice === "" && lastPrice !== undefined && ticket.phase === "composing";
  // In the turn in which it is known: in a later one somebody may have begun to type, and would go on behind it.
  useLayoutEffect(() => {
    if (needsPrice && document.activeElement?.getAttribute("name") !== "limit_price") edit({ limitPrice: priceText(lastPrice!) });
    // Once, when a price is first known
  }, [needsPrice, instrument.instrumentId]);

  useEffect(() => {
    if (ticket.phase !== "placed") return;
    const timer = setTimeout(() => act({ kind: "reopen" }), PLACED_MILLISECONDS);
    return () => clearTimeout(timer);
  }, [ticket.phase]);

  async function send(intent: Intent) {
    rememberUnanswered(intent);
    try {
      const placed = await place(orders, intent, page.current.signal);
      forgetUnanswered();
      take(placed);
      setShowsProblems(false);
      act({ kind: "accepted", requestId: intent.requestId });
    } catch (error) {
      const refused = { kind: "refused", requestId: intent.requestId, refusal: refusalOf(error) } as const;
      const after = ticketAfter({ phase: "sending", draft: intent.draft, intent }, refused);
      if (after.phase !== "lost") forgetUnanswered();
      act(refused);
    }
  }

  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (ticket.phase !== "composing") return;
    setShowsProblems(true);
    const [first] = FIELDS.filter((field) => found[field]);
    if (first) return form.current?.querySelector<HTMLInputElement>(`[name=${first}]`)?.focus();
    const { instrumentId } = instrument;
    act({ kind: "send", accountId, instrumentId });
    void send({ requestId: ticket.requestId, accountId, instrumentId, draft });
  };

  const sendAgain = () => {
    if (ticket.phase !== "lost") return;
    act({ kind: "sendAgain" });
    void send(ticket.intent);
  };

  const { asset, available, leverage } = spendableOf(portfolio.data, instrument, isBuy);
  const useShare = (percent: number) => {
    const share = product(available, (percent / 100).toString()) ?? "0";
    // A buy leaves room for the fee of a taker, which is of all that is traded, and a market order for a worse price.
    const fee = product(instrument.takerFeeRate?.value ?? "0", leverage ?? "1") ?? "0";
    const money = product(less(less(share, fee), hasLimit ? "0" : MARKET_ROOM), leverage ?? "1") ?? "0";
    edit({ quantity: isBuy || leverage ? affordable(money, priceNow, lot) : affordable(share, "1", lot) });
    setShowsProblems(false);
  };

  const isBusy = ticket.phase === "sending";
  const isLocked = ticket.phase === "sending" || ticket.phase === "lost";
  const editing: Editing = { draft, instrument, isLocked, edit, problem: (field) => problems[field] ?? refusalFor(refusal, field) };
  // Why it was refused is told once, until something changes.
  const isWhole = ticket.phase === "composing" && !refusal && Object.keys(found).length === 0;
  const preview = isWhole ? requestOf({ requestId: PREVIEW_ID, accountId, instrumentId: instrument.instrumentId, draft }) : undefined;

  return (
    <form ref={form} className={classes.ticket} onSubmit={submit} aria-label="Order ticket" noValidate data-phase={ticket.phase}>
      <Stack gap={10}>
        <div className={classes.sides} role="radiogroup" aria-label="Side">
          {[OrderSide.BUY, OrderSide.SELL].map((side) => (
            <label key={side} className={classes.side} data-side={SIDES[side]} data-chosen={draft.side === side || undefined}>
              <input
                type="radio"
                name="side"
                checked={draft.side === side}
                disabled={isLocked}
                onChange={() => edit({ side })}
              />
              {SIDES[side]}
            </label>
          ))}
        </div>
        <SegmentedControl
          fullWidth
          size="xs"
          aria-label="Order type"
          disabled={isLocked}
          value={String(isConditional(draft.orderType) ? OrderType.STOP : draft.orderType)}
          onChange={(value) => edit({ orderType: Number(value) })}
          data={[
            { value: String(OrderType.LIMIT), label: "Limit" },
            { value: String(OrderType.MARKET), label: "Market" },
            { value: String(OrderType.STOP), label: "Conditional" },
          ]}
        />
        {isConditional(draft.orderType) && (
          <Select
            label="Condition"
            size="xs"
            allowDeselect={false}
            disabled={isLocked}
            value={String(draft.orderType)}
            onChange={(value) => value && edit({ orderType: Number(value) })}
            error={editing.problem("order_type")}
            data={CONDITIONAL.map((type) => ({ value: String(type), label: TYPES[type] }))}
          />
        )}
        <PriceFields {...editing} />
        <NumberField
          {...editing}
          label="Quantity"
          of="quantity"
          field="quantity"
          unit={instrument.baseAsset}
          step={lot}
          placeholder={`in steps of ${lot}`}
        />
        <Group gap={4} grow>
          {SHARES_PERCENT.map((percent) => (
            <UnstyledButton
              key={percent}
              className={classes.share!}
              disabled={isLocked || unitsOf(priceNow) === undefined}
              aria-label={`Use ${percent}% of the available ${asset}`}
              onClick={() => useShare(percent)}
            >
              {percent}%
            </UnstyledButton>
          ))}
        </Group>
        <TermFields {...editing} />
        <dl className={classes.sums}>
          <dt>Available</dt>
          <dd data-testid="available">
            {portfolio.data ? shown(available, 2, 4) : "–"} {asset}
          </dd>
        </dl>
        <TicketPreview request={preview} isEntry={draft.hasBracket} />
        {refusal && !isShownAtAField(refusal) && <RefusalAlert error={refusal} />}
        {refusal && isShownAtAField(refusal) && (
          <Text size="xs" c="dimmed" ff="monospace" data-reason={refusal.reason}>
            {refusal.domain} · {refusal.reason}
          </Text>
        )}
        {ticket.phase === "lost" ? (
          <Alert color="yellow" variant="light" p="xs" role="alert" title="The answer was lost">
            <Text size="sm">
              {ticket.refusal.message} The order “{SIDES[ticket.draft.side]} {ticket.draft.quantity}{" "}
              {ticket.intent.instrumentId}” {ticket.draft.hasBracket && "and its bracket "}may have been placed. Sending it again places it once at most.
            </Text>
            <Group gap="xs" mt="xs">
              <Button size="xs" type="button" onClick={sendAgain}>
                Send it again
              </Button>
              <Button
                size="xs"
                type="button"
                variant="default"
                onClick={() => {
                  forgetUnanswered();
                  act({ kind: "abandon" });
                }}
              >
                Leave it
              </Button>
            </Group>
          </Alert>
        ) : (
          <Button
            type="submit"
            fullWidth
            size="md"
            className={classes.submit!}
            data-side={SIDES[draft.side]}
            loading={isBusy}
            disabled={ticket.phase === "placed"}
            data-testid="place-order"
          >
            {ticket.phase === "placed" ? "Placed" : `${SIDES[draft.side]} ${instrument.symbol}${isReal ? " with real money" : ""}`}
          </Button>
        )}
      </Stack>
    </form>
  );
}

function isShownAtAField(refusal: ReturnType<typeof refusalOf>): boolean {
  return FIELDS.some((field) => refusalFor(refusal, field) !== undefined);
}
