import { Center, Group, Paper, Stack, Title } from "@mantine/core";
import type { ReactNode } from "react";

/** What everybody sees who is not inside: the name, a notice if there is one, one form, and what else one may want. */
export function EntryPage({ notice, beside, children }: { notice?: ReactNode; beside?: ReactNode; children: ReactNode }) {
  return (
    <Center mih="100%" p="md" component="main">
      <Stack w="100%" maw={380} gap="lg">
        <Group gap="sm" justify="center">
          <img src="/favicon.svg" width={34} height={34} alt="" />
          <Title order={1} size="h3">
            Tradeloom
          </Title>
        </Group>
        {notice}
        <Paper withBorder p="lg" radius="md" bg="var(--panel)">
          {children}
        </Paper>
        {beside}
      </Stack>
    </Center>
  );
}
