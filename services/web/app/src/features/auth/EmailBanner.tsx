import { Anchor } from "@mantine/core";
import { useMutation } from "@tanstack/react-query";
import { useEffect } from "react";
import { useApi, useUser } from "@/api/clients";
import { inWords, refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { useSecondsLeft } from "@/ui/useSecondsLeft";
import classes from "./EmailBanner.module.css";

/** While an address is not verified: what to do, and the mail once more. */
export function EmailBanner() {
  const user = useUser();
  return user.emailVerified ? null : <Unverified email={user.email} />;
}

function Unverified({ email }: { email: string }) {
  const { auth, session } = useApi();
  const sending = useMutation({
    mutationFn: () => auth.requestEmailVerification({ requestId: newRequestId() }),
    onError: (error) => refusalOf(error).reason === "EMAIL_VERIFIED" && void session.reload().catch(() => {}),
  });
  const secondsLeft = useSecondsLeft(sending.error);

  // The link is opened in another window: coming back from there, one looks.
  useEffect(() => {
    const look = () => void (!document.hidden && session.reload().catch(() => {}));
    window.addEventListener("focus", look);
    document.addEventListener("visibilitychange", look);
    return () => {
      window.removeEventListener("focus", look);
      document.removeEventListener("visibilitychange", look);
    };
  }, [session]);

  return (
    <section className={classes.banner} aria-label="Verify your e-mail address">
      <span>
        Verify your address: open the link in the mail we sent to <b>{email}</b>.
      </span>
      {!sending.isSuccess && (
        <Anchor
          component="button"
          type="button"
          size="sm"
          disabled={sending.isPending || secondsLeft > 0}
          c={sending.isPending || secondsLeft > 0 ? "dimmed" : undefined}
          onClick={() => sending.mutate()}
        >
          {secondsLeft > 0 ? `Send the mail again ${inWords(secondsLeft)}` : "Send the mail again"}
        </Anchor>
      )}
      <span role="status">
        {sending.isSuccess ? "Sent once more; the links before are void." : sending.error ? refusalOf(sending.error).what : ""}
      </span>
    </section>
  );
}
