import { ActionIcon, Anchor, Group, Menu, Text, Tooltip, useMantineColorScheme } from "@mantine/core";
import {
  IconBolt,
  IconBook2,
  IconBriefcase,
  IconChartCandle,
  IconListDetails,
  IconLogout,
  IconMoon,
  IconSettings,
  IconShieldHalf,
  IconSun,
  IconUser,
  IconUsersGroup,
} from "@tabler/icons-react";
import type { User } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { useContext, type ReactNode } from "react";
import { Link, NavLink } from "react-router";
import { isOperator, useApi } from "@/api/clients";
import { AccountContext } from "@/features/accounts/account";
import { AccountMenu } from "@/features/accounts/AccountMenu";
import { EmailBanner } from "@/features/auth/EmailBanner";
import { DeletionBanner } from "@/features/leaving/DeletionBanner";
import { RealMoneyBanner } from "@/features/live/RealMoneyBanner";
import { isLive } from "@/features/live/words";
import { useAccountOrders } from "@/features/orders/AccountOrdersProvider";
import { StreamBadge } from "@/ui/StreamBadge";
import { PATHS } from "./paths";
import classes from "./Shell.module.css";

const PLACES = [
  { path: PATHS.trade, label: "Trade", Icon: IconChartCandle },
  { path: PATHS.orders, label: "Orders", Icon: IconListDetails },
  { path: PATHS.portfolio, label: "Portfolio", Icon: IconBriefcase },
  { path: PATHS.risk, label: "Risk", Icon: IconShieldHalf },
];

/** Of live accounts alone. */
const LIVE_PLACE = { path: PATHS.live, label: "Live", Icon: IconBolt };

/** What every page stands in: where one is, which account, who, and whether orders are live. */
export function Shell({ user, children }: { user: User; children: ReactNode }) {
  const { session } = useApi();
  const { colorScheme, toggleColorScheme } = useMantineColorScheme();
  const isDark = colorScheme !== "light";
  const account = useContext(AccountContext)?.account;
  const isReal = account !== undefined && isLive(account);
  const places = isReal ? [...PLACES, LIVE_PLACE] : PLACES;
  return (
    <div className={classes.shell}>
      <a className={classes.skip} href="#main">
        Skip to the content
      </a>
      <header className={classes.header}>
        <Group gap={8} wrap="nowrap" className={classes.brand}>
          <img src="/favicon.svg" width={22} height={22} alt="" />
          <Text fw={700} size="md" visibleFrom="xs">
            Tradeloom
          </Text>
        </Group>
        <nav className={classes.places} aria-label="Pages">
          {places.map(({ path, label, Icon }) => (
            <NavLink key={path} to={path} className={classes.place!}>
              <Icon size={17} stroke={1.7} aria-hidden />
              {label}
            </NavLink>
          ))}
        </nav>
        <Group gap="xs" wrap="nowrap" ml="auto">
          {account && <OfTheAccount />}
          <Tooltip label="The interface's documentation">
            <ActionIcon component="a" href="/docs" variant="subtle" color="gray" aria-label="The interface's documentation" visibleFrom="sm">
              <IconBook2 size={18} stroke={1.6} />
            </ActionIcon>
          </Tooltip>
          <Menu position="bottom-end" width={220}>
            <Menu.Target>
              <ActionIcon variant="default" size="lg" aria-label={`Signed in as ${user.email}`}>
                <IconUser size={18} stroke={1.6} />
              </ActionIcon>
            </Menu.Target>
            <Menu.Dropdown>
              <Menu.Label>
                {user.fullName && <Text size="sm">{user.fullName}</Text>}
                <Text size="xs" c="dimmed" truncate>
                  {user.email}
                </Text>
              </Menu.Label>
              <Menu.Divider />
              <Menu.Item component={Link} to={PATHS.security} leftSection={<IconSettings size={16} />}>
                Security, keys and plan
              </Menu.Item>
              {isOperator(user) && (
                <Menu.Item component={Link} to={PATHS.administration} leftSection={<IconUsersGroup size={16} />}>
                  Administration
                </Menu.Item>
              )}
              <Menu.Item leftSection={isDark ? <IconSun size={16} /> : <IconMoon size={16} />} onClick={toggleColorScheme}>
                {isDark ? "Light colours" : "Dark colours"}
              </Menu.Item>
              <Menu.Divider />
              <Menu.Item leftSection={<IconLogout size={16} />} onClick={() => void session.signOut()}>
                Sign out
              </Menu.Item>
            </Menu.Dropdown>
          </Menu>
        </Group>
      </header>
      {account && <RealMoneyBanner account={account} />}
      <DeletionBanner />
      <EmailBanner />
      <main id="main" className={classes.main}>
        {children}
      </main>
      <footer className={classes.footer}>
        <span>
          {isReal ? `Real money: orders trade at ${account.venue}.` : "Paper trading: orders fill by the prices of the feeds, with money that is not real."}
        </span>
        <Anchor href="https://www.tradingview.com/" target="_blank" rel="noreferrer" size="xs" c="dimmed">
          Charts by TradingView Lightweight Charts™
        </Anchor>
      </footer>
    </div>
  );
}

function OfTheAccount() {
  const { stream } = useAccountOrders();
  return (
    <>
      <StreamBadge what="Orders" state={stream} />
      <AccountMenu />
    </>
  );
}
