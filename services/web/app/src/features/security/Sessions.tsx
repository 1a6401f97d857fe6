import { Button } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useInfiniteQuery, useMutation, useQueryClient } from "@tanstack/react-query";
import type { Session } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { refusalOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { dateAndClock } from "@/lib/time";
import { Confirm } from "@/ui/Confirm";
import { Panel } from "@/ui/Panel";
import { PagedRows, Row } from "@/ui/Rows";
import { Tag } from "@/ui/Tag";
import { programOf } from "./program";

export const SESSIONS_KEY = ["sessions"];
const SESSIONS_PAGE = 50;

/** Where the person is signed in, and a way to end it. */
export function Sessions() {
  const { auth } = useApi();
  const queries = useQueryClient();
  const [isEndingOthers, setIsEndingOthers] = useState(false);
  const query = useInfiniteQuery({
    queryKey: SESSIONS_KEY,
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) => auth.listSessions({ pageSize: SESSIONS_PAGE, pageToken: pageParam }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
  const sessions = query.data?.pages.flatMap((page) => page.sessions) ?? [];

  const endingOthers = useMutation({
    mutationFn: async () => {
      // Also those of pages that are not shown. Ending shortens the list, so the tokens are collected first.
      const ids: string[] = [];
      for (let pageToken = ""; ; ) {
        const page = await auth.listSessions({ pageSize: 100, pageToken });
        ids.push(...page.sessions.filter(({ current }) => !current).map(({ sessionId }) => sessionId));
        pageToken = page.nextPageToken;
        if (!pageToken) break;
      }
      for (const sessionId of ids) await auth.revokeSession({ requestId: newRequestId(), sessionId });
      return ids.length;
    },
    onSuccess: (count) => {
      setIsEndingOthers(false);
      notifications.show({ color: "teal", title: "Ended", message: count === 1 ? "One other session." : `${count} other sessions.` });
    },
    onSettled: () => queries.invalidateQueries({ queryKey: SESSIONS_KEY }),
  });

  const hasOthers = sessions.some(({ current }) => !current);
  return (
    <Panel
      title="Sessions"
      aside={
        hasOthers && (
          <Button size="compact-xs" variant="default" onClick={() => setIsEndingOthers(true)}>
            End all others
          </Button>
        )
      }
    >
      <PagedRows what="your sessions" query={query} items={sessions} empty="No open sessions" more="Show older sessions">
        {(session) => <SessionRow key={session.sessionId} session={session} />}
      </PagedRows>
      <Confirm
        opened={isEndingOthers}
        title="End all other sessions?"
        action="End them"
        isAsking={endingOthers.isPending}
        error={endingOthers.error}
        onConfirm={() => endingOthers.mutate()}
        onClose={() => {
          setIsEndingOthers(false);
          endingOthers.reset();
        }}
      >
        Everywhere but here you will have to sign in again, within five seconds. API keys go on.
      </Confirm>
    </Panel>
  );
}

function SessionRow({ session }: { session: Session }) {
  const { auth } = useApi();
  const queries = useQueryClient();
  // Ending this session is one intent, however often it is clicked.
  const [requestId] = useState(newRequestId);
  const ending = useMutation({
    mutationFn: () => auth.revokeSession({ requestId, sessionId: session.sessionId }),
    onError: (error) => notifications.show({ color: "red", title: "Not ended", message: refusalOf(error).message }),
    onSettled: () => queries.invalidateQueries({ queryKey: SESSIONS_KEY }),
  });
  const program = programOf(session.userAgent);
  return (
    <Row
      title={
        <>
          <span title={session.userAgent}>{program}</span>
          {session.current && <Tag color="indigo">This one</Tag>}
        </>
      }
      details={`${session.address || "From an unknown address"} · since ${dateAndClock(session.createTime)} · last renewed ${dateAndClock(session.refreshTime)}`}
      action={
        !session.current && (
          <Button
            size="compact-xs"
            variant="default"
            loading={ending.isPending}
            aria-label={`End the session of ${program}`}
            onClick={() => ending.mutate()}
          >
            End
          </Button>
        )
      }
    />
  );
}
