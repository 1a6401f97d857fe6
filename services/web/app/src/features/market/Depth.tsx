import { UnstyledButton } from "@mantine/core";
import type { BookLevel } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { Empty } from "@/ui/states";
import classes from "./Depth.module.css";
import { priceText, volumeText } from "./prices";
import type { Tape } from "./tape";

/** So many levels of each side are shown. */
const LEVELS_SHOWN = 5;

interface Props {
  tape: Tape;
  places: number;
  /** Whether the instrument's feed brings a book at all. */
  hasBook: boolean;
  onChoose(price: number): void;
}

/** The best of the book; a price goes into the ticket with a click. */
export function Depth({ tape, places, hasBook, onChoose }: Props) {
  const bids = tape.book?.bids.slice(0, LEVELS_SHOWN) ?? levelOf(tape.quote?.bidPrice, tape.quote?.bidQuantity);
  const asks = tape.book?.asks.slice(0, LEVELS_SHOWN) ?? levelOf(tape.quote?.askPrice, tape.quote?.askQuantity);
  if (!hasBook) return <Empty title="No order book">This feed brings trades only.</Empty>;
  if (bids.length === 0 && asks.length === 0) return <Empty title="Waiting for the book" />;
  const largest = Math.max(...[...bids, ...asks].map((level) => level.quantity));
  const spread = bids[0] && asks[0] ? asks[0].price - bids[0].price : undefined;

  const row = (side: "bid" | "ask") => (level: BookLevel) => (
    <UnstyledButton
      key={level.price}
      className={classes.level!}
      data-side={side}
      onClick={() => onChoose(level.price)}
      aria-label={`${side === "bid" ? "Bid" : "Ask"} ${priceText(level.price, places)}, quantity ${volumeText(level.quantity)}`}
    >
      <span className={classes.weight} style={{ width: `${(100 * level.quantity) / largest}%` }} />
      <span className={side === "bid" ? "rising" : "falling"}>{priceText(level.price, places)}</span>
      <span>{volumeText(level.quantity)}</span>
    </UnstyledButton>
  );

  return (
    <div className={classes.depth} data-testid="depth">
      <div>{[...asks].reverse().map(row("ask"))}</div>
      <div className={classes.spread}>
        {spread === undefined ? "–" : `Spread ${priceText(spread, places)}`}
      </div>
      <div>{bids.map(row("bid"))}</div>
    </div>
  );
}

function levelOf(price = 0, quantity = 0): BookLevel[] {
  return price > 0 ? [{ price, quantity } as BookLevel] : [];
}
