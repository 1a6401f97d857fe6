import { create } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { MantineProvider } from "@mantine/core";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "@gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "@gen/google/rpc/status_pb.js";
import { InstrumentSchema } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import {
  AccountSchema,
  OrderSchema,
  OrderService,
  OrderState,
  PortfolioService,
  type PlaceOrderGroupRequest,
  type PlaceOrderRequest,
  type PreviewOrderRequest,
} from "@gen/tradeloom/orders/v1/orders_pb.js";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { fireEvent, render, screen, waitFor } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { beforeEach, describe, expect, test } from "vitest";
import { ApiProvider } from "@/api/clients";
import { AccountContext } from "@/features/accounts/account";
import { refused, signedInApi } from "@/test/api";
import { AccountOrdersProvider } from "./AccountOrdersProvider";
import { OrderTicket } from "./OrderTicket";

const ACCOUNT = create(AccountSchema, { accountId: "a1", name: "Paper" });
const INSTRUMENT = create(InstrumentSchema, {
  instrumentId: "SIM:BTCUSDT",
  symbol: "BTCUSDT",
  baseAsset: "BTC",
  quoteAsset: "USDT",
  tickSize: { value: "0.01" },
  lotSize: { value: "0.001" },
  takerFeeRate: { value: "0.001" },
  makerFeeRate: { value: "0.0005" },
});

const TOO_MUCH = create(StatusSchema, {
  code: Code.FailedPrecondition,
  details: [
    anyPack(
      ErrorInfoSchema,
      create(ErrorInfoSchema, { reason: "INSUFFICIENT_BALANCE", metadata: { asset: "USDT", needed: "2500", available: "1000" } }),
    ),
  ],
});

/** A preview of this quantity is answered only by being given up. */
const UNANSWERED = "0.111";

/** The ticket before a service that remembers what was placed by request id. */
async function show(answer: (request: PlaceOrderRequest, call: number) => void = () => {}) {
  const calls: PlaceOrderRequest[] = [];
  const groups: PlaceOrderGroupRequest[] = [];
  const previews: PreviewOrderRequest[] = [];
  const givenUp: string[] = [];
  const placed = new Map<string, string>();
  const api = await signedInApi(({ service }) => {
    service(OrderService, {
      placeOrder: (request) => {
        calls.push(request);
        answer(request, calls.length);
        if (!placed.has(request.requestId)) placed.set(request.requestId, `o${placed.size + 1}`);
        return { order: create(OrderSchema, { orderId: placed.get(request.requestId)!, state: OrderState.PENDING_NEW }) };
      },
      placeOrderGroup: (request) => {
        groups.push(request);
        return { groupId: "g1", orders: request.orders.map((_, index) => ({ orderId: `g${index}`, state: OrderState.PENDING_NEW })) };
      },
      previewOrder: async (request, { signal }) => {
        previews.push(request);
        if (request.order?.quantity?.value === UNANSWERED) {
          await new Promise((resolve) => signal.addEventListener("abort", resolve));
          givenUp.push(UNANSWERED);
        }
        const isTooMuch = request.order?.quantity?.value === "25";
        return {
          refusals: isTooMuch ? [TOO_MUCH] : [],
          notional: { asset: "USDT", amount: { value: "25.5" } },
          fee: { asset: "USDT", amount: { value: "0.0255" } },
          margins: [
            { limit: "open_orders_max", value: { value: "1" }, bound: { value: "200" } },
            { limit: "order_notional_max", value: { value: "25.5" }, bound: { value: "50" } },
          ],
        };
      },
      streamOrderEvents: async function* (_, { signal }) {
        yield { cursor: "0", step: { case: "acknowledgement" as const, value: { heartbeatSeconds: 5 } } };
        await new Promise((resolve) => signal.addEventListener("abort", resolve));
      },
    });
    service(PortfolioService, {
      getPortfolio: () => ({
        balances: [{ asset: "USDT", total: { value: "1000" }, reserved: { value: "0" }, available: { value: "1000" } }],
      }),
    });
  });
  render(
    <MantineProvider env="test">
      <QueryClientProvider client={new QueryClient({ defaultOptions: { queries: { retry: false } } })}>
        <ApiProvider api={api}>
          <AccountContext value={{ account: ACCOUNT, accounts: [ACCOUNT], choose: () => {} }}>
            <AccountOrdersProvider accountId="a1">
              <OrderTicket instrument={INSTRUMENT} lastPrice={100} chosenPrice={undefined} />
            </AccountOrdersProvider>
          </AccountContext>
        </ApiProvider>
      </QueryClientProvider>
    </MantineProvider>,
  );
  return { calls, groups, previews, givenUp, placed, user: userEvent.setup() };
}

