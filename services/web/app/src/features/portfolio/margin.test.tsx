import { create } from "@bufbuild/protobuf";
import { InstrumentSchema } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { AccountKind, GetPortfolioResponseSchema, PortfolioService, type CreateAccountRequest } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { RiskEventKind, RiskEventSchema } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { screen, within } from "@testing-library/react";
import { expect, test } from "vitest";
import { OpenAccountForm } from "@/features/accounts/OpenAccountForm";
import { spendableOf } from "@/features/orders/spendable";
import { eventText } from "@/features/risk/words";
import { signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { MarginStandings } from "./MarginStandings";
import { PositionsTable } from "./PositionsTable";

const PORTFOLIO = create(GetPortfolioResponseSchema, {
  account: { leverage: 5 },
  positions: [
    {
      instrumentId: "SIM:BTCUSDT-PERP",
      // Flat by now, so that there is nothing to close.
      quantity: { value: "0" },
      liquidationPrice: { value: "30175.9" },
      funding: { value: "-2.5" },
    },
  ],
  margins: [
    { asset: "USDT", walletBalance: { value: "9987.5" }, marginBalance: { value: "9987.5" }, available: { value: "4987.5" }, marginRatio: { value: "0.01251565" } },
    { asset: "USDC", walletBalance: { value: "1" }, marginBalance: { value: "-3" } },
    { asset: "EUR", walletBalance: { value: "1" } },
  ],
});

test("a margin account shows where it stands, and each position's liquidation price and funding", async () => {
  show(
    await signedInApi(() => undefined),
    <>
      <MarginStandings margins={PORTFOLIO.margins} />
      <PositionsTable positions={PORTFOLIO.positions} />
    </>,
  );
  const rows = within(screen.getByRole("table", { name: "Margin" })).getAllByRole("row");
  expect(rows[1]!.textContent).toMatch(/USDT9,987\.50.*4,987\.501\.25 %/);
  expect(rows[2]!.textContent).toMatch(/all$/);
  expect(rows[3]!.textContent).toMatch(/–$/);
  expect(screen.getByRole("row", { name: /SIM:BTCUSDT-PERP/ }).textContent).toMatch(/-2\.50.*30,175\.90/);
});

test("an order of a margin account uses its margin, whichever side it is of", () => {
  const instrument = create(InstrumentSchema, { baseAsset: "BTC", quoteAsset: "USDT" });
  for (const isBuy of [true, false]) expect(spendableOf(PORTFOLIO, instrument, isBuy)).toEqual({ asset: "USDT", available: "4987.5", leverage: "5" });
  const cash = create(GetPortfolioResponseSchema, { account: {}, balances: [{ asset: "BTC", available: { value: "2" } }] });
  expect(spendableOf(cash, instrument, false)).toEqual({ asset: "BTC", available: "2", leverage: undefined });
});

test("a margin account is opened with a leverage that it may have", async () => {
  const asked: CreateAccountRequest[] = [];
  const api = await signedInApi(({ service }) => {
    service(PortfolioService, {
      createAccount: (request) => {
        asked.push(request);
        return { account: { accountId: "a1" } };
      },
    });
  });
  const user = show(api, <OpenAccountForm isFirst onOpened={() => undefined} />);
  await user.selectOptions(screen.getByLabelText("It trades"), "Perpetual futures, on margin");
  const leverage = screen.getByLabelText("Leverage");
  await user.clear(leverage);
  await user.type(leverage, "126");
  await user.click(screen.getByRole("button", { name: "Open account" }));
  await screen.findByText("A whole number from 1 to 125");
  expect(asked).toEqual([]);
  await user.clear(leverage);
  await user.type(leverage, "20");
  await user.click(screen.getByRole("button", { name: "Open account" }));
  await expect.poll(() => asked.map(({ kind, leverage }) => [kind, leverage])).toEqual([[AccountKind.MARGIN, 20]]);
});

test("what came of an account's margin is said in words", () => {
  const limit = "margin_ratio/USDT";
  const text = (kind: RiskEventKind, value: string, bound = "1") => eventText(create(RiskEventSchema, { kind, limit, value, bound }));
  expect(text(RiskEventKind.MARGIN_WARNED, "0.81")).toBe("margin ratio in USDT: 0.81, at 1 all is liquidated");
  expect(text(RiskEventKind.LIQUIDATED, "USED_UP")).toBe("all margin in USDT is used up");
  const set = create(RiskEventSchema, { kind: RiskEventKind.POSITION_SET, limit: "position", value: "0.3", bound: "0.5" });
  expect(eventText(set)).toBe("the venue holds 0.3, 0.5 was known here");
  const left = create(RiskEventSchema, { kind: RiskEventKind.NOT_ADOPTED, limit: "external_order", value: "77" });
  expect(eventText(left)).toBe("order 77 goes on at the venue and is not followed here; cancel it there");
});
