import { Group, Stack, Text } from "@mantine/core";
import { useUser } from "@/api/clients";
import { Panel } from "@/ui/Panel";
import { Tag } from "@/ui/Tag";
import { ChangePassword } from "./ChangePassword";
import { SecondFactor } from "./SecondFactor";
import { Sessions } from "./Sessions";

export function SecurityPage() {
  const user = useUser();
  return (
    <Stack gap="xs">
      <Panel title="E-mail address">
        <Group p="sm" gap="xs">
          <Text size="sm" style={{ overflowWrap: "anywhere" }}>
            {user.email}
          </Text>
          <Tag color={user.emailVerified ? "teal" : "yellow"}>{user.emailVerified ? "Verified" : "Not verified"}</Tag>
        </Group>
      </Panel>
      <SecondFactor />
      <ChangePassword />
      <Sessions />
    </Stack>
  );
}
