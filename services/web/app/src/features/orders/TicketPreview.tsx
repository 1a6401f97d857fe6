import { Text } from "@mantine/core";
import type { Amount, LimitMargin, PlaceOrderRequest } from "@gen/tradeloom/orders/v1/orders_pb.js";
import type { ReactNode } from "react";
import { refusalOf, refusalOfStatus } from "@/api/refusal";
import { shown, unitsOf } from "@/lib/decimal";
import { limitText } from "@/lib/limits";
import classes from "./OrderTicket.module.css";
import { usePreview } from "./usePreview";

interface Props {
  /** Undefined while what is typed is no order yet. */
  request: PlaceOrderRequest | undefined;
  /** With a bracket only its entry is previewed. */
  isEntry: boolean;
}

/** What the order would cost, whether it would be refused and why, and how near the account would come to its limits. */
export function TicketPreview({ request, isEntry }: Props) {
  const { query, isOutdated } = usePreview(request);
  if (!request) return null;
  const { data, error } = query;
  if (error) return <Line>No preview: {refusalOf(error).message}</Line>;
  if (!data) return <Line>Looking what it would cost …</Line>;
  const refusals = data.refusals.map(refusalOfStatus);
  const nearest = nearestOf(data.margins);
  return (
    <div className={classes.preview} aria-live="polite" aria-busy={isOutdated} data-testid="preview" data-outdated={isOutdated || undefined}>
      <dl className={classes.sums}>
        <Sum name="Cost, about" sum={data.notional} />
        <Sum name="Fee, about" sum={data.fee} />
        <Sum name="Set aside" sum={data.reserved} />
      </dl>
      {refusals.length > 0 ? (
        <Text size="xs" className={classes.warning!} component="div" role="status">
          Would be refused:
          <ul>
            {refusals.map(({ reason, message }, index) => (
              <li key={`${reason} ${index}`} data-reason={reason}>
                {message}
              </li>
            ))}
          </ul>
        </Text>
      ) : (
        <Line>{isEntry ? "The entry would be accepted." : "Would be accepted."}</Line>
      )}
      {nearest && (
        <Line>
          Nearest limit: {limitText(nearest.limit)}, {shown(nearest.value?.value, 0, 4)} of {shown(nearest.bound?.value, 0, 4)}.
        </Line>
      )}
    </div>
  );
}

function Sum({ name, sum }: { name: string; sum: Amount | undefined }) {
  if (!sum) return null;
  return (
    <>
      <dt>{name}</dt>
      <dd>
        {shown(sum.amount?.value, 2, 4)} {sum.asset}
      </dd>
    </>
  );
}

function Line({ children }: { children: ReactNode }) {
  return (
    <Text size="xs" c="dimmed" component="div">
      {children}
    </Text>
  );
}

const SHARES = 10_000n;

/** The limit of which the largest share would be used. */
export function nearestOf(margins: readonly LimitMargin[]): LimitMargin | undefined {
  const share = ({ value, bound }: LimitMargin) => {
    const most = unitsOf(bound?.value ?? "") ?? 0n;
    return most > 0n ? ((unitsOf(value?.value ?? "") ?? 0n) * SHARES) / most : SHARES;
  };
  return margins.reduce<LimitMargin | undefined>((found, each) => (found && share(found) >= share(each) ? found : each), undefined);
}
