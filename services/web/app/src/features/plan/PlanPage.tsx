import { Button, Group, Progress, Stack, Text } from "@mantine/core";
import { useMutation, useQuery } from "@tanstack/react-query";
import type { BillingInterval, Plan } from "@gen/tradeloom/billing/v1/billing_pb.js";
import { useState } from "react";
import { useApi } from "@/api/clients";
import { newRequestId } from "@/api/requestId";
import { Panel } from "@/ui/Panel";
import { Empty, Failed, Loading, RefusalAlert } from "@/ui/states";
import { Tag } from "@/ui/Tag";
import { allowedBy, leaveFor, pricesOf, stateText, usesOf } from "./plan";
import classes from "./PlanPage.module.css";
import { usePlans } from "./usePlans";

/** Moments after paying, or making something, billing has heard of it. */
const FOLLOW_MILLISECONDS = 15_000;

/** What the present plan allows, what of it is used, and which other plans there are. */
export function PlanPage() {
  const { billing } = useApi();
  const plans = usePlans();
  const present = useQuery({
    queryKey: ["subscription"],
    queryFn: async ({ signal }) => {
      const [{ subscription }, entitlements, { usage }] = await Promise.all([
        billing.getSubscription({}, { signal }),
        billing.getEntitlements({}, { signal }),
        billing.getUsage({}, { signal }),
      ]);
      return { subscription, entitlements, usage };
    },
    refetchInterval: FOLLOW_MILLISECONDS,
  });

  if (plans.isPending || present.isPending) return <Loading what="your plan" />;
  if (!plans.data || !present.data) {
    const retry = () => void Promise.all([plans.refetch(), present.refetch()]);
    return <Failed what="your plan" error={plans.error ?? present.error} onRetry={retry} />;
  }
  const { subscription, entitlements, usage } = present.data;
  const { features, checkoutAvailable } = plans.data;
  const plan = plans.data.plans.find((each) => each.plan === entitlements.plan);
  const allowed = allowedBy({ capabilities: entitlements.entitlements, quotas: entitlements.quotas }, features);
  const uses = usesOf(usage, features);
  const told = subscription ? stateText(subscription) : "";

  return (
    <Stack gap="xs">
      <Panel title="Your plan" aside={subscription?.atStripe && <PortalButton />}>
        <Stack gap="xs" p="sm">
          <Group gap="xs">
            <Text fw={600} data-testid="plan">
              {plan?.title ?? entitlements.plan}
            </Text>
            {subscription && subscription.planInForce !== subscription.plan && <Tag color="yellow">{`instead of ${subscription.plan}`}</Tag>}
          </Group>
          {plan?.description && (
            <Text size="sm" c="dimmed">
              {plan.description}
            </Text>
          )}
          {told && <Text size="sm">{told}</Text>}
          {allowed.length > 0 && (
            <ul className={classes.allowed} aria-label="What it allows">
              {allowed.map((line) => (
                <li key={line}>{line}</li>
              ))}
            </ul>
          )}
        </Stack>
      </Panel>
      <Panel title="Used">
        {uses.length === 0 ? (
          <Empty title="Nothing is counted" />
        ) : (
          <div className={classes.uses}>
            {uses.map(({ feature, title, used, limit, percent, isDaily }) => (
              <div key={feature}>
                <Group justify="space-between" gap="xs">
                  <Text size="sm">{title}</Text>
                  <Text size="sm" c="dimmed">
                    {used.toLocaleString("en")} of {limit.toLocaleString("en")}
                    {isDaily && " today (UTC)"}
                  </Text>
                </Group>
                <Progress value={percent} size="sm" mt={4} color={percent >= 100 ? "red" : percent >= 80 ? "yellow" : "indigo"} aria-label={title} />
              </div>
            ))}
          </div>
        )}
      </Panel>
      <Panel title="Plans">
        {!checkoutAvailable && (
          <Text size="sm" p="sm" pb={0} data-testid="manual">
            Nothing is paid here: an administrator assigns plans. Ask yours for another one.
          </Text>
        )}
        <div className={classes.plans}>
          {plans.data.plans.map((each) => (
            <PlanCard
              key={each.plan}
              plan={each}
              isPresent={each.plan === entitlements.plan}
              allowed={allowedBy(each, features)}
              canBePaid={checkoutAvailable && !subscription?.atStripe}
              showsPrices={checkoutAvailable}
            />
          ))}
        </div>
      </Panel>
    </Stack>
  );
}

interface PlanCardProps {
  plan: Plan;
  isPresent: boolean;
  allowed: readonly string[];
  canBePaid: boolean;
  showsPrices: boolean;
}

function PlanCard({ plan, isPresent, allowed, canBePaid, showsPrices }: PlanCardProps) {
  const { billing } = useApi();
  const [requestId] = useState(newRequestId);
  const paying = useMutation({
    mutationFn: (interval: BillingInterval) => billing.startCheckout({ requestId: `${requestId}-${interval}`, plan: plan.plan, interval }),
    onSuccess: ({ url }) => leaveFor(url),
  });
  const prices = showsPrices ? pricesOf(plan) : [];
  return (
    <section className={classes.plan} aria-label={plan.title} {...(isPresent && { "data-present": true })}>
      <Group gap="xs" justify="space-between">
        <Text fw={600} size="sm" component="h3" m={0}>
          {plan.title}
        </Text>
        {isPresent && <Tag color="indigo">Yours</Tag>}
      </Group>
      {plan.description && (
        <Text size="xs" c="dimmed">
          {plan.description}
        </Text>
      )}
      <ul className={classes.allowed}>
        {allowed.map((line) => (
          <li key={line}>{line}</li>
        ))}
      </ul>
      {plan.trialDays > 0 && canBePaid && !isPresent && (
        <Text size="xs" c="dimmed">
          {plan.trialDays} days on trial, if you never subscribed before.
        </Text>
      )}
      {paying.error && <RefusalAlert error={paying.error} />}
      {prices.map(({ interval, label }) =>
        canBePaid && !isPresent ? (
          <Button key={interval} size="xs" variant="default" loading={paying.isPending && paying.variables === interval} onClick={() => paying.mutate(interval)}>
            {label}
          </Button>
        ) : (
          <Text key={interval} size="xs" c="dimmed">
            {label}
          </Text>
        ),
      )}
    </section>
  );
}

function PortalButton() {
  const { billing } = useApi();
  const opening = useMutation({
    // Its pages are good for minutes only, so each asking is one of its own.
    mutationFn: () => billing.openCustomerPortal({ requestId: newRequestId() }),
    onSuccess: ({ url }) => leaveFor(url),
  });
  return (
    <Group gap="xs">
      {opening.error && (
        <Text size="xs" c="red" role="alert">
          Not opened. Try again.
        </Text>
      )}
      <Button size="compact-xs" variant="default" loading={opening.isPending} onClick={() => opening.mutate()}>
        Payment, receipts, cancelling
      </Button>
    </Group>
  );
}
