import { Code } from "@connectrpc/connect";
import { AdminService, AuthService } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { PortfolioService } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { RiskService } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { screen } from "@testing-library/react";
import { expect, test } from "vitest";
import { refused, signedInApi, USER } from "@/test/api";
import { show } from "@/test/show";
import { Pages } from "./Pages";
// Beforehand: how long it takes to read them, which is long on a busy machine, is not what is tested.
import "@/features/administration/AdministrationPage";
import "./PersonalPages";
import { PATHS } from "./paths";

async function open(path: string, { roles = ["user"], isOrdersAway = false } = {}) {
  const api = await signedInApi(
    ({ service }) => {
      service(AuthService, { listSessions: () => ({}) });
      service(AdminService, { listUsers: () => ({}) });
      service(RiskService, { getKillSwitch: () => ({}) });
      service(PortfolioService, {
        listAccounts: () => {
          if (isOrdersAway) throw refused(Code.Unavailable, "DEPENDENCY_UNAVAILABLE");
          return {};
        },
      });
    },
    { login: () => ({ accessToken: "a", refreshToken: "r", expiresIn: 900, sessionId: "s1", user: { ...USER, roles } }) },
  );
  return show(api, <Pages link={undefined} />, path);
}

test("what belongs to the person needs no trading account", async () => {
  await open(PATHS.account);
  await screen.findByRole("button", { name: "Set up a second factor" });
  expect(screen.getByTestId("place").textContent).toBe(PATHS.security);
});

test("nor that orders can be reached", async () => {
  await open(PATHS.security, { isOrdersAway: true });
  await screen.findByRole("button", { name: "Set up a second factor" });
});

test("trading needs an account first", async () => {
  await open(PATHS.orders);
  await screen.findByRole("form", { name: "Open a paper account" });
});

test("administration is there for administrators only", async () => {
  const user = await open(PATHS.administration);
  await screen.findByText("There is no such page");
  await user.click(screen.getByRole("button", { name: `Signed in as ${USER.email}` }));
  await screen.findByRole("menuitem", { name: "Sign out" });
  expect(screen.queryByRole("menuitem", { name: "Administration" })).toBeNull();
});

test("and is found by them in their menu", async () => {
  const user = await open(PATHS.security, { roles: ["admin", "user"] });
  await user.click(await screen.findByRole("button", { name: `Signed in as ${USER.email}` }));
  await user.click(await screen.findByRole("menuitem", { name: "Administration" }));
  await screen.findByText("Nobody has registered yet");
});

test("operators find there what is theirs, and not the people", async () => {
  const user = await open(PATHS.security, { roles: ["operator", "user"] });
  await user.click(await screen.findByRole("button", { name: `Signed in as ${USER.email}` }));
  await user.click(await screen.findByRole("menuitem", { name: "Administration" }));
  await screen.findByRole("form", { name: "Everybody's kill switch" });
  expect(screen.queryByRole("search")).toBeNull();
});

test("colours are chosen in one's menu", async () => {
  const scheme = () => document.documentElement.getAttribute("data-mantine-color-scheme");
  const user = await open(PATHS.security);
  await user.click(await screen.findByRole("button", { name: `Signed in as ${USER.email}` }));
  const before = scheme();
  await user.click(await screen.findByRole("menuitem", { name: before === "light" ? "Dark colours" : "Light colours" }));
  expect(scheme()).toBe(before === "light" ? "dark" : "light");
  localStorage.removeItem("mantine-color-scheme-value");
});
