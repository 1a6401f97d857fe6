import { notifications } from "@mantine/notifications";
import { useQueryClient } from "@tanstack/react-query";
import { OrderEventKind, type Order, type OrderEvent, type StreamOrderEventsResponse } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { createContext, useCallback, useContext, useEffect, useMemo, useReducer, useRef, type ReactNode } from "react";
import { NO_DEADLINE, useApi } from "@/api/clients";
import type { StreamState } from "@/api/resuming";
import { useResumingStream } from "@/api/useResumingStream";
import { parentsKey } from "@/features/parentOrders/useParents";
import { portfolioKey } from "@/features/portfolio/usePortfolio";
import { shown } from "@/lib/decimal";
import { afterAnnotatedList, afterList, afterMessage, NO_ORDERS, type AccountOrders } from "./accountOrders";
import { reasonText, SIDES } from "./words";

interface Provided {
  known: AccountOrders;
  stream: StreamState;
  /** Takes orders that came in an answer, such as those just placed or canceled. */
  take(orders: readonly Order[]): void;
  /** The same where they came with their notes and tags. */
  takeAnnotated(orders: readonly Order[]): void;
}

const AccountOrdersContext = createContext<Provided | undefined>(undefined);

export function useAccountOrders(): Provided {
  const provided = useContext(AccountOrdersContext);
  if (!provided) throw new Error("useAccountOrders needs an AccountOrdersProvider");
  return provided;
}

type Action = { message: StreamOrderEventsResponse } | { list: readonly Order[]; isAnnotated: boolean } | "forget";

function knownAfter(known: AccountOrders, action: Action): AccountOrders {
  if (action === "forget") return NO_ORDERS;
  if ("message" in action) return afterMessage(known, action.message);
  return action.isAnnotated ? afterAnnotatedList(known, action.list) : afterList(known, action.list);
}

/** Many events in one moment make one look at the portfolio. */
const PORTFOLIO_DELAY_MILLISECONDS = 150;

/** Follows one account's orders for all pages. */
export function AccountOrdersProvider({ accountId, children }: { accountId: string; children: ReactNode }) {
  const { orders } = useApi();
  const queries = useQueryClient();
  const [known, dispatch] = useReducer(knownAfter, NO_ORDERS);
  const refresh = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => () => clearTimeout(refresh.current), []);

  const stream = useResumingStream<StreamOrderEventsResponse, string>(accountId, () => ({
    open: (cursor, signal) => {
      // From a snapshot on, what was known before may have changed unseen.
      if (cursor === undefined) {
        dispatch("forget");
        void queries.invalidateQueries({ queryKey: ["orders", accountId] });
      }
      return orders.streamOrderEvents({ accountId, afterCursor: cursor ?? "" }, { signal, ...NO_DEADLINE });
    },
    advance: (cursor, message) => message.cursor || cursor,
    heartbeatSeconds: ({ step }) => (step.case === "acknowledgement" ? step.value.heartbeatSeconds : undefined),
    onMessage: (message) => {
      dispatch({ message });
      if (message.step.case !== "event") return;
      announce(message.step.value);
      clearTimeout(refresh.current);
      refresh.current = setTimeout(() => {
        void queries.invalidateQueries({ queryKey: portfolioKey(accountId) });
        void queries.invalidateQueries({ queryKey: ["executions", accountId] });
        void queries.invalidateQueries({ queryKey: ["ledger", accountId] });
        void queries.invalidateQueries({ queryKey: parentsKey(accountId) });
      }, PORTFOLIO_DELAY_MILLISECONDS);
    },
  }));

  const take = useCallback((list: readonly Order[]) => dispatch({ list, isAnnotated: false }), []);
  const takeAnnotated = useCallback((list: readonly Order[]) => dispatch({ list, isAnnotated: true }), []);
  const provided = useMemo(() => ({ known, stream, take, takeAnnotated }), [known, stream, take, takeAnnotated]);
  return <AccountOrdersContext value={provided}>{children}</AccountOrdersContext>;
}

/** What a trader wants to be told wherever they look. */
function announce({ kind, order, execution }: OrderEvent): void {
  // A parent order's children come by the thousand: its own row tells how far it is.
  if (!order || (order.parentOrderId !== "" && kind !== OrderEventKind.REJECTED)) return;
  const what = `${SIDES[order.side]} ${order.instrumentId}`;
  if (kind === OrderEventKind.FILLED && execution) {
    notifications.show({
      color: "teal",
      title: `Filled: ${what}`,
      message: `${shown(execution.quantity?.value, 0)} at ${shown(execution.price?.value)}`,
    });
  } else if (kind === OrderEventKind.REJECTED) {
    notifications.show({ color: "red", title: `Rejected: ${what}`, message: reasonText(order.reason) || "The venue refused the order." });
  } else if (kind === OrderEventKind.RETURNED) {
    notifications.show({ color: "orange", title: `Tried again: ${what}`, message: reasonText(order.reason) || "It could not be sent." });
  } else if (kind === OrderEventKind.CANCELED) {
    notifications.show({ color: "gray", title: `Canceled: ${what}`, message: reasonText(order.reason) || "The venue took the order back." });
  } else if (kind === OrderEventKind.CANCEL_REJECTED) {
    notifications.show({ color: "yellow", title: `Too late to cancel: ${what}`, message: "The order was done by then." });
  }
}
