import { readFileSync } from "node:fs";
import { expect, type Page } from "@playwright/test";
import { registered, test } from "./person";
import { Ticks } from "./ticks";
import { Wire } from "./wire";

interface Process {
  name: string;
  pid: number | null;
  state: string;
  restarts: number;
}

/** What runs behind the edge, as the supervisor says. */
function behind(): Process[] {
  const { processes } = JSON.parse(readFileSync(process.env.STACK_STATE!, "utf8")) as { processes: Process[] };
  return processes.filter(({ name }) => name !== "edge");
}

/** What it failed of stands in the failure: nothing else is left of a run elsewhere. */
async function live(page: Page): Promise<void> {
  for (const stream of ["stream-ticks", "stream-orders"]) {
    const badge = page.getByTestId(stream);
    const phase = async () => [await badge.getAttribute("data-phase"), await badge.getAttribute("data-refusal")].filter(Boolean).join(": ");
    await expect.poll(phase, { message: stream, timeout: 90_000 }).toBe("live");
  }
}

/** The page draws what comes: its newest trade changes. */
async function draws(page: Page): Promise<void> {
  const newest = page.getByTestId("trades").getByRole("row").first();
  const before = await newest.innerText();
  await expect(newest).not.toHaveText(before);
}

test("a page shows live ticks through a restart of everything behind the edge", async ({ page }) => {
  test.setTimeout(240_000);
  const ticks = await Ticks.of(page);
  await registered(page);
  await page.evaluate(() => ((window as unknown as { same: boolean }).same = true));
  await ticks.more(20);

  const before = behind();
  for (const { pid } of before) process.kill(pid!, "SIGKILL");
  await expect(page.getByTestId("stream-ticks")).not.toHaveAttribute("data-phase", "live");
  const isBack = () => {
    const after = behind();
    return before.every(({ name, restarts }) => after.some((one) => one.name === name && one.state === "ready" && one.restarts > restarts));
  };
  await expect.poll(isBack, { timeout: 90_000 }).toBe(true);
  await live(page);
  await ticks.more(20);
  await draws(page);

  expect(ticks.streams).toBeGreaterThan(1);
  // Nobody signed in again, and nothing was loaded again.
  expect(await page.evaluate(() => (window as unknown as { same?: boolean }).same)).toBe(true);
  await page.screenshot({ path: `${process.env.E2E_OUTPUT}/after-restart.png` });
  console.log(`${ticks.count} ticks over ${ticks.streams} streams; told: ${ticks.told.join(", ") || "nothing is missing"}`);
});

test("a browser that loses its connection has every tick, once and in order", async ({ browser, baseURL }) => {
  test.setTimeout(240_000);
  const wire = await Wire.to(baseURL!);
  const context = await browser.newContext({ baseURL: wire.url });
  try {
    const page = await context.newPage();
    const ticks = await Ticks.of(page);
    await registered(page);
    await ticks.more(20);
    // That nothing comes is noticed after two heartbeats only.
    for (const lose of [() => wire.cut(), ...(process.env.LONG ? [() => wire.hang()] : [])]) {
      const { streams } = ticks;
      lose();
      await expect(page.getByTestId("stream-ticks")).toHaveAttribute("data-phase", "waiting", { timeout: 40_000 });
      wire.mend();
      await live(page);
      await ticks.more(20);
      await draws(page);
      expect(ticks.streams).toBeGreaterThan(streams);
    }
    // Redis holds far more than was missed.
    expect(ticks.told).toEqual([]);
  } finally {
    await context.close();
    wire.close();
  }
});
