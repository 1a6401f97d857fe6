import type { UseInfiniteQueryResult } from "@tanstack/react-query";
import type { AuditEvent } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { exactTime } from "@/lib/time";
import { PagedRows, Row } from "@/ui/Rows";
import { Tag } from "@/ui/Tag";
import { happeningOf } from "./happening";

export const EVENTS_PAGE = 50;

interface Props {
  what: string;
  query: Pick<UseInfiniteQueryResult, "isPending" | "error" | "refetch" | "hasNextPage" | "isFetchingNextPage" | "fetchNextPage">;
  events: readonly AuditEvent[];
}

/** Records of a person in words, newest first. */
export function Happenings({ what, query, events }: Props) {
  return (
    <PagedRows what={what} query={query} items={events} empty="Nothing is recorded yet" more="Show older records">
      {(event) => {
        const { what: happened, details, isAlarming } = happeningOf(event);
        return (
          <Row
            key={String(event.sequence)}
            title={
              <>
                {happened}
                {isAlarming && <Tag color="yellow">Was it you?</Tag>}
              </>
            }
            details={[exactTime(event.time), ...details].join(" · ")}
          />
        );
      }}
    </PagedRows>
  );
}
