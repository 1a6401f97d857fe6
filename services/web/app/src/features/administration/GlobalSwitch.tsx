import { Text } from "@mantine/core";
import { KillSwitchScope } from "@gen/tradeloom/orders/v1/risk_pb.js";
import { useApi } from "@/api/clients";
import { SwitchForm, type Switching } from "@/features/risk/SwitchForm";
import { keyOf, SwitchRow } from "@/features/risk/SwitchRow";
import { useSwitches } from "@/features/risk/useRisk";
import { SCOPES } from "@/features/risk/words";
import { Panel } from "@/ui/Panel";
import { Rows } from "@/ui/Rows";
import { Failed, Loading } from "@/ui/states";

/** Stops trading of everybody, for operators. */
export function GlobalSwitch() {
  const { risk } = useApi();
  const switches = useSwitches();
  const set = (switching: Switching) => risk.setGlobalKillSwitch(switching);
  const on = switches.data?.switches.find(({ scope }) => scope === KillSwitchScope.GLOBAL);
  return (
    <Panel title="Everybody's trading">
      {switches.isPending && <Loading what="the kill switch" />}
      {switches.isError && <Failed what="the kill switch" error={switches.error} onRetry={() => void switches.refetch()} />}
      {on && (
        <Rows label="The switch that is on">
          <SwitchRow key={keyOf(on)} on={on} whose={SCOPES[on.scope]} act={set} />
        </Rows>
      )}
      {switches.data && !on && (
        <Text size="sm" c="dimmed" px="sm" pt="sm">
          Trading goes on for everybody.
        </Text>
      )}
      <SwitchForm name="Everybody's kill switch" needsReason target="everybody" act={set} />
    </Panel>
  );
}
