import { Button } from "@mantine/core";
import { useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { DeletionState, type Deletion } from "@gen/tradeloom/users/v1/users_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { dateAndClock } from "@/lib/time";
import classes from "./DeletionBanner.module.css";

const DELETION_KEY = ["deletion"];
/** Somebody else may ask for it, with a stolen session, while this page is open. */
const FOLLOW_MILLISECONDS = 60_000;

/** While a deletion is scheduled: until when one may stay, and how. */
export function DeletionBanner() {
  const { users } = useApi();
  const query = useQuery({
    queryKey: DELETION_KEY,
    queryFn: async ({ signal }) => {
      try {
        return (await users.getDeletion({}, { signal })).deletion ?? null;
      } catch (error) {
        if (refusalOf(error).reason === "DELETION_NOT_SCHEDULED") return null;
        throw error;
      }
    },
    refetchInterval: FOLLOW_MILLISECONDS,
  });
  return query.data?.state === DeletionState.SCHEDULED ? <Scheduled deletion={query.data} /> : null;
}

function Scheduled({ deletion }: { deletion: Deletion }) {
  const { users } = useApi();
  const queries = useQueryClient();
  // Staying is one intent, however often it is clicked.
  const [requestId] = useState(newRequestId);
  const staying = useMutation({
    mutationFn: () => users.cancelDeletion({ requestId }),
    onSettled: () => queries.invalidateQueries({ queryKey: DELETION_KEY }),
  });
  return (
    <section className={classes.banner} aria-label="Your account is going to be deleted">
      <span>
        <b>Your account is going to be deleted</b>, not before {dateAndClock(deletion.purgeTime)}: everything you have here, and open
        orders are cancelled. If you did not ask for this, keep it and set a new password.
      </span>
      <Button size="compact-sm" color="red" loading={staying.isPending} onClick={() => staying.mutate()}>
        Keep my account
      </Button>
      <span role="status">{staying.error ? refusalOf(staying.error).message : ""}</span>
    </section>
  );
}
