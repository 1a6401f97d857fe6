import { AccountMode, PortfolioService, type CreateAccountRequest } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { screen, within } from "@testing-library/react";
import { expect, test } from "vitest";
import { PATHS } from "@/app/paths";
import { signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { OpenAccountForm } from "./OpenAccountForm";

async function open() {
  const asked: CreateAccountRequest[] = [];
  const opened: string[] = [];
  const api = await signedInApi(({ service }) => {
    service(PortfolioService, {
      createAccount: (request) => {
        asked.push(request);
        return { account: { accountId: `a${asked.length}` } };
      },
    });
  });
  const user = show(api, <OpenAccountForm onOpened={(accountId) => opened.push(accountId)} />);
  return { asked, opened, user };
}

test("a live account has a venue and what its worth is counted in, and starts with nothing", async () => {
  const { asked, opened, user } = await open();
  await user.click(screen.getByText("Real money"));
  const form = within(screen.getByRole("form", { name: "Open a live account" }));
  expect(form.queryByText("It starts with")).toBeNull();
  await user.type(form.getByLabelText(/^Name/), "Main");
  await user.click(form.getByRole("combobox", { name: /Venue/ }));
  await user.click(await screen.findByRole("option", { name: "KRAKEN" }));
  const valuation = form.getByLabelText(/Worth is counted in/);
  expect(valuation).toHaveProperty("value", "USD");
  await user.clear(valuation);
  await user.type(valuation, "u s");
  await user.click(form.getByRole("button", { name: "Open account" }));
  await form.findByText("Such as USDT");
  expect(asked).toEqual([]);
  await user.clear(valuation);
  await user.type(valuation, "eur");
  await user.click(form.getByRole("button", { name: "Open account" }));
  await expect.poll(() => opened).toEqual(["a1"]);
  expect(asked).toMatchObject([{ name: "Main", mode: AccountMode.LIVE, venue: "KRAKEN", valuationAsset: "EUR", startingBalances: [] }]);
  await expect.poll(() => screen.getByTestId("place").textContent).toBe(PATHS.live);
});

test("a paper account has neither", async () => {
  const { asked, user } = await open();
  await user.type(screen.getByLabelText(/^Name/), "Play");
  await user.click(screen.getByRole("button", { name: "Open account" }));
  await expect.poll(() => asked.length).toBe(1);
  expect(asked[0]).toMatchObject({ mode: AccountMode.PAPER, venue: "", valuationAsset: "" });
  expect(asked[0]!.startingBalances.map(({ asset }) => asset)).toEqual(["USDT", "USD"]);
});
