import { Button, Center, Loader, Stack, Text, Title } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useEffect, useState } from "react";
import { Link } from "react-router";
import { useApi, useSession } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { PATHS } from "@/app/paths";
import { RefusalAlert } from "@/ui/states";
import { EntryPage } from "./EntryPage";

/** Where the link of a mail leads: proves at once that the address is the person's. */
export function VerifyEmailPage({ token }: { token: string | undefined }) {
  const { session } = useApi();
  const state = useSession();
  // The link was opened once, however often this is rendered or tried.
  const [requestId] = useState(newRequestId);
  const verifying = useMutation({ mutationFn: (text: string) => session.auth.verifyEmail({ requestId, token: text }) });
  const { mutate, isSuccess } = verifying;

  useEffect(() => {
    if (token !== undefined) mutate(token);
  }, [token, mutate]);

  const isUnawareHere = isSuccess && state.phase === "signedIn" && !state.user.emailVerified;
  useEffect(() => {
    if (isUnawareHere) void session.reload().catch(() => {});
  }, [isUnawareHere, session]);

  const isInside = state.phase === "signedIn";
  return (
    <EntryPage>
      <Stack gap="sm">
        <Title order={2} size="h4">
          {isSuccess ? "Your address is verified" : "Verify your e-mail address"}
        </Title>
        {token === undefined ? (
          <Text size="sm">
            The address of this page lacks what the mail's link carries. Open the link in the mail again; if it is lost, sign in and have
            another sent.
          </Text>
        ) : verifying.isError ? (
          <>
            <RefusalAlert error={verifying.error} />
            {refusalOf(verifying.error).reason === "LINK_INVALID" ? (
              <Text size="sm">Sign in: if your address is not verified by now, you can have another link sent.</Text>
            ) : (
              <Button variant="default" onClick={() => mutate(token)}>
                Try again
              </Button>
            )}
          </>
        ) : isSuccess ? (
          <Text size="sm" role="status">
            <b>{verifying.data.email}</b> is yours.
          </Text>
        ) : (
          <Center mih={60} role="status" aria-label="Verifying">
            <Loader size="sm" type="dots" />
          </Center>
        )}
        <Button component={Link} to={isInside ? PATHS.home : PATHS.signIn} variant={isSuccess ? "filled" : "default"}>
          {isInside ? "Go on" : "Sign in"}
        </Button>
      </Stack>
    </EntryPage>
  );
}
