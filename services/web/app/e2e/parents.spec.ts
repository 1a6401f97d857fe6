import { expect } from "@playwright/test";
import { registered, test, watched } from "./person";

test("a TWAP trades slice by slice, an iceberg shows a part, and both are canceled", async ({ page, baseURL }) => {
  test.setTimeout(180_000);
  const complaints = await watched(page, new URL(baseURL!).origin);
  await registered(page);
  await page.getByText("In parts").click();
  const ticket = page.getByRole("form", { name: "Parent order ticket" });
  await ticket.getByLabel("Quantity in all").fill("3.6");
  await ticket.getByLabel("A slice every").fill("1");
  await ticket.getByLabel("Unit").click();
  await page.getByRole("option", { name: "seconds" }).click();
  await ticket.getByRole("button", { name: "Ends 1 hour after the start" }).click();
  await expect(page.getByTestId("plan")).toContainText(/3,(5\d\d|600) slices of about 0\.00\d+ BTC, one every second/);
  // Less than a lot each: the page says so by itself.
  await ticket.getByLabel("Quantity in all").fill("0.0001");
  await page.getByTestId("place-parent-order").click();
  await expect(ticket).toContainText("Makes slices of less than");
  await ticket.getByLabel("Quantity in all").fill("3.6");
  await page.getByTestId("place-parent-order").click();

  await page.getByRole("tab", { name: "Parent orders (1)" }).click();
  const underWay = page.getByRole("table", { name: "Parent orders under way" });
  await expect(underWay.getByRole("row", { name: /Buy TWAP Under way/ })).toBeVisible();
  await underWay.getByRole("button", { name: "Show Buy 3.6 SIM:BTCUSDT by TWAP" }).click();
  const life = page.getByRole("dialog", { name: "Buy 3.6 SIM:BTCUSDT by TWAP" });
  await expect(life.getByRole("region", { name: "Its orders" }).locator("[data-state=FILLED]").nth(1)).toBeVisible();
  await life.getByRole("button", { name: "Cancel it" }).click();
  await page.getByRole("dialog", { name: /^Cancel:/ }).getByRole("button", { name: "Cancel it" }).click();
  await expect(life.locator("[data-state=CANCELED]").first()).toBeVisible();
  await page.keyboard.press("Escape");

  await ticket.getByText("Iceberg").click();
  await ticket.getByLabel("Quantity in all").fill("2");
  await ticket.getByLabel("Shown at a time").fill("0.5");
  await ticket.getByLabel("Limit price").fill("1000");
  await page.getByTestId("place-parent-order").click();
  await page.getByRole("tab", { name: "Open orders (1)" }).click();
  await expect(page.getByRole("table", { name: "Open orders" }).getByRole("row", { name: /Working Limit Slice 1 1,000\.00 0 \/ 0\.5/ })).toBeVisible();

  await page.getByRole("link", { name: "Orders", exact: true }).click();
  await page.getByRole("tab", { name: "Parent orders" }).click();
  expect(page.url()).toBe(new URL("/app/orders/parents", baseURL).href);
  const all = page.getByRole("table", { name: "Parent orders" });
  await expect(all.locator("tbody tr")).toHaveCount(2);
  await all.getByRole("button", { name: "Cancel Buy 2 SIM:BTCUSDT by Iceberg" }).click();
  await page.getByRole("button", { name: "Cancel it" }).click();
  await expect(all.locator("[data-state=CANCELED]")).toHaveCount(2);
  await page.setViewportSize({ width: 390, height: 844 });
  const [wide, shown] = await page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
  expect(wide).toBeLessThanOrEqual(shown!);
  expect(complaints).toEqual([]);
});
