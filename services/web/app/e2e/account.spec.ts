import { expect, type Page } from "@playwright/test";
import { codeOf, earlyInStep, linkTo, newcomer, signIn, test, watched } from "./person";

/** Creates a key up to where its secret is shown, or a second factor asked for. */
async function createKey(page: Page, name: string): Promise<void> {
  await page.goto("/app/account/api-keys");
  await page.getByRole("button", { name: "Create a key" }).click();
  const form = page.getByRole("form", { name: "Create an API key" });
  await form.getByLabel("Name").fill(name);
  await form.getByRole("button", { name: "Create the key" }).click();
}

async function takenSecret(page: Page): Promise<string> {
  const secret = await page.getByLabel("Secret of the API key").textContent();
  await page.getByRole("button", { name: "I have kept it" }).click();
  await expect(page.getByLabel("Secret of the API key")).toBeHidden();
  return secret!;
}

test("a person verifies the address, signs in with a second factor, and makes and revokes API keys", async ({ browser, page, baseURL }) => {
  const complaints = await watched(page, new URL(baseURL!).origin);
  const email = await newcomer(page);
  const banner = page.getByRole("region", { name: "Verify your e-mail address" });
  await expect(banner).toContainText(email);

  const link = await linkTo(email);
  await page.goto(link);
  await expect(page.getByText("Your address is verified")).toBeVisible();
  expect(page.url()).toBe(new URL("/app/verify-email", baseURL).href);
  await page.goBack();
  expect(page.url()).not.toContain(link.split("/").at(-1)!);
  await page.goForward();
  await page.getByRole("link", { name: "Go on" }).click();
  await expect(banner).toBeHidden();

  // Signed in elsewhere, before there is a second factor.
  const elsewhere = await (await browser.newContext({ baseURL: baseURL! })).newPage();
  await elsewhere.goto("/");
  await signIn(elsewhere, email);
  await expect(elsewhere.getByRole("button", { name: "Open account" })).toBeVisible();

  await page.getByRole("link", { name: "Security, keys and plan" }).click();
  await page.getByRole("button", { name: "Set up a second factor" }).click();
  await expect(page.getByAltText(/for the authenticator app to scan/)).toHaveJSProperty("complete", true);
  expect(await page.getByAltText(/for the authenticator app to scan/).evaluate((image: HTMLImageElement) => image.naturalWidth)).toBeGreaterThan(0);
  const secret = (await page.getByTestId("totp-secret").textContent())!.replace(/ /g, "");
  // Each time step lets in once: the one before, the present and the next are taken in turn.
  await earlyInStep();
  await page.getByLabel("Six-digit code").fill(codeOf(secret, -1));
  const codes = (await page.getByLabel("Recovery codes").textContent())!.split("\n");
  expect(codes).toHaveLength(10);
  const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download" }).click()]);
  expect(file.suggestedFilename()).toBe("tradeloom-recovery-codes.txt");
  await page.getByRole("button", { name: "I have kept them" }).click();

  await page.getByRole("button", { name: `Signed in as ${email}` }).click();
  await page.getByRole("menuitem", { name: "Sign out" }).click();
  await signIn(page, email);
  await page.getByLabel("Six-digit code").fill(codeOf(secret, 0));
  await expect(page.getByRole("button", { name: "Open account" })).toBeVisible();

  await createKey(page, "grid bot");
  const apiKey = await takenSecret(page);
  await page.getByRole("button", { name: "Revoke grid bot" }).click();
  await page.getByRole("button", { name: "Revoke it" }).click();
  await expect(page.getByTestId(/^api-key-/).locator("[data-state=revoked]")).toBeVisible();

  // The other session's token is outdated, and proves no second factor: both mend themselves.
  await createKey(elsewhere, "second bot");
  await elsewhere.getByRole("dialog", { name: "Is it you?" }).getByLabel("Six-digit code").fill(codeOf(secret, 1));
  await takenSecret(elsewhere);
  await elsewhere.goto("/app/account/security");
  await elsewhere.getByRole("button", { name: "End all others" }).click();
  await elsewhere.getByRole("button", { name: "End them" }).click();
  await expect(elsewhere.getByRole("list", { name: "Sessions" }).getByText("This one")).toBeVisible();
  await expect(elsewhere.getByRole("button", { name: "End all others" })).toBeHidden();

  await page.goto("/app/account/activity");
  await expect(page.getByRole("form", { name: "Sign in" })).toBeVisible();
  const stored = await page.evaluate(() => JSON.stringify({ ...localStorage, ...sessionStorage }) + document.cookie);
  for (const each of [secret, apiKey, codes[0]!]) expect(stored).not.toContain(each);
  expect(complaints).toEqual([]);

  await elsewhere.setViewportSize({ width: 390, height: 844 });
  for (const place of ["Security", "API keys", "Plan", "Activity"]) {
    await elsewhere.getByRole("link", { name: place, exact: true }).click();
    await expect(elsewhere.getByRole("region", { name: { Security: "Sessions", Plan: "Plans" }[place] ?? place })).toBeVisible();
    expect(await elsewhere.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(390);
  }
  await expect(elsewhere.getByRole("list", { name: "Activity" })).toContainText("API key created");
  await elsewhere.context().close();
});
