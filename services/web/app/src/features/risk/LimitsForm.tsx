import { Button, Group, SimpleGrid, Stack, Text, TextInput } from "@mantine/core";
import { notifications } from "@mantine/notifications";
import { useMutation, useQueryClient } from "@tanstack/react-query";
import type { GetRiskLimitsResponse, SetRiskLimitsResponse } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { useState, type FormEvent } from "react";
import { useApi } from "@/api/clients";
import { refusalOf, violationOf } from "@/api/refusal";
import { newRequestId } from "@/api/requestId";
import { shown } from "@/lib/decimal";
import { RefusalAlert } from "@/ui/states";
import { LIMIT_FIELDS, limitsOf, problemsOfLimits, typedOf } from "./limits";
import { riskKey, RISK_EVENTS_KEY } from "./useRisk";

/** The account's limits: what is left empty is the usual. */
export function LimitsForm({ accountId, present }: { accountId: string; present: GetRiskLimitsResponse }) {
  const { risk } = useApi();
  const queries = useQueryClient();
  // What the form was filled from: what somebody else sets meanwhile is not overwritten unseen.
  const [filledFrom, setFilledFrom] = useState<SetRiskLimitsResponse | GetRiskLimitsResponse>(present);
  const before = typedOf(filledFrom.limits);
  const usual = typedOf(filledFrom.effective);
  const [limits, setLimits] = useState(before);
  const [requestId, setRequestId] = useState(newRequestId);
  const [showsProblems, setShowsProblems] = useState(false);
  const found = problemsOfLimits(limits);
  const isSame = LIMIT_FIELDS.every(({ name }) => limits[name] === before[name]);
  const setting = useMutation({
    mutationFn: () => risk.setRiskLimits({ requestId, accountId, limits: limitsOf(limits), expectedRevision: filledFrom.revision }),
    onError: () => queries.invalidateQueries({ queryKey: riskKey(accountId) }),
    onSuccess: async (set) => {
      fill(set);
      notifications.show({ color: "teal", title: "Limits set", message: "They hold for every order from now on." });
      await queries.invalidateQueries({ queryKey: riskKey(accountId) });
      await queries.invalidateQueries({ queryKey: RISK_EVENTS_KEY });
    },
  });
  const fill = (limitsNow: typeof filledFrom) => {
    setFilledFrom(limitsNow);
    setLimits(typedOf(limitsNow.limits));
    setRequestId(newRequestId());
    setting.reset();
  };
  const refusal = setting.error ? refusalOf(setting.error) : undefined;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    setShowsProblems(true);
    if (!isSame && !setting.isPending && Object.keys(found).length === 0) setting.mutate();
  };
  return (
    <form onSubmit={submit} aria-label="Limits" noValidate>
      <Stack gap="sm" p="sm">
        <SimpleGrid cols={{ base: 1, xs: 2, md: 3 }} spacing="sm" verticalSpacing="xs">
          {LIMIT_FIELDS.map(({ name, field, label, hint }) => (
            <TextInput
              key={name}
              label={label}
              description={hint}
              inputMode="decimal"
              autoComplete="off"
              placeholder={before[name] !== "" ? "the usual" : usual[name] === "" ? "no limit" : `usually ${shown(usual[name], 0)}`}
              value={limits[name]}
              onChange={(event) => {
                setLimits({ ...limits, [name]: event.currentTarget.value });
                setRequestId(newRequestId());
                setting.reset();
              }}
              error={(showsProblems && found[name]) || violationOf(refusal, `limits.${field}`)}
            />
          ))}
        </SimpleGrid>
        {refusal && <RefusalAlert error={refusal} />}
        {present.revision > filledFrom.revision && (
          <Group gap="xs" role="status">
            <Text size="sm" c="var(--warning)">
              The limits were set elsewhere since this was filled in.
            </Text>
            <Button size="compact-xs" variant="default" onClick={() => fill(present)}>
              Show them as they are
            </Button>
          </Group>
        )}
        <Group gap="xs">
          <Button type="submit" size="xs" loading={setting.isPending} disabled={isSame}>
            Set the limits
          </Button>
        </Group>
      </Stack>
    </form>
  );
}
