import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { MantineProvider } from "@mantine/core";
import { Notifications } from "@mantine/notifications";
import {
  GroupRole,
  OrderSchema,
  OrderService,
  OrderState,
  OrderType,
  PortfolioService,
  type AnnotateOrderRequest,
  type CancelAllOrdersRequest,
  type CancelOrderRequest,
  type ListOrdersRequest,
  type ReplaceOrderRequest,
} from "@gen/tradeloom/orders/v1/orders_pb.js";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { fireEvent, render, screen, waitFor, within } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { expect, test } from "vitest";
import { ApiProvider } from "@/api/clients";
import { MarketDataService } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { AccountContext } from "@/features/accounts/account";
import { refused, signedInApi } from "@/test/api";
import { show as showPart } from "@/test/show";
import { AccountOrdersProvider } from "./AccountOrdersProvider";
import { OrdersPage } from "./OrdersPage";
import { OrdersTable } from "./OrdersTable";

const WORKING = create(OrderSchema, { orderId: "o1", instrumentId: "SIM:BTCUSDT", state: OrderState.NEW, revision: 3n });

/** One working order before a service that answers each call to cancel it; its calls. */
async function show(answer: (call: number) => void) {
  const calls: CancelOrderRequest[] = [];
  const api = await signedInApi(({ service }) => {
    service(OrderService, {
      cancelOrder: (request) => {
        calls.push(request);
        answer(calls.length);
        return { order: WORKING };
      },
      streamOrderEvents: async function* (_, { signal }) {
        yield { cursor: "0", step: { case: "acknowledgement" as const, value: { heartbeatSeconds: 5 } } };
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
    });
  });
  render(
    <MantineProvider env="test">
      <Notifications />
      <QueryClientProvider client={new QueryClient()}>
        <ApiProvider api={api}>
          <AccountOrdersProvider accountId="a1">
            <OrdersTable orders={[WORKING]} label="Open orders" />
          </AccountOrdersProvider>
        </ApiProvider>
      </QueryClientProvider>
    </MantineProvider>,
  );
  const user = userEvent.setup();
  const cancel = async () => {
    const before = calls.length;
    await user.click(screen.getByRole("button", { name: /^Cancel/ }));
    await waitFor(() => expect(calls).toHaveLength(before + 1));
    await waitFor(() => expect(screen.getByRole("button", { name: /^Cancel/ }).hasAttribute("data-loading")).toBe(false));
  };
  return { calls, cancel };
}

test("an order that the venue did not cancel can be canceled once more", async () => {
  const { calls, cancel } = await show(() => {});
  await cancel();
  await cancel();
  expect(calls[0]!.requestId).not.toBe(calls[1]!.requestId);
});

test("a cancel whose answer was lost is not called refused, and is sent again as the same one", async () => {
  const { calls, cancel } = await show((call) => {
    if (call === 1) throw new ConnectError("cut", Code.Unavailable);
  });
  await cancel();
  await screen.findByText("Perhaps not canceled");
  await cancel();
  expect(calls[0]!.requestId).toBe(calls[1]!.requestId);
});

const LEG = create(OrderSchema, {
  orderId: "o2",
  accountId: "a1",
  instrumentId: "SIM:BTCUSDT",
  orderType: OrderType.STOP_LIMIT,
  quantity: { value: "0.5" },
  limitPrice: { value: "89" },
  stopPrice: { value: "90" },
  state: OrderState.NEW,
  revision: 4n,
  groupId: "g1",
  groupRole: GroupRole.LEG,
  note: "second try",
  tags: ["breakout"],
});

/** The page of orders before a service that has one, and remembers what it was asked. */
async function showPage() {
  const asked = {
    lists: [] as ListOrdersRequest[],
    changes: [] as ReplaceOrderRequest[],
    notes: [] as AnnotateOrderRequest[],
    cancels: [] as CancelAllOrdersRequest[],
  };
  const api = await signedInApi(({ service }) => {
    service(MarketDataService, { getInstrument: () => ({ instrument: { tickSize: { value: "0.01" }, lotSize: { value: "0.001" } } }) });
    service(PortfolioService, {});
    service(OrderService, {
      listOrders: (request) => {
        asked.lists.push(request);
        const orders = request.states.length && !request.states.includes(LEG.state) ? [] : [LEG];
        return { orders, nextPageToken: "" };
      },
      listExecutions: () => ({}),
      replaceOrder: (request) => {
        asked.changes.push(request);
        if (asked.changes.length === 1) {
          const violation = { field: "replacement.stop_price", description: "is on the wrong side" };
          throw refused(Code.InvalidArgument, "INVALID_FIELDS", {}, [violation]);
        }
        return { order: { ...LEG, state: OrderState.PENDING_REPLACE, revision: 5n, note: "", tags: [] } };
      },
      annotateOrder: (request) => {
        asked.notes.push(request);
        return { order: { ...LEG, note: request.note, tags: request.tags } };
      },
      cancelAllOrders: (request) => {
        asked.cancels.push(request);
        if (asked.cancels.length === 1) throw new ConnectError("cut", Code.Unavailable);
        return { orderIds: ["o2"] };
      },
      streamOrderEvents: async function* (_, { signal }) {
        yield { cursor: "0", step: { case: "acknowledgement" as const, value: { heartbeatSeconds: 5 } } };
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
    });
  });
  const account = { accountId: "a1", name: "Paper" } as never;
  const user = showPart(
    api,
    <AccountContext value={{ account, accounts: [account], choose: () => {} }}>
      <AccountOrdersProvider accountId="a1">
        <OrdersPage />
      </AccountOrdersProvider>
    </AccountContext>,
  );
  await screen.findByText("second try");
  return { asked, user };
}

// By their ids: looking for roles takes longer than all else that is tested here.
const rowText = () => document.querySelector("[data-order-id=o2]")?.textContent;
const type = (field: HTMLElement, value: string) => fireEvent.change(field, { target: { value } });

test("a row says what the order waits for, what it is in its group, and what was noted", async () => {
  await showPage();
  for (const text of ["stop 90.00, limit 89.00", "Leg", "breakout", "second try"]) expect(rowText()).toContain(text);
});

test("an order is changed in what it has, with one id for one change, and a refusal stands at its field", async () => {
  const { asked, user } = await showPage();
  await user.click(screen.getByLabelText(/^Change .*BTCUSDT/));
  const form = await screen.findByRole("form", { name: "Change the order" });
  // The quantity of an order in a group stays as it is.
  expect(within(form).queryByLabelText(/Quantity/)).toBeNull();
  type(within(form).getByLabelText("Stop price"), "91.001");
  fireEvent.submit(form);
  await within(form).findByText("Must be a multiple of 0.01");
  expect(asked.changes).toHaveLength(0);
  type(within(form).getByLabelText("Stop price"), "91.0");
  fireEvent.submit(form);
  await within(form).findByText("is on the wrong side");
  await user.click(within(form).getByText("Change it"));
  await screen.findByText(/Until the venue has answered/);
  expect(asked.changes[0]?.replacement).toMatchObject({ stopPrice: { value: "91.0" } });
  expect(asked.changes[0]?.replacement?.limitPrice).toBeUndefined();
  expect(asked.changes[1]?.requestId).toBe(asked.changes[0]?.requestId);
  // The answer tells no notes, and they stay.
  await waitFor(() => expect(document.querySelector("[data-state=PENDING_REPLACE]")).toBeTruthy());
  expect(rowText()).toContain("second try");
});

test("a note and tags are kept, and lists that were read before do not bring the old ones back", async () => {
  const { asked, user } = await showPage();
  await user.click(screen.getByLabelText(/^Show .*BTCUSDT/));
  const form = await screen.findByLabelText("Note and tags");
  type(within(form).getByLabelText("Note"), "third try");
  await user.type(within(form).getByLabelText("Tags", { selector: "input" }), "Gap{Enter}");
  await user.click(within(form).getByText("Keep"));
  await waitFor(() => expect(rowText()).toContain("third try"));
  expect(asked.notes[0]).toMatchObject({ orderId: "o2", note: "third try", tags: ["breakout", "gap"] });
});

test("all open orders are canceled after a question, and after a lost answer by the same request", async () => {
  const { asked, user } = await showPage();
  await user.click(screen.getByText("Cancel all"));
  const question = await screen.findByRole("dialog");
  expect(question.textContent).toContain("All open orders of Paper");
  await user.click(within(question).getByText("Cancel them"));
  await within(question).findByRole("alert");
  await user.click(within(question).getByText("Cancel them"));
  await screen.findByText("One order; its venue has the word.");
  expect(asked.cancels.map(({ accountId, instrumentId }) => [accountId, instrumentId])).toEqual([["a1", ""], ["a1", ""]]);
  expect(asked.cancels[1]!.requestId).toBe(asked.cancels[0]!.requestId);
});

test("orders are filtered by state where they are kept, so that older ones are found", async () => {
  const { asked, user } = await showPage();
  await user.click(screen.getByLabelText("State", { selector: "input" }));
  await user.click(await screen.findByText("Rejected"));
  await screen.findByText("No orders like that");
  expect(asked.lists.at(-1)).toMatchObject({ states: [OrderState.REJECTED], instrumentId: "" });
});
