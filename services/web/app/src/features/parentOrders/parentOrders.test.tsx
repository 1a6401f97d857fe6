import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { InstrumentSchema } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { AccountSchema, OrderSide, OrderService, OrderState } from "@gen/tradeloom/orders/v1/orders_pb.js";
import {
  ParentOrderSchema,
  ParentOrderService,
  ParentOrderState,
  type CancelParentOrderRequest,
  type ListParentOrdersRequest,
  type ParentOrder,
  type PlaceParentOrderRequest,
} from "@gen/tradeloom/orders/v1/parents_pb.js";
import { screen, waitFor, within } from "@testing-library/react";
import { expect, test } from "vitest";
import { AccountContext } from "@/features/accounts/account";
import { AccountOrdersProvider } from "@/features/orders/AccountOrdersProvider";
import { refused, signedInApi } from "@/test/api";
import { show } from "@/test/show";
import { ParentOrders } from "./ParentOrders";
import { ParentTicket } from "./ParentTicket";

const ACCOUNT = create(AccountSchema, { accountId: "a1", name: "Paper" });
const INSTRUMENT = create(InstrumentSchema, {
  instrumentId: "SIM:BTCUSDT",
  symbol: "BTCUSDT",
  baseAsset: "BTC",
  quoteAsset: "USDT",
  tickSize: { value: "0.01" },
  lotSize: { value: "0.001" },
});

