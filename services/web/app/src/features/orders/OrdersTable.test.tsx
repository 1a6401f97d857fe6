import { create } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { MantineProvider } from "@mantine/core";
import { Notifications } from "@mantine/notifications";
import { OrderSchema, OrderService, OrderState, type CancelOrderRequest } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { render, screen, waitFor } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import { expect, test } from "vitest";
import { ApiProvider } from "@/api/clients";
import { signedInApi } from "@/test/api";
import { AccountOrdersProvider } from "./AccountOrdersProvider";
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
