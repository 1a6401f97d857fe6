import { expect, type Page } from "@playwright/test";
import { PASSWORD, registered, test, watched } from "./person";

function ticket(page: Page) {
  return page.getByRole("form", { name: "Order ticket" });
}

test("a person registers, watches ticks, places an order and sees it filled", async ({ page, baseURL }) => {
  const complaints = await watched(page, new URL(baseURL!).origin);
  await registered(page);

  await expect(page.getByTestId("stream-ticks")).toHaveAttribute("data-phase", "live");
  const price = page.getByTestId("last-price");
  const first = await price.textContent();
  await expect(price).not.toHaveText(first!);
  await expect(page.getByTestId("chart")).not.toHaveAttribute("data-bars", "0");

  await ticket(page).getByText("Market", { exact: true }).click();
  await ticket(page).getByLabel("Quantity").fill("0.25");
  await page.getByTestId("place-order").click();
  await expect(page.getByText("Filled: Buy SIM:BTCUSDT").first()).toBeVisible();

  await page.getByRole("tab", { name: "History" }).click();
  const row = page.getByRole("table", { name: "Order history" }).locator("tbody tr").first();
  await expect(row.locator("[data-state=FILLED]")).toBeVisible();
  await row.click();
  await expect(page.getByTestId("order-life")).toContainText("Accepted");
  await expect(page.getByTestId("order-life")).toContainText("Filled");
  await expect(page.getByRole("table", { name: "Fills of the order" }).locator("tbody tr").first()).toBeVisible();
  await page.keyboard.press("Escape");

  await page.getByRole("link", { name: "Portfolio" }).click();
  await expect(page.getByRole("table", { name: "Positions" })).toContainText("SIM:BTCUSDT");
  await expect(page.getByRole("table", { name: "Balances" })).toContainText("BTC");
  expect(complaints).toEqual([]);
});

test("a resting order is canceled, and a refusal names its field and its reason", async ({ page }) => {
  await registered(page);
  await ticket(page).getByLabel("Limit price").fill("1000.00");
  await ticket(page).getByLabel("Quantity").fill("0.5");
  await page.getByTestId("place-order").click();
  const open = page.getByRole("table", { name: "Open orders" });
  await expect(open.locator("[data-state=NEW]")).toBeVisible();

  await ticket(page).getByLabel("Quantity").fill("5000");
  await page.getByTestId("place-order").click();
  await expect(ticket(page)).toContainText("Not enough USDT");
  await expect(ticket(page).locator("[data-reason=INSUFFICIENT_BALANCE]")).toBeVisible();

  await open.getByRole("button", { name: /^Cancel/ }).click();
  await page.getByRole("tab", { name: "History" }).click();
  await expect(page.getByRole("table", { name: "Order history" }).locator("[data-state=CANCELED]")).toBeVisible();
});

test("an entry with its bracket is placed, changed, and canceled with all others; a limit refuses what is too much", async ({ page, baseURL }) => {
  // The longest walk of all; a busy machine is slow and not wrong.
  test.setTimeout(180_000);
  const complaints = await watched(page, new URL(baseURL!).origin);
  await registered(page);
  await ticket(page).getByLabel("Limit price").fill("1000.00");
  await ticket(page).getByLabel("Quantity").fill("0.5");
  await ticket(page).getByLabel("Take profit and stop loss").check();
  await ticket(page).getByLabel("Take profit", { exact: true }).fill("1100");
  await ticket(page).getByLabel("Stop loss", { exact: true }).fill("900");
  await expect(page.getByTestId("preview")).toContainText("500.00 USDT");
  await page.getByTestId("place-order").click();
  const open = page.getByRole("table", { name: "Open orders" });
  await expect(open.locator("[data-state=HELD]")).toHaveCount(2);
  await expect(open.locator("[data-state=NEW]")).toHaveCount(1);

  await open.getByRole("button", { name: "Change Buy 0.5 SIM:BTCUSDT" }).click();
  await page.getByRole("form", { name: "Change the order" }).getByLabel("Limit price").fill("1001.00");
  await page.getByRole("button", { name: "Change it" }).click();
  await expect(open.getByRole("row", { name: /Working.*1,001\.00/ })).toBeVisible();

  await page.getByRole("button", { name: "Cancel all" }).click();
  await page.getByRole("button", { name: "Cancel them" }).click();
  await expect(page.getByRole("tab", { name: "Open orders (0)" })).toBeVisible();

  await page.getByRole("link", { name: "Risk" }).click();
  await page.getByRole("form", { name: "Limits" }).getByLabel("Value of one order").fill("100");
  await page.getByRole("button", { name: "Set the limits" }).click();
  await expect(page.getByText("They hold for every order from now on.")).toBeVisible();
  await page.getByRole("link", { name: "Trade" }).click();
  await ticket(page).getByLabel("Limit price").fill("1000.00");
  await ticket(page).getByLabel("Quantity").fill("0.5");
  await expect(page.getByTestId("preview").locator("[data-reason=RISK_LIMIT_REACHED]")).toBeVisible();
  await page.getByTestId("place-order").click();
  await expect(ticket(page)).toContainText("value of one order would be 500, at most 100 is allowed");
  await page.getByRole("link", { name: "Risk" }).click();
  await expect(page.getByRole("list", { name: "Risk events" })).toContainText("value of one order: 500 of at most 100");
  expect(complaints).toEqual([]);
});

