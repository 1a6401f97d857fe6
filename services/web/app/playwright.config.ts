import { defineConfig } from "@playwright/test";

/** Against a running mesh: `EDGE_URL=http://127.0.0.1:8080 npm run e2e`. */
export default defineConfig({
  testDir: "e2e",
  // Most of a test is waiting, and each has a person of its own; more at once would leave two cores to nothing else.
  fullyParallel: true,
  workers: 2,
  retries: 0,
  reporter: "list",
  timeout: 90_000,
  expect: { timeout: 20_000 },
  outputDir: process.env.E2E_OUTPUT ?? "node_modules/.e2e",
  use: {
    baseURL: process.env.EDGE_URL ?? "http://127.0.0.1:8080",
    viewport: { width: 1280, height: 800 },
    screenshot: "only-on-failure",
    launchOptions: {
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
      ],
    },
  },
});
