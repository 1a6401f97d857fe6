import { MantineProvider } from "@mantine/core";
import { Notifications } from "@mantine/notifications";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { render } from "@testing-library/react";
import userEvent from "@testing-library/user-event";
import type { ReactNode } from "react";
import { MemoryRouter, useLocation } from "react-router";
import { ApiProvider, type Api } from "@/api/clients";

/** A part of the page before services in memory, at an address; a person to use it. */
export function show(api: Api, part: ReactNode, path = "/") {
  render(
    <MantineProvider env="test">
      <Notifications />
      <QueryClientProvider client={new QueryClient({ defaultOptions: { queries: { retry: false } } })}>
        <ApiProvider api={api}>
          <MemoryRouter initialEntries={[path]}>
            {part}
            <Place />
          </MemoryRouter>
        </ApiProvider>
      </QueryClientProvider>
    </MantineProvider>,
  );
  return userEvent.setup({ delay: null });
}

function Place() {
  return <output data-testid="place">{useLocation().pathname}</output>;
}
