import { Checkbox, Group, Select, Stack, TextInput } from "@mantine/core";
import { OrderSide, OrderType, TimeInForce } from "@gen/tradeloom/orders/v1/orders_pb.js";
import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { DecimalField } from "@/ui/DecimalField";
import { needsLimitPrice, takesLimitPrice, takesPostOnly, takesStopPrice, timesInForceOf } from "./allowed";
import type { Draft, Field } from "./ticket";
import { TIMES_IN_FORCE } from "./words";

/** What the fields of a ticket share. */
export interface Editing {
  draft: Draft;
  instrument: Instrument;
  isLocked: boolean;
  edit(change: Partial<Draft>): void;
  /** What is wrong with a field, if anything. */
  problem(field: Field): string | undefined;
}

type TextField = "quantity" | "limitPrice" | "stopPrice" | "trail" | "takeProfitPrice" | "stopLossPrice";

interface NumberProps extends Editing {
  label: string;
  of: TextField;
  field: Field;
  unit: string;
  step: string;
  placeholder?: string;
}

/** A decimal of the draft. */
export function NumberField({ draft, isLocked, edit, problem, of, field, label, unit, step, placeholder }: NumberProps) {
  return (
    <DecimalField
      label={label}
      name={field}
      unit={unit}
      step={step}
      isLocked={isLocked}
      value={draft[of]}
      onChange={(value) => edit({ [of]: value })}
      problem={problem(field)}
      {...(placeholder !== undefined && { placeholder })}
    />
  );
}

const PERCENT_STEP = "0.1";

/** At which price it trades, and from which on. */
export function PriceFields(editing: Editing) {
  const { draft, instrument, isLocked, edit } = editing;
  const tick = instrument.tickSize?.value ?? "1";
  const price = { ...editing, unit: instrument.quoteAsset, step: tick };
  return (
    <>
      {takesStopPrice(draft.orderType) && <NumberField {...price} label="Stop price" of="stopPrice" field="stop_price" />}
      {draft.orderType === OrderType.TRAILING_STOP && (
        <Group gap={6} align="flex-start" wrap="nowrap">
          <NumberField
            {...editing}
            label="Trails by"
            of="trail"
            field="trail"
            unit={draft.trailIn === "percent" ? "%" : instrument.quoteAsset}
            step={draft.trailIn === "percent" ? PERCENT_STEP : tick}
          />
          <Select
            label="Measured in"
            w={110}
            flex="none"
            allowDeselect={false}
            disabled={isLocked}
            value={draft.trailIn}
            onChange={(value) => value && edit({ trailIn: value as Draft["trailIn"] })}
            data={[
              { value: "percent", label: "Percent" },
              { value: "amount", label: "Amount" },
            ]}
          />
        </Group>
      )}
      {takesLimitPrice(draft.orderType) && (
        <NumberField
          {...price}
          label="Limit price"
          of="limitPrice"
          field="limit_price"
          {...(!needsLimitPrice(draft.orderType) && { placeholder: "any, once reached" })}
        />
      )}
    </>
  );
}

/** How long it lasts, and what else it may not do. */
export function TermFields(editing: Editing) {
  const { draft, instrument, isLocked, edit, problem } = editing;
  const tick = instrument.tickSize?.value ?? "1";
  const leaves = { ...editing, unit: instrument.quoteAsset, step: tick };
  const isBuy = draft.side === OrderSide.BUY;
  return (
    <>
      <Select
        label="Lasts"
        size="xs"
        allowDeselect={false}
        disabled={isLocked}
        value={String(draft.timeInForce)}
        onChange={(value) => value && edit({ timeInForce: Number(value) })}
        error={problem("time_in_force")}
        data={timesInForceOf(draft.orderType).map((time) => ({ value: String(time), label: TIMES_IN_FORCE[time].long }))}
      />
      {draft.timeInForce === TimeInForce.GTD && (
        <TextInput
          label="Expires"
          name="expire_time"
          type="datetime-local"
          size="xs"
          disabled={isLocked}
          value={draft.expireTime}
          onChange={(event) => edit({ expireTime: event.currentTarget.value })}
          error={problem("expire_time")}
        />
      )}
      <Stack gap={6}>
        {takesPostOnly(draft) && (
          <Choice label="Post only" title="Only rests: where it would take, it is rejected" of="postOnly" {...editing} />
        )}
        <Choice label="Reduce only" title="Only makes the position smaller" of="reduceOnly" {...editing} />
        <Choice label="Take profit and stop loss" title="Two more orders leave the position that this one makes; on a margin account they do nothing but reduce" of="hasBracket" {...editing} />
      </Stack>
      {draft.hasBracket && (
        <Group gap={6} align="flex-start" wrap="nowrap" grow>
          <NumberField {...leaves} label="Take profit" of="takeProfitPrice" field="take_profit" unit={isBuy ? "above" : "below"} />
          <NumberField {...leaves} label="Stop loss" of="stopLossPrice" field="stop_loss" unit={isBuy ? "below" : "above"} />
        </Group>
      )}
    </>
  );
}

interface ChoiceProps extends Editing {
  label: string;
  title: string;
  of: "postOnly" | "reduceOnly" | "hasBracket";
}

function Choice({ label, title, of, draft, isLocked, edit }: ChoiceProps) {
  return (
    <Checkbox
      size="xs"
      label={label}
      title={title}
      disabled={isLocked}
      checked={draft[of]}
      onChange={(event) => edit({ [of]: event.currentTarget.checked })}
    />
  );
}
