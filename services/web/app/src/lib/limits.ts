/** The limits an account is held to, by their names in the contract's RiskLimits. */
export const LIMITS = {
  open_orders_max: "open orders",
  orders_per_second_max: "orders a second",
  price_collar_percent: "percent beyond the quote",
  order_quantity_max: "quantity of one order",
  order_notional_max: "value of one order",
  position_quantity_max: "position in one instrument",
  position_notional_max: "value of one position",
  fat_finger_percent: "percent of the account's worth in one order",
  daily_loss_max: "loss in a day",
  drawdown_percent_max: "percent lost of the most it was worth",
} as const;

export type LimitName = keyof typeof LIMITS;

export function limitText(limit: string): string {
  return LIMITS[limit as LimitName] ?? limit.replace(/_/g, " ");
}

const SWITCHES: Record<string, string> = {
  "kill_switch/global": "everybody's kill switch",
  "kill_switch/user": "your kill switch",
  "kill_switch/account": "the account's kill switch",
  "kill_switch/deployment": "the deployment's kill switch",
  "lock/daily_loss": "the account's lock for the day's loss",
  "lock/drawdown": "the account's lock for its drawdown",
};

/** What forbids trading, such as "kill_switch/global" and "lock/drawdown". */
export function haltText(limit: string): string {
  return SWITCHES[limit] ?? "a kill switch or a lock";
}
