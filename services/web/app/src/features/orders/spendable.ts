import type { Instrument } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import type { GetPortfolioResponse } from "@gen/tradeloom/orders/v1/orders_pb.js";

export interface Spendable {
  asset: string;
  available: string;
  /** Of a margin account: how many times that an order may be worth; undefined of a cash account. */
  leverage: string | undefined;
}

/** What an order of this side uses: what it pays with, or of a margin account the margin in what the instrument settles in. */
export function spendableOf(portfolio: GetPortfolioResponse | undefined, instrument: Instrument, isBuy: boolean): Spendable {
  if (portfolio?.account?.leverage) {
    const asset = instrument.perpetual?.settleAsset ?? instrument.quoteAsset;
    const margin = portfolio.margins.find((each) => each.asset === asset);
    return { asset, available: margin?.available?.value ?? "0", leverage: String(portfolio.account.leverage) };
  }
  const asset = isBuy ? instrument.quoteAsset : instrument.baseAsset;
  const balance = portfolio?.balances.find((each) => each.asset === asset);
  return { asset, available: balance?.available?.value ?? "0", leverage: undefined };
}
