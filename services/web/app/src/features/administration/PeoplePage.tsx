import { Button, Group, Select, TextInput } from "@mantine/core";
import { useDebouncedValue } from "@mantine/hooks";
import { keepPreviousData, useInfiniteQuery } from "@tanstack/react-query";
import { UserState, type User } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { date } from "@/lib/time";
import { Panel } from "@/ui/Panel";
import { PagedRows, Row } from "@/ui/Rows";
import { Tag } from "@/ui/Tag";
import { PEOPLE_KEY, STATES } from "./person";
import { PersonDrawer } from "./PersonDrawer";

const PEOPLE_PAGE = 50;
const QUERY_LENGTH_MAX = 254;
/** Between the last letter and the asking. */
const TYPING_MILLISECONDS = 300;
const ANY = "any";

/** Everybody who ever registered, for administrators. */
export function PeoplePage() {
  const { admin } = useApi();
  const [typed, setTyped] = useState("");
  const [role, setRole] = useState(ANY);
  const [state, setState] = useState(ANY);
  const [shownId, setShownId] = useState<string>();
  const [search] = useDebouncedValue(typed.trim(), TYPING_MILLISECONDS);

  const query = useInfiniteQuery({
    queryKey: [...PEOPLE_KEY, search, role, state],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      admin.listUsers(
        {
          pageSize: PEOPLE_PAGE,
          pageToken: pageParam,
          query: search,
          role: role === ANY ? "" : role,
          states: state === ANY ? [] : [Number(state)],
        },
        { signal },
      ),
    getNextPageParam: (page) => page.nextPageToken || undefined,
    placeholderData: keepPreviousData,
  });
  const people = query.data?.pages.flatMap((page) => page.users) ?? [];
  const isNarrowed = search !== "" || role !== ANY || state !== ANY;

  return (
    <>
      <Panel title="People">
        <Group p="sm" gap="xs" align="flex-end" role="search">
          <TextInput
            label="E-mail or name"
            type="search"
            maxLength={QUERY_LENGTH_MAX}
            flex="1 1 200px"
            value={typed}
            onChange={(event) => setTyped(event.currentTarget.value)}
          />
          <Select
            label="Role"
            flex="1 1 100px"
            maw={140}
            allowDeselect={false}
            value={role}
            onChange={(value) => setRole(value ?? ANY)}
            data={[
              { value: ANY, label: "Any" },
              { value: "operator", label: "Operator" },
              { value: "admin", label: "Admin" },
            ]}
          />
          <Select
            label="State"
            flex="1 1 100px"
            maw={140}
            allowDeselect={false}
            value={state}
            onChange={(value) => setState(value ?? ANY)}
            data={[
              { value: ANY, label: "Any" },
              ...[UserState.ACTIVE, UserState.SUSPENDED, UserState.PURGED].map((each) => ({ value: String(each), label: STATES[each].label })),
            ]}
          />
        </Group>
        <PagedRows
          what="the people"
          query={query}
          items={people}
          empty={isNarrowed ? "Nobody is like that" : "Nobody has registered yet"}
          more="Show more people"
        >
          {(person) => <PersonRow key={person.userId} person={person} onShow={() => setShownId(person.userId)} />}
        </PagedRows>
      </Panel>
      <PersonDrawer person={people.find(({ userId }) => userId === shownId)} onClose={() => setShownId(undefined)} />
    </>
  );
}

function PersonRow({ person, onShow }: { person: User; onShow(): void }) {
  const { label, color } = STATES[person.state];
  return (
    <Row
      title={
        <>
          {person.email || person.userId}
          {person.state !== UserState.ACTIVE && <Tag color={color}>{label}</Tag>}
          {person.roles
            .filter((role) => role !== "user")
            .map((role) => (
              <Tag key={role} color="indigo">
                {role}
              </Tag>
            ))}
        </>
      }
      details={[
        person.fullName,
        `since ${date(person.createTime)}`,
        person.emailVerified ? "" : "address not verified",
        person.totpEnabled ? "second factor" : "no second factor",
      ]
        .filter(Boolean)
        .join(" · ")}
      action={
        <Button size="compact-xs" variant="default" aria-label={`Show ${person.email || person.userId}`} onClick={onShow}>
          Show
        </Button>
      }
    />
  );
}
