import type { Account } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { createContext, useContext } from "react";

export interface ChosenAccount {
  account: Account;
  accounts: readonly Account[];
  choose(accountId: string): void;
}

export const AccountContext = createContext<ChosenAccount | undefined>(undefined);

/** The account whose orders and portfolio the pages show. */
export function useAccount(): ChosenAccount {
  const chosen = useContext(AccountContext);
  if (!chosen) throw new Error("useAccount needs an AccountGate");
  return chosen;
}

export const ACCOUNTS_KEY = ["accounts"];
/** So many accounts can be chosen from. */
export const ACCOUNTS_SHOWN_MAX = 200;

/** An id, and no secret: it may outlive the session. */
const CHOICE_KEY = "tradeloom.account";

export function rememberedChoice(): string | null {
  return localStorage.getItem(CHOICE_KEY);
}

export function rememberChoice(accountId: string): void {
  localStorage.setItem(CHOICE_KEY, accountId);
}
