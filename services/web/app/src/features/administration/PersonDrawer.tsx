import { Button, Checkbox, Drawer, Group, Select, Stack, Text, TextInput, Textarea } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useInfiniteQuery, useMutation, useQuery, useQueryClient } from "@tanstack/react-query";
import { UserState, type User } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { useState, type FormEvent, type ReactNode } from "react";
import { useApi, useIsStepUpAsked, useUser } from "@/api/clients";
import { newRequestId } from "@/api/requestId";
import { EVENTS_PAGE, Happenings } from "@/features/activity/Happenings";
import { stateText } from "@/features/plan/plan";
import { usePlans } from "@/features/plan/usePlans";
import { dateAndClock } from "@/lib/time";
import { Failed, Loading, RefusalAlert } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import { endOfDay, PEOPLE_KEY, STATES } from "./person";
import classes from "./PersonDrawer.module.css";

const NOTE_LENGTH_MAX = 500;
const FURTHER_ROLES = ["operator", "admin"];

/** One person: what an administrator may change about them, and what was recorded. */
export function PersonDrawer({ person, onClose }: { person: User | undefined; onClose(): void }) {
  const isStepUpAsked = useIsStepUpAsked();
  return (
    <Drawer
      opened={person !== undefined}
      onClose={onClose}
      position="right"
      size={460}
      styles={{ content: { background: "var(--panel)" }, header: { background: "var(--panel)" } }}
      title={
        <Text fw={600} style={{ overflowWrap: "anywhere" }}>
          {person?.email || person?.userId}
        </Text>
      }
      closeOnEscape={!isStepUpAsked}
      closeButtonProps={{ "aria-label": "Close" }}
    >
      {person && <Person key={person.userId} person={person} />}
    </Drawer>
  );
}

function Person({ person }: { person: User }) {
  const { label, color } = STATES[person.state];
  return (
    <Stack gap="lg">
      <div>
        <Group gap="xs">
          <Tag color={color}>{label}</Tag>
          <Text size="sm">{person.fullName}</Text>
        </Group>
        <Text size="xs" c="dimmed" mt={4}>
          Registered {dateAndClock(person.createTime)} · address {person.emailVerified ? "" : "not "}verified ·{" "}
          {person.totpEnabled ? "has" : "no"} second factor
        </Text>
        <Text size="xs" c="dimmed" ff="monospace" style={{ overflowWrap: "anywhere" }}>
          {person.userId}
        </Text>
      </div>
      {person.state !== UserState.PURGED && (
        <>
          <Roles key={person.roles.join()} person={person} />
          <State key={person.state} person={person} />
          {person.totpEnabled && <SecondFactor person={person} />}
          <AssignPlan userId={person.userId} />
        </>
      )}
      <Records userId={person.userId} />
    </Stack>
  );
}

function Part({ title, children }: { title: string; children: ReactNode }) {
  return (
    <section aria-label={title}>
      <Text size="xs" fw={600} component="h3" mt={0} mb="xs">
        {title}
      </Text>
      {children}
    </section>
  );
}

/** Shows a person as they are after a change of ours; if it was the administrator, what they may do is other, too. */
function useChanged() {
  const { session } = useApi();
  const own = useUser();
  const queries = useQueryClient();
  return async (userId: string) => {
    await queries.invalidateQueries({ queryKey: PEOPLE_KEY });
    await queries.invalidateQueries({ queryKey: ["records", userId] });
    if (userId === own.userId) await session.reload().catch(() => {});
  };
}

