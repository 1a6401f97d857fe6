import { MantineProvider } from "@mantine/core";
import { Notifications } from "@mantine/notifications";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { BrowserRouter } from "react-router";
import { ApiProvider, type Api } from "@/api/clients";
import { backoffMilliseconds } from "@/api/backoff";
import { isTransient, refusalOf } from "@/api/refusal";
import type { MailLink } from "@/features/auth/links";
import { forgetUnanswered } from "@/features/orders/unanswered";
import { cssVariables, theme } from "./theme";
import { Pages } from "./Pages";

/** A look-up that fails for the moment is asked again so many times. */
const LOOK_UP_REPEATS_MAX = 3;
const FRESH_MILLISECONDS = 5_000;

function openQueries(): QueryClient {
  return new QueryClient({
    defaultOptions: {
      queries: {
        staleTime: FRESH_MILLISECONDS,
        retry: (failures, error) => failures < LOOK_UP_REPEATS_MAX && isTransient(refusalOf(error)),
        retryDelay: (failures, error) =>
          Math.max(backoffMilliseconds(failures + 1), (refusalOf(error).retryDelaySeconds ?? 0) * 1000),
      },
      // Whoever changes something decides about repeating it: only with the same request id.
      mutations: { retry: false },
    },
  });
}

export function App({ api, nonce, link }: { api: Api; nonce: string; link: MailLink | undefined }) {
  const [queries] = useState(openQueries);

  // Nothing of one person stays for the next.
  useEffect(
    () =>
      api.session.subscribe(() => {
        if (api.session.snapshot().phase !== "signedOut") return;
        queries.clear();
        forgetUnanswered();
      }),
    [api, queries],
  );

  return (
    <MantineProvider theme={theme} defaultColorScheme="dark" cssVariablesResolver={cssVariables} getStyleNonce={() => nonce}>
      <Notifications position="bottom-right" limit={4} autoClose={5_000} />
      <QueryClientProvider client={queries}>
        <ApiProvider api={api}>
          <BrowserRouter>
            <Pages link={link} />
          </BrowserRouter>
        </ApiProvider>
      </QueryClientProvider>
    </MantineProvider>
  );
}