test("a reload keeps the session, signing out ends it, and no token is left behind", async ({ page }) => {
  const email = await registered(page);
  await page.reload();
  await expect(page.getByTestId("stream-orders")).toHaveAttribute("data-phase", "live");
  const stored = await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie);
  expect(stored).not.toContain("eyJ");
  expect(stored).not.toContain(PASSWORD);

  await page.getByRole("button", { name: `Signed in as ${email}` }).click();
  await page.getByRole("menuitem", { name: "Sign out" }).click();
  await expect(page.getByRole("form", { name: "Sign in" })).toBeVisible();
  expect(await page.evaluate(() => sessionStorage.length)).toBe(0);
  await page.goto("/app/portfolio");
  await expect(page.getByRole("form", { name: "Sign in" })).toBeVisible();
});

test("an order whose answer was lost is placed once, however often it is sent", async ({ page }) => {
  await registered(page);
  await ticket(page).getByLabel("Limit price").fill("1000.00");
  await ticket(page).getByLabel("Quantity").fill("0.5");
  await expect(page.getByTestId("available")).toContainText("100,000.00");
  // The request arrives and its answer does not.
  await page.route("**/tradeloom.orders.v1.OrderService/PlaceOrder", async (route) => {
    await route.fetch();
    await route.abort("connectionreset");
  });
  await page.getByTestId("place-order").click();
  await expect(ticket(page)).toContainText("may have been placed", { timeout: 40_000 });

  await page.reload();
  await expect(ticket(page)).toContainText("may have been placed");
  await page.unroute("**/tradeloom.orders.v1.OrderService/PlaceOrder");
  await page.getByRole("button", { name: "Send it again" }).click();
  await expect(ticket(page)).not.toContainText("may have been placed");
  await page.reload();
  await expect(page.getByRole("table", { name: "Open orders" }).locator("tbody tr")).toHaveCount(1);
});

test("a second window can trade although the first holds the live streams, and takes them over", async ({ context }) => {
  const [first, second] = [await context.newPage(), await context.newPage()];
  await registered(first);
  await expect(first.getByTestId("stream-candles")).toHaveAttribute("data-phase", "live");
  await registered(second);
  await expect(second.getByTestId("stream-ticks")).toHaveAttribute("data-phase", "queued");
  await ticket(second).getByLabel("Limit price").fill("1000.00");
  await ticket(second).getByLabel("Quantity").fill("0.5");
  await second.getByTestId("place-order").click();
  await expect(second.getByRole("table", { name: "Open orders" }).locator("[data-state=NEW]")).toBeVisible();
  await first.close();
  await expect(second.getByTestId("stream-ticks")).toHaveAttribute("data-phase", "live");
});

test("everything fits a phone", async ({ page }) => {
  await page.setViewportSize({ width: 390, height: 844 });
  await registered(page);
  for (const place of ["Trade", "Orders", "Portfolio", "Risk"]) {
    await page.getByRole("link", { name: place }).click();
    const [wide, shown] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
    expect(wide).toBeLessThanOrEqual(shown!);
  }
});