function Roles({ person }: { person: User }) {
  const { admin } = useApi();
  const changed = useChanged();
  const present = person.roles.filter((role) => FURTHER_ROLES.includes(role));
  const [roles, setRoles] = useState(present);
  const [requestId, setRequestId] = useState(newRequestId);
  const setting = useMutation({
    mutationFn: () => admin.setUserRoles({ requestId, userId: person.userId, roles: ["user", ...roles] }),
    onSuccess: async () => {
      notifications.show({ color: "teal", title: "Roles set", message: person.email });
      await changed(person.userId);
    },
  });
  const isSame = roles.length === present.length && roles.every((role) => present.includes(role));
  return (
    <Part title="Roles">
      <form
        aria-label="Roles"
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          if (!setting.isPending && !isSame) setting.mutate();
        }}
      >
        <Stack gap="xs">
          {setting.error && <RefusalAlert error={setting.error} />}
          <Checkbox.Group
            value={roles}
            onChange={(value) => {
              setRoles(value);
              setRequestId(newRequestId());
              setting.reset();
            }}
          >
            <Stack gap={6}>
              <Checkbox size="xs" value="operator" label="Operator" description="Feeds, venues and the kill switch." />
              <Checkbox size="xs" value="admin" label="Admin" description="People, their roles and their plans, too." />
            </Stack>
          </Checkbox.Group>
          <Button type="submit" size="xs" variant="default" w="fit-content" loading={setting.isPending} disabled={isSame}>
            Set the roles
          </Button>
        </Stack>
      </form>
    </Part>
  );
}

function State({ person }: { person: User }) {
  const { admin } = useApi();
  const isActive = person.state === UserState.ACTIVE;
  return (
    <WithNote
      title={isActive ? "Suspend" : "Let in again"}
      name="State"
      explanation={
        isActive
          ? "Ends every session, refuses API keys and pauses deployments. Nothing is deleted."
          : "They can sign in again. Sessions and keys that ended stay ended."
      }
      label="Why, for the record"
      required={isActive}
      button={isActive ? "Suspend" : "Let in again"}
      alarming={isActive}
      done={isActive ? "Suspended" : "Let in again"}
      person={person}
      act={(requestId, note) =>
        admin.setUserState({ requestId, userId: person.userId, state: isActive ? UserState.SUSPENDED : UserState.ACTIVE, note })
      }
    />
  );
}

function SecondFactor({ person }: { person: User }) {
  const { admin } = useApi();
  return (
    <WithNote
      title="Lost second factor"
      name="Lost second factor"
      explanation="For who has lost the app and all recovery codes: make sure first that it is really them. Ends every session; the password alone signs in afterwards."
      label="How you made sure, for the record"
      required
      button="Take it away"
      alarming
      done="Second factor taken away"
      person={person}
      act={(requestId, note) => admin.resetSecondFactor({ requestId, userId: person.userId, note })}
    />
  );
}

interface Noted {
  title: string;
  /** Of the form. */
  name: string;
  explanation: string;
  /** What the note is to say. */
  label: string;
  required: boolean;
  button: string;
  alarming: boolean;
  /** What is said when it was done. */
  done: string;
  person: User;
  act(requestId: string, note: string): Promise<unknown>;
}

/** Something done to a person, with a note that is recorded. */
function WithNote({ title, name, explanation, label, required, button, alarming, done, person, act }: Noted) {
  const changed = useChanged();
  const [note, setNote] = useState("");
  const [requestId, setRequestId] = useState(newRequestId);
  const acting = useMutation({
    mutationFn: () => act(requestId, note.trim()),
    onSuccess: async () => {
      notifications.show({ color: alarming ? "yellow" : "teal", title: done, message: person.email });
      await changed(person.userId);
    },
  });
  return (
    <Part title={title}>
      <form
        aria-label={name}
        onSubmit={(event: FormEvent) => {
          event.preventDefault();
          if (!acting.isPending) acting.mutate();
        }}
      >
        <Stack gap="xs">
          <Text size="xs" c="dimmed">
            {explanation}
          </Text>
          {acting.error && <RefusalAlert error={acting.error} />}
          <Textarea
            label={label}
            required={required}
            maxLength={NOTE_LENGTH_MAX}
            rows={2}
            value={note}
            onChange={(event) => {
              setNote(event.currentTarget.value);
              setRequestId(newRequestId());
              acting.reset();
            }}
          />
          <Button type="submit" size="xs" {...(alarming ? { color: "red" } : { variant: "default" })} w="fit-content" loading={acting.isPending}>
            {button}
          </Button>
        </Stack>
      </form>
    </Part>
  );
}

