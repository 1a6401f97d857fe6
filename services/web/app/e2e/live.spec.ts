import { expect } from "@playwright/test";
import { codeOf, earlyInStep, linkTo, newcomer, test, watched } from "./person";

/** A key at the venue of the test's own that this mesh is pointed at, where an order to buy 0.5 BTC was put by hand. */
const API_KEY = process.env.VENUE_API_KEY ?? "";
const API_SECRET = process.env.VENUE_API_SECRET ?? "";
test.skip(API_KEY === "", "the mesh is not pointed at a venue of the test's own");

test("a person opens a live account, puts a key, confirms, trades, adopts what was made by hand, and stops", async ({ page, baseURL }) => {
  test.setTimeout(240_000);
  const complaints = await watched(page, new URL(baseURL!).origin);
  const email = await newcomer(page);
  await page.goto(await linkTo(email));
  await page.getByRole("link", { name: "Go on" }).click();
  await page.getByRole("link", { name: "Security, keys and plan" }).click();
  await page.getByRole("button", { name: "Set up a second factor" }).click();
  const secret = (await page.getByTestId("totp-secret").textContent())!.replace(/ /g, "");
  await earlyInStep();
  await page.getByLabel("Six-digit code").fill(codeOf(secret, 0));
  await page.getByRole("button", { name: "I have kept them" }).click();

  await page.goto("/app/trade");
  await page.getByText("Real money", { exact: true }).click();
  const form = page.getByRole("form", { name: "Open a live account" });
  await form.getByLabel("Name").fill("Main");
  await form.getByRole("button", { name: "Open account" }).click();
  await expect(page).toHaveURL(/\/app\/live$/);
  const banner = page.getByTestId("real-money");
  await expect(banner).toContainText("Main at BINANCE trades nothing now.");
  await expect(page.getByRole("button", { name: "Trade real money" })).toBeDisabled();

  await page.getByRole("button", { name: "Put a key" }).click();
  await page.getByLabel("API key").fill(API_KEY);
  await page.getByRole("textbox", { name: "Secret" }).fill(API_SECRET);
  await page.getByRole("button", { name: "Put and test it" }).click();
  await expect(page.getByTestId("key").locator("[data-state=USABLE]")).toBeVisible();

  await page.getByRole("button", { name: "Trade real money" }).click();
  await page.getByRole("dialog", { name: "Trade real money?" }).getByRole("button", { name: "Trade real money" }).click();
  await expect(page.getByTestId("live-state").locator("[data-state=ON]")).toBeVisible({ timeout: 60_000 });
  await expect(banner).toContainText("Orders of Main trade real money at BINANCE.");
  await expect(page.getByTestId("comparison").first()).toBeVisible({ timeout: 60_000 });

  await page.getByRole("button", { name: "Adopt Buy 0.5 BINANCE:BTCUSDT at 20,000.00" }).click();
  await page.getByLabel("Also those decided").check();
  await expect(page.getByTestId("external-order").locator("[data-state=ADOPTED]")).toBeVisible({ timeout: 60_000 });

  await page.goto("/app/trade/BINANCE%3ABTCUSDT");
  await expect(banner).toBeVisible();
  const ticket = page.getByRole("form", { name: "Order ticket" });
  await expect(ticket.getByText("Conditional")).toBeVisible();
  await ticket.getByLabel("Limit price").fill("21000.00");
  await ticket.getByLabel("Quantity").fill("0.1");
  await expect(page.getByTestId("place-order")).toHaveText("Buy BTCUSDT with real money");
  await page.getByTestId("place-order").click();
  const open = page.getByRole("table", { name: "Open orders" });
  await expect(open.getByRole("row", { name: /Working Limit 21,000\.00 0 \/ 0\.1/ })).toBeVisible();
  await expect(open.getByRole("row", { name: /Working Limit By hand 20,000\.00/ })).toBeVisible();
  await page.getByRole("button", { name: "Cancel all" }).click();
  await page.getByRole("button", { name: "Cancel them" }).click();
  await expect(page.getByRole("tab", { name: "Open orders (0)" })).toBeVisible();

  await page.getByRole("link", { name: "Live", exact: true }).click();
  await page.getByRole("button", { name: "Stop it" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Stop it" }).click();
  await expect(page.getByTestId("live-state")).toContainText("You stopped it.");
  await expect(banner).toContainText("trades nothing now");
  await page.setViewportSize({ width: 390, height: 844 });
  for (const place of ["Trade", "Live"]) {
    await page.getByRole("link", { name: place, exact: true }).click();
    expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(390);
  }
  const stored = await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie);
  for (const each of [API_KEY, API_SECRET]) expect(stored).not.toContain(each);
  expect(complaints).toEqual([]);
});
