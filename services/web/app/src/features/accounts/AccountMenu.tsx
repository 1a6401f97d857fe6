import { Button, Menu, Modal, Text } from "@mantine/core";
import { IconCheck, IconChevronDown, IconPlus } from "@tabler/icons-react";
import { useState } from "react";
import { isLive } from "@/features/live/words";
import { Tag } from "@/ui/Tag";
import { useAccount } from "./account";
import { OpenAccountForm } from "./OpenAccountForm";

export function AccountMenu() {
  const { account, accounts, choose } = useAccount();
  const [opening, setOpening] = useState(false);
  return (
    <>
      <Menu position="bottom-end" width={240}>
        <Menu.Target>
          <Button
            variant="default"
            size="sm"
            px="xs"
            maw={150}
            rightSection={<IconChevronDown size={14} aria-hidden />}
            aria-label={`Account ${account.name}`}
          >
            <Text size="sm" truncate>
              {account.name}
            </Text>
          </Button>
        </Menu.Target>
        <Menu.Dropdown mah={360} style={{ overflowY: "auto" }}>
          <Menu.Label>Accounts</Menu.Label>
          {accounts.map((each) => (
            <Menu.Item
              key={each.accountId}
              onClick={() => choose(each.accountId)}
              rightSection={each.accountId === account.accountId && <IconCheck size={16} aria-label="chosen" />}
            >
              {each.name} {isLive(each) && <Tag color="red">Real money</Tag>}
            </Menu.Item>
          ))}
          <Menu.Divider />
          <Menu.Item leftSection={<IconPlus size={16} />} onClick={() => setOpening(true)}>
            Open another
          </Menu.Item>
        </Menu.Dropdown>
      </Menu>
      <Modal opened={opening} onClose={() => setOpening(false)} withCloseButton={false} padding={0} centered>
        <OpenAccountForm
          onOpened={(accountId) => {
            setOpening(false);
            choose(accountId);
          }}
        />
      </Modal>
    </>
  );
}