function AssignPlan({ userId }: { userId: string }) {
  const { billing } = useApi();
  const changed = useChanged();
  const queries = useQueryClient();
  const plans = usePlans();
  const [plan, setPlan] = useState<string | null>(null);
  const [endDay, setEndDay] = useState("");
  const [isTrial, setIsTrial] = useState(false);
  const [requestId, setRequestId] = useState(newRequestId);
  const assigning = useMutation({
    mutationFn: (name: string) => {
      const endTime = endOfDay(endDay);
      return billing.assignPlan({ requestId, userId, plan: name, trial: isTrial, ...(endTime && { endTime }) });
    },
    onSuccess: async ({ subscription }) => {
      notifications.show({ color: "teal", title: "Plan assigned", message: `Now in force: ${subscription?.planInForce ?? ""}` });
      setRequestId(newRequestId());
      await queries.invalidateQueries({ queryKey: ["subscription", userId] });
      await changed(userId);
    },
  });
  const edit = <Value,>(set: (value: Value) => void) => (value: Value) => {
    set(value);
    setRequestId(newRequestId());
    assigning.reset();
  };

  return (
    <Part title="Plan">
      <PresentPlan userId={userId} />
      {plans.isPending ? (
        <Loading what="the plans" />
      ) : !plans.data ? (
        <Failed what="the plans" error={plans.error} onRetry={() => void plans.refetch()} />
      ) : (
        <form
          aria-label="Assign a plan"
          onSubmit={(event: FormEvent) => {
            event.preventDefault();
            if (!assigning.isPending && plan) assigning.mutate(plan);
          }}
        >
          <Stack gap="xs">
            {assigning.error && <RefusalAlert error={assigning.error} />}
            <Group gap="xs" align="flex-end">
              <Select
                label="Plan"
                placeholder="Choose one"
                flex="1 1 140px"
                allowDeselect={false}
                data={plans.data.plans.map((each) => ({ value: each.plan, label: each.title }))}
                value={plan}
                onChange={edit(setPlan)}
              />
              <TextInput
                label="Ends after"
                type="date"
                flex="1 1 140px"
                required={isTrial}
                value={endDay}
                onChange={(event) => edit(setEndDay)(event.currentTarget.value)}
              />
            </Group>
            <Checkbox size="xs" label="As a trial, which needs an end" checked={isTrial} onChange={(event) => edit(setIsTrial)(event.currentTarget.checked)} />
            <Button type="submit" size="xs" variant="default" w="fit-content" loading={assigning.isPending} disabled={!plan}>
              Assign
            </Button>
          </Stack>
        </form>
      )}
    </Part>
  );
}

function PresentPlan({ userId }: { userId: string }) {
  const { billing } = useApi();
  const query = useQuery({
    queryKey: ["subscription", userId],
    queryFn: ({ signal }) => billing.getUserSubscription({ userId }, { signal }),
  });
  if (query.isPending) return <Loading what="the present plan" />;
  const found = query.data?.subscription;
  if (!found) return <Failed what="the present plan" error={query.error} onRetry={() => void query.refetch()} />;
  return (
    <Text size="xs" mb="xs">
      Has {found.planInForce}
      {found.plan !== found.planInForce && `, subscribed to ${found.plan}`}. {stateText(found)} {found.atStripe && "Paid at Stripe."}
    </Text>
  );
}

function Records({ userId }: { userId: string }) {
  const { admin } = useApi();
  const query = useInfiniteQuery({
    queryKey: ["records", userId],
    initialPageParam: "",
    queryFn: ({ pageParam, signal }) =>
      admin.listAuditEvents({ userId, pageSize: EVENTS_PAGE, pageToken: pageParam, newestFirst: true }, { signal }),
    getNextPageParam: (page) => page.nextPageToken || undefined,
  });
  return (
    <Part title="Records">
      <div className={classes.records}>
        <Happenings what="the records" query={query} events={query.data?.pages.flatMap((page) => page.events) ?? []} />
      </div>
    </Part>
  );
}
