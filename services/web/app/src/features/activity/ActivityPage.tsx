import { useInfiniteQuery } from "@tanstack/react-query";
import { useApi } from "@/api/clients";
import { Panel } from "@/ui/Panel";
import { EVENTS_PAGE, Happenings } from "./Happenings";

/** What was recorded about the person, for them to recognise themselves in. */
export function ActivityPage() {
  const { auth } = useApi();
  const query = useInfiniteQuery({
    queryKey: ["activity"],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      auth.listOwnAuditEvents({ pageSize: EVENTS_PAGE, pageToken: pageParam, newestFirst: true }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
  return (
    <Panel title="Activity">
      <Happenings what="your activity" query={query} events={query.data?.pages.flatMap((page) => page.events) ?? []} />
    </Panel>
  );
}
