import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { expect, test as base, type Page } from "@playwright/test";

export const PASSWORD = "three looms weave at night";

const ROOT = fileURLToPath(new URL("../../../../", import.meta.url));
/** Of the mesh that is tested: where it writes mails, having no mail server. */
const MAILS = process.env.MAILS ?? `${ROOT}.tradeloom/mails`;
const PYTHON = process.env.PYTHON ?? `${ROOT}.venv/bin/python`;

const TOLD_LINES = 60;

/** Playwright's own; a test that fails also prints what was done in its first window and asked of the mesh, of which CI keeps nothing else. */
export const test = base.extend<{ told: void }>({
  told: [
    async ({ context }, use, info) => {
      const lines: string[] = [];
      const tell = (line: string) => {
        lines.push(`${new Date().toISOString().slice(11, 23)} ${line}`);
        if (lines.length > TOLD_LINES) lines.shift();
      };
      context.on("console", (message) => message.text().startsWith("did ") && tell(message.text()));
      context.on("request", (request) => request.method() === "POST" && tell(`asks ${new URL(request.url()).pathname}`));
      context.on("requestfailed", (request) => tell(`fails ${new URL(request.url()).pathname}: ${request.failure()?.errorText}`));
      context.on("response", (response) => {
        const path = new URL(response.url()).pathname;
        if (path.startsWith("/tradeloom.")) tell(`told ${path}: ${response.status()} ${response.headers()["grpc-status"] ?? ""}`);
      });
      await context.addInitScript(() => {
        for (const kind of ["mousedown", "mouseup", "click", "submit", "invalid"]) {
          document.addEventListener(kind, ({ target }) => console.debug(`did ${kind} ${(target as Element).textContent?.slice(0, 40)}`), true);
        }
      });
      await use();
      if (info.status !== info.expectedStatus) console.log(lines.join("\n"));
    },
    { auto: true },
  ],
});

/** A page whose every complaint fails its test: errors, refused policies, requests to anywhere else. */
export async function watched(page: Page, origin: string): Promise<string[]> {
  const complaints: string[] = [];
  page.on("pageerror", (error) => complaints.push(`error: ${error.message}`));
  page.on("console", (message) => {
    if (/Content Security Policy|Refused to/.test(message.text())) complaints.push(message.text());
  });
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol.startsWith("http") && url.origin !== origin) complaints.push(`asked ${url.origin}`);
  });
  return complaints;
}

/** Somebody new, whose first page is the one that opens an account. */
export async function newcomer(page: Page): Promise<string> {
  const email = `browser-${crypto.randomUUID()}@example.com`;
  await page.goto("/");
  await page.getByRole("button", { name: "Register" }).click();
  await page.getByLabel("E-mail").fill(email);
  await page.getByLabel("Name").fill("Ada");
  await page.getByRole("textbox", { name: "Password" }).fill(PASSWORD);
  await page.getByRole("button", { name: "Register" }).click();
  await expect(page.getByRole("button", { name: "Open account" })).toBeVisible();
  return email;
}

export async function registered(page: Page): Promise<string> {
  const email = await newcomer(page);
  await page.getByRole("button", { name: "Open account" }).click();
  await expect(page.getByTestId("stream-orders")).toHaveAttribute("data-phase", "live");
  return email;
}

export async function signIn(page: Page, email: string): Promise<void> {
  const form = page.getByRole("form", { name: "Sign in" });
  await form.getByLabel("E-mail").fill(email);
  await form.getByRole("textbox", { name: "Password" }).fill(PASSWORD);
  await form.getByRole("button", { name: "Sign in" }).click();
}

/** What the link in somebody's mail says after the host. */
export async function linkTo(email: string): Promise<string> {
  let link = "";
  await expect
    .poll(() => {
      for (const name of readdirSync(MAILS).filter((each) => each.endsWith(".eml"))) {
        // Long lines are folded by "=" (RFC 2045, section 6.7).
        const mail = readFileSync(`${MAILS}/${name}`, "utf8").replace(/=\r?\n/g, "");
        if (mail.includes(`To: ${email}`)) link = /\/#\/[a-z-]+\/[\w-]+/.exec(mail)?.[0] ?? "";
      }
      return link;
    })
    .not.toBe("");
  return link;
}

const STEP_SECONDS = 30;
const TYPING_SECONDS = 10;

/** Waits, if need be, until the present step of an authenticator app is long enough for the code before it to be taken. */
export async function earlyInStep(): Promise<void> {
  const left = STEP_SECONDS - ((Date.now() / 1000) % STEP_SECONDS);
  if (left < TYPING_SECONDS) await new Promise((resolve) => setTimeout(resolve, left * 1000));
}

/** What an authenticator app with this secret shows now, or so many steps of half a minute later. */
export function codeOf(secret: string, steps: number): string {
  const uri = `otpauth://totp/Tradeloom?secret=${secret}&issuer=Tradeloom`;
  const program = "import sys; from tests.authenticator import Authenticator as A; print(A(sys.argv[1]).code(steps=int(sys.argv[2])))";
  return execFileSync(PYTHON, ["-c", program, uri, String(steps)], { cwd: ROOT, encoding: "utf8" }).trim();
}
