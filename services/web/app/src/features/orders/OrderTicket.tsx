import { Alert, Button, Group, SegmentedControl, Select, Stack, Text, TextInput, UnstyledButton } from "@mantine/core";
import { OrderSide, OrderType, TimeInForce } from "@gen/tradeloom/orders/v1/orders_pb.js";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { useEffect, useLayoutEffect, useReducer, useRef, useState, type FormEvent, type KeyboardEvent } from "react";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { useAccount } from "@/features/accounts/account";
import { usePortfolio } from "@/features/portfolio/usePortfolio";
import { affordable, less, placesOf, product, shown, stepped, typed, unitsOf } from "@/lib/decimal";
import { RefusalAlert } from "@/ui/states";
import { useAccountOrders } from "./AccountOrdersProvider";
import classes from "./OrderTicket.module.css";
import { place } from "./placing";
import { openTicket, PLACED_MILLISECONDS, problemsOf, refusalFor, ticketAfter, type Draft, type Intent } from "./ticket";
import { forgetUnanswered, rememberUnanswered, unanswered } from "./unanswered";
import { SIDES, TIMES_IN_FORCE } from "./words";

const SHARES_PERCENT = [25, 50, 75, 100];
/** The part above the price that the service, unless set otherwise, sets aside for a market order until it has filled. */
const MARKET_ROOM = "0.05";

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
  const portfolio = usePortfolio(account.accountId);
  const [ticket, act] = useReducer(ticketAfter, undefined, () => openTicket(unanswered(account.accountId)));
  const [showsProblems, setShowsProblems] = useState(false);
  const quantityField = useRef<HTMLInputElement>(null);
  const page = useRef(new AbortController());
  const { draft } = ticket;

  const lot = instrument.lotSize?.value ?? "1";
  const tick = instrument.tickSize?.value ?? "1";
  const isLimit = draft.orderType === OrderType.LIMIT;
  const isBuy = draft.side === OrderSide.BUY;
  // A suggestion or an estimate, put on the tick; what is sent is what stands in the field.
  const priceText = (price: number) => stepped(price.toFixed(placesOf(tick)), tick, 0);
  const priceNow = isLimit ? typed(draft.limitPrice) : lastPrice === undefined ? "" : priceText(lastPrice);

  const problems = showsProblems && ticket.phase === "composing" ? problemsOf(draft, instrument) : {};
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
  const needsPrice = isLimit && draft.limitPrice === "" && lastPrice !== undefined && ticket.phase === "composing";
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
      const order = await place(orders, intent, page.current.signal);
      forgetUnanswered();
      take([order]);
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
    const found = problemsOf(draft, instrument);
    if (found.quantity || found.limit_price) {
      if (found.quantity) quantityField.current?.focus();
      return;
    }
    const { accountId } = account;
    const { instrumentId } = instrument;
    act({ kind: "send", accountId, instrumentId });
    void send({ requestId: ticket.requestId, accountId, instrumentId, draft });
  };

  const sendAgain = () => {
    if (ticket.phase !== "lost") return;
    act({ kind: "sendAgain" });
    void send(ticket.intent);
  };

  /** Arrows move a field by one step of the instrument, with shift by ten. */
  const stepping = (field: "quantity" | "limitPrice", step: string) => (event: KeyboardEvent) => {
    if (event.key !== "ArrowUp" && event.key !== "ArrowDown") return;
    event.preventDefault();
    const count = (event.key === "ArrowUp" ? 1 : -1) * (event.shiftKey ? 10 : 1);
    edit({ [field]: stepped(typed(draft[field]), step, count) });
  };

  const asset = isBuy ? instrument.quoteAsset : instrument.baseAsset;
  const available = portfolio.data?.balances.find((balance) => balance.asset === asset)?.available?.value ?? "0";
  const notional = priceNow === "" ? undefined : product(typed(draft.quantity), priceNow);
  const feeRate = isLimit ? instrument.makerFeeRate?.value : instrument.takerFeeRate?.value;
  const fee = notional !== undefined && feeRate ? product(notional, feeRate) : undefined;

  const useShare = (percent: number) => {
    const share = product(available, (percent / 100).toString()) ?? "0";
    // A buy leaves room for the fee of a taker, and a market order for a worse price.
    const money = less(less(share, instrument.takerFeeRate?.value ?? "0"), isLimit ? "0" : MARKET_ROOM);
    edit({ quantity: isBuy ? affordable(money, priceNow, lot) : affordable(share, "1", lot) });
    setShowsProblems(false);
  };

  const isBusy = ticket.phase === "sending";
  const isLocked = ticket.phase === "sending" || ticket.phase === "lost";

  return (
    <form className={classes.ticket} onSubmit={submit} aria-label="Order ticket" noValidate data-phase={ticket.phase}>
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
          value={String(draft.orderType)}
          onChange={(value) => edit({ orderType: Number(value) })}
          data={[
            { value: String(OrderType.LIMIT), label: "Limit" },
            { value: String(OrderType.MARKET), label: "Market" },
          ]}
        />
        {isLimit && (
          <TextInput
            label="Limit price"
            name="limit_price"
            inputMode="decimal"
            autoComplete="off"
            disabled={isLocked}
            rightSection={<Unit>{instrument.quoteAsset}</Unit>}
            rightSectionWidth={64}
            value={draft.limitPrice}
            onChange={(event) => edit({ limitPrice: event.currentTarget.value })}
            onKeyDown={stepping("limitPrice", tick)}
            error={problems.limit_price ?? refusalFor(refusal, "limit_price")}
          />
        )}
        <TextInput
          ref={quantityField}
          label="Quantity"
          name="quantity"
          inputMode="decimal"
          autoComplete="off"
          placeholder={`in steps of ${lot}`}
          disabled={isLocked}
          rightSection={<Unit>{instrument.baseAsset}</Unit>}
          rightSectionWidth={64}
          value={draft.quantity}
          onChange={(event) => edit({ quantity: event.currentTarget.value })}
          onKeyDown={stepping("quantity", lot)}
          error={problems.quantity ?? refusalFor(refusal, "quantity")}
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
        <Select
          label="Lasts"
          size="xs"
          allowDeselect={false}
          disabled={isLocked}
          value={String(draft.timeInForce)}
          onChange={(value) => value && edit({ timeInForce: Number(value) })}
          data={[TimeInForce.GTC, TimeInForce.IOC, TimeInForce.FOK]
            .filter((time) => isLimit || time !== TimeInForce.GTC)
            .map((time) => ({ value: String(time), label: TIMES_IN_FORCE[time].long }))}
        />
        <dl className={classes.sums}>
          <dt>Available</dt>
          <dd data-testid="available">
            {portfolio.data ? shown(available, 2, 4) : "–"} {asset}
          </dd>
          <dt>{isLimit ? "Value" : "Value, about"}</dt>
          <dd>
            {shown(notional, 2, 2)} {instrument.quoteAsset}
          </dd>
          <dt>Fee, about</dt>
          <dd>
            {shown(fee, 2, 4)} {instrument.quoteAsset}
          </dd>
        </dl>
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
              {ticket.intent.instrumentId}” may have been placed. Sending it again places it once at most.
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
            {ticket.phase === "placed" ? "Placed" : `${SIDES[draft.side]} ${instrument.symbol}`}
          </Button>
        )}
      </Stack>
    </form>
  );
}

function Unit({ children }: { children: string }) {
  return (
    <Text size="xs" c="dimmed">
      {children}
    </Text>
  );
}

function isShownAtAField(refusal: ReturnType<typeof refusalOf>): boolean {
  return refusalFor(refusal, "quantity") !== undefined || refusalFor(refusal, "limit_price") !== undefined;
}