describe("the order ticket", () => {
  beforeEach(() => sessionStorage.clear());

  test("starts at the last price and sends what was typed, as text", async () => {
    const { calls, user } = await show();
    await waitFor(() => expect(screen.getByLabelText("Limit price")).toHaveProperty("value", "100"));
    await user.type(screen.getByLabelText("Quantity"), "0.250");
    await user.click(screen.getByRole("button", { name: "Buy BTCUSDT" }));
    await screen.findByText("Placed");
    expect(calls[0]).toMatchObject({
      accountId: "a1",
      instrumentId: "SIM:BTCUSDT",
      quantity: { value: "0.250" },
      limitPrice: { value: "100" },
    });
  });

  test("places one order for a double click", async () => {
    const { placed, user } = await show();
    await user.type(screen.getByLabelText("Quantity"), "0.25");
    await user.dblClick(screen.getByRole("button", { name: "Buy BTCUSDT" }));
    await screen.findByText("Placed");
    expect(placed.size).toBe(1);
  });

  test("names the field and the reason of a refusal, and keeps what was typed", async () => {
    const { user } = await show(() => {
      throw refused(Code.FailedPrecondition, "INSUFFICIENT_BALANCE", { asset: "USDT", needed: "2500", available: "1000" });
    });
    await user.type(screen.getByLabelText("Quantity"), "25");
    await user.click(screen.getByRole("button", { name: "Buy BTCUSDT" }));
    await screen.findByText(/Not enough USDT: the order and its fees need 2,500.00, available are 1,000.00/);
    expect(screen.getByText(/INSUFFICIENT_BALANCE/)).toBeTruthy();
    expect(screen.getByLabelText("Quantity")).toHaveProperty("value", "25");
  });

  test("does not ask the service about what is plainly wrong", async () => {
    const { calls, user } = await show();
    await user.type(screen.getByLabelText("Quantity"), "0.0005");
    await user.click(screen.getByRole("button", { name: "Buy BTCUSDT" }));
    await screen.findByText("Must be a multiple of 0.001");
    expect(calls).toHaveLength(0);
  });

  test("asks what to do when the answer stays away, and sends the very same order again", async () => {
    const { calls, placed, user } = await show((_, call) => {
      if (call <= 3) throw new ConnectError("cut", Code.Unavailable);
    });
    await user.type(screen.getByLabelText("Quantity"), "0.25");
    await user.click(screen.getByRole("button", { name: "Buy BTCUSDT" }));
    await user.click(await screen.findByRole("button", { name: "Send it again" }, { timeout: 5_000 }));
    await screen.findByText("Placed");
    expect(new Set(calls.map((call) => call.requestId)).size).toBe(1);
    expect(placed.size).toBe(1);
    expect(sessionStorage.getItem("tradeloom.unanswered")).toBeNull();
  });

  test("takes a share of what is available, fee included, on the lot", async () => {
    const { user } = await show();
    await waitFor(() => expect(screen.getByTestId("available").textContent).toBe("1,000.00 USDT"));
    await user.click(screen.getByRole("button", { name: "Use 50% of the available USDT" }));
    expect(screen.getByLabelText("Quantity")).toHaveProperty("value", "4.995");
  });

  test("takes no more than a market order, which may fill at a worse price, can be sure to pay", async () => {
    const { user } = await show();
    await waitFor(() => expect(screen.getByTestId("available").textContent).toBe("1,000.00 USDT"));
    await user.click(screen.getByText("Market"));
    await user.click(screen.getByRole("button", { name: "Use 100% of the available USDT" }));
    // 9.490 × 105, the fee of a taker included, is 997.45
    expect(screen.getByLabelText("Quantity")).toHaveProperty("value", "9.49");
  });

  test("does not send a quantity whose comma may mean a point", async () => {
    const { calls, user } = await show();
    await user.type(screen.getByLabelText("Quantity"), "0,250");
    await user.click(screen.getByRole("button", { name: "Buy BTCUSDT" }));
    await screen.findByText("Write decimals with a point");
    expect(calls).toHaveLength(0);
  });

  test("steps by the lot with the arrow keys", async () => {
    const { user } = await show();
    await user.type(screen.getByLabelText("Quantity"), "{ArrowUp}{ArrowUp}{Shift>}{ArrowUp}{/Shift}{ArrowDown}");
    expect(screen.getByLabelText("Quantity")).toHaveProperty("value", "0.011");
  });

  test("offers with each order type what goes with it", async () => {
    const { calls, user } = await show();
    await user.click(screen.getByText("Conditional"));
    await user.click(screen.getByRole("combobox", { name: "Condition" }));
    await user.click(await screen.findByRole("option", { name: "Trailing stop" }));
    expect(screen.queryByLabelText("Limit price")).toBeNull();
    expect(screen.queryByLabelText("Post only")).toBeNull();
    await user.click(screen.getByRole("combobox", { name: "Lasts" }));
    expect((await screen.findAllByRole("option")).map((option) => option.textContent)).not.toContain("At once, cancel the rest (IOC)");
    await user.keyboard("{Escape}");
    await user.type(screen.getByLabelText("Trails by"), "1.5");
    await user.type(screen.getByLabelText("Quantity"), "0.25");
    await user.click(screen.getByLabelText("Reduce only"));
    await user.click(screen.getByRole("button", { name: "Buy BTCUSDT" }));
    await screen.findByText("Placed");
    expect(calls[0]).toMatchObject({ reduceOnly: true, trail: { distance: { case: "percent", value: { value: "1.5" } } } });
  });

  test("places an entry with its bracket as one", async () => {
    const { calls, groups, user } = await show();
    await user.type(screen.getByLabelText("Quantity"), "0.25");
    await user.click(screen.getByLabelText("Take profit and stop loss"));
    await user.type(screen.getByLabelText("Take profit"), "110");
    await user.click(screen.getByRole("button", { name: "Buy BTCUSDT" }));
    expect(screen.getByLabelText("Stop loss").getAttribute("aria-invalid")).toBe("true");
    expect(document.activeElement).toBe(screen.getByLabelText("Stop loss"));
    await user.type(screen.getByLabelText("Stop loss"), "90{Enter}");
    await screen.findByText("Placed");
    expect(groups).toHaveLength(1);
    expect(groups[0]?.orders).toHaveLength(3);
    expect(calls).toHaveLength(0);
  });

  test("says what an order would cost as one types, asking about what was typed last, one call at a time", async () => {
    const { previews, givenUp } = await show();
    const quantity = screen.getByLabelText("Quantity");
    // In one turn, so that no pause of a busy machine lies between them.
    fireEvent.change(quantity, { target: { value: "0.2" } });
    fireEvent.change(quantity, { target: { value: UNANSWERED } });
    await waitFor(() => expect(previews.map(({ order }) => order?.quantity?.value)).toEqual([UNANSWERED]));
    fireEvent.change(quantity, { target: { value: "0.255" } });
    await waitFor(() => expect(screen.getByTestId("preview").textContent).toContain("25.50 USDT"));
    expect(givenUp).toEqual([UNANSWERED]);
    expect(screen.getByTestId("preview").textContent).toContain("Nearest limit: value of one order, 25.5 of 50.");
    expect(screen.getByTestId("preview").textContent).toContain("Would be accepted.");
  });

  test("says what an order would be refused for before it is sent", async () => {
    const { calls, user } = await show();
    await user.type(screen.getByLabelText("Quantity"), "25");
    await screen.findByText(/Not enough USDT/);
    expect(screen.getByText(/Would be refused/)).toBeTruthy();
    expect(calls).toHaveLength(0);
  });
});