/** Ticket and list before services that keep what is placed by request id. */
async function open({ refuse = (_call: number) => {}, answer = () => {} } = {}) {
  const asked = { places: [] as PlaceParentOrderRequest[], cancels: [] as CancelParentOrderRequest[], lists: [] as ListParentOrdersRequest[] };
  const kept = new Map<string, ParentOrder>();
  const api = await signedInApi(({ service }) => {
    service(ParentOrderService, {
      placeParentOrder: (request) => {
        asked.places.push(request);
        refuse(asked.places.length);
        if (!kept.has(request.requestId)) {
          const { accountId, instrumentId, side, schedule } = request;
          const parent = { parentOrderId: `p${kept.size + 1}`, state: ParentOrderState.ACTIVE, slices: 7, sliceNumber: 1, feeAsset: "USDT" };
          const made = create(ParentOrderSchema, { ...parent, accountId, instrumentId, side, filledQuantity: { value: "0.3" } });
          made.schedule = schedule;
          kept.set(request.requestId, made);
        }
        answer();
        return { parentOrder: kept.get(request.requestId)! };
      },
      cancelParentOrder: (request) => {
        asked.cancels.push(request);
        const [parent] = [...kept.values()].filter(({ parentOrderId }) => parentOrderId === request.parentOrderId);
        if (parent!.state !== ParentOrderState.ACTIVE) throw refused(Code.FailedPrecondition, "PARENT_ORDER_DONE", { state: "COMPLETED" });
        parent!.state = ParentOrderState.CANCELING;
        return { parentOrder: parent! };
      },
      listParentOrders: (request) => {
        asked.lists.push(request);
        return { parentOrders: [...kept.values()].filter(({ state }) => request.states.length === 0 || request.states.includes(state)) };
      },
      getParentOrder: ({ parentOrderId }) => ({
        parentOrder: [...kept.values()].find((parent) => parent.parentOrderId === parentOrderId)!,
        skips: [{ firstSlice: 2, lastSlice: 3, reason: "MISSED", message: "nobody was there to place it in its time" }],
      }),
    });
    service(OrderService, {
      listOrders: ({ parentOrderId }) => ({
        orders: parentOrderId
          ? [{ orderId: "o1", parentOrderId, sliceNumber: 1, side: OrderSide.BUY, state: OrderState.FILLED, quantity: { value: "0.3" }, filledQuantity: { value: "0.3" } }]
          : [],
      }),
      streamOrderEvents: async function* (_, { signal }) {
        yield { cursor: "0", step: { case: "acknowledgement" as const, value: { heartbeatSeconds: 5 } } };
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
    });
  });
  const user = show(
    api,
    <AccountContext value={{ account: ACCOUNT, accounts: [ACCOUNT], choose: () => {} }}>
      <AccountOrdersProvider accountId="a1">
        <ParentTicket instrument={INSTRUMENT} chosenPrice={undefined} />
        <ParentOrders />
      </AccountOrdersProvider>
    </AccountContext>,
  );
  const ticket = within(await screen.findByRole("form", { name: "Parent order ticket" }));
  const fillIceberg = async () => {
    await user.click(ticket.getByText("Iceberg"));
    await user.type(ticket.getByLabelText("Quantity in all"), "2");
    await user.type(ticket.getByLabelText("Shown at a time"), "0.3");
    await user.type(ticket.getByLabelText("Limit price"), "100");
  };
  return { asked, kept, user, ticket, fillIceberg };
}

test("an iceberg is composed, begun once, watched and canceled", async () => {
  const { asked, user, ticket, fillIceberg } = await open();
  await screen.findByText("No parent orders yet");
  await user.click(ticket.getByText("Iceberg"));
  await user.click(ticket.getByRole("button", { name: "Buy BTCUSDT by Iceberg" }));
  expect(ticket.getAllByText("Required")).toHaveLength(3);
  expect(document.activeElement?.getAttribute("name")).toBe("quantity");
  await fillIceberg();
  expect(ticket.getByTestId("plan").textContent).toContain("7 orders of 0.3 BTC");
  await user.click(ticket.getByRole("button", { name: "Buy BTCUSDT by Iceberg" }));

  const table = await screen.findByRole("table", { name: "Parent orders" });
  expect(asked.places).toMatchObject([{ accountId: "a1", side: OrderSide.BUY, schedule: { case: "iceberg" } }]);
  expect(within(table).getByRole("progressbar", { name: "Progress: 0.3 of 2" }).getAttribute("aria-valuenow")).toBe("15");
  await user.click(within(table).getByRole("button", { name: "Show Buy 2 SIM:BTCUSDT by Iceberg" }));
  const life = within(await screen.findByRole("dialog"));
  await life.findByText("Slices 2 to 3");
  await life.findByText("Filled", { selector: "span" });
  await user.click(life.getByRole("button", { name: "Cancel it" }));
  const question = await screen.findByRole("dialog", { name: /^Cancel: Buy 2/ });
  await user.click(within(question).getByRole("button", { name: "Cancel it" }));
  await waitFor(() => expect(life.getByText("Canceling")).toBeDefined());
  expect(asked.cancels).toMatchObject([{ parentOrderId: "p1" }]);
});

test("a refusal stands beside its field, and other contents are another request", async () => {
  const { asked, user, ticket, fillIceberg } = await open({
    refuse: (call) => {
      const violation = { field: "iceberg.display_quantity", description: "would make more than 10000 slices" };
      if (call === 1) throw refused(Code.InvalidArgument, "PARENT_ORDER_INVALID", {}, [violation]);
    },
  });
  await fillIceberg();
  await user.click(ticket.getByTestId("place-parent-order"));
  await ticket.findByText("would make more than 10000 slices");
  await user.type(ticket.getByLabelText("Shown at a time"), "5");
  expect(ticket.queryByText("would make more than 10000 slices")).toBeNull();
  await user.click(ticket.getByTestId("place-parent-order"));
  await screen.findByRole("table", { name: "Parent orders" });
  expect(new Set(asked.places.map(({ requestId }) => requestId)).size).toBe(2);
});

test("one whose answer was lost is begun once, however often it is sent", async () => {
  let isCut = true;
  const { asked, kept, user, ticket, fillIceberg } = await open({
    // By then it is kept.
    answer: () => {
      if (isCut) throw new ConnectError("cut", Code.Unknown);
    },
  });
  await fillIceberg();
  await user.click(ticket.getByTestId("place-parent-order"));
  await ticket.findByText(/may have begun/);
  expect(ticket.getByLabelText("Quantity in all")).toHaveProperty("disabled", true);
  isCut = false;
  await user.click(ticket.getByRole("button", { name: "Send it again" }));
  await screen.findByRole("table", { name: "Parent orders" });
  expect(asked.places).toHaveLength(2);
  expect(kept.size).toBe(1);
  expect(new Set(asked.places.map(({ requestId }) => requestId)).size).toBe(1);
});

test("what is opened stays when the list has it no more", async () => {
  const { user, kept, ticket, fillIceberg } = await open();
  await fillIceberg();
  await user.click(ticket.getByTestId("place-parent-order"));
  await user.click(await screen.findByRole("combobox", { name: "State" }));
  await user.click(await screen.findByRole("option", { name: "Under way" }));
  await user.click(await screen.findByRole("button", { name: /^Show Buy 2/ }));
  const life = within(await screen.findByRole("dialog"));
  // It completes, and the list that is looked at next is of those under way.
  [...kept.values()][0]!.state = ParentOrderState.COMPLETED;
  await user.click(await life.findByRole("button", { name: "Cancel it" }));
  const question = await screen.findByRole("dialog", { name: /^Cancel: Buy 2/ });
  await user.click(within(question).getByRole("button", { name: "Cancel it" }));
  await life.findByText("Completed");
  expect(screen.getByText("No parent orders like that")).toBeDefined();
});

test("the list narrows by state", async () => {
  const { asked, user } = await open();
  await user.click(await screen.findByRole("combobox", { name: "State" }));
  await user.click(await screen.findByRole("option", { name: "Under way" }));
  await screen.findByText("No parent orders like that");
  expect(asked.lists.at(-1)!.states).toEqual([ParentOrderState.ACTIVE, ParentOrderState.CANCELING]);
});
