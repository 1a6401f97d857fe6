import { Anchor } from "@mantine/core";
import type { Account } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { Link, useLocation } from "react-router";
import { PATHS } from "@/app/paths";
import classes from "./RealMoneyBanner.module.css";
import { useLiveTrading } from "./useLive";
import { holdOf, isLive } from "./words";

/** On every page of a live account: that its money is real, and whether it trades now. */
export function RealMoneyBanner({ account }: { account: Account }) {
  return isLive(account) ? <Banner account={account} /> : null;
}

function Banner({ account }: { account: Account }) {
  const { pathname } = useLocation();
  const trading = useLiveTrading();
  const hold = holdOf(account, trading.data);
  return (
    <section className={classes.banner} aria-label="Real money" data-on={hold === undefined || undefined} data-testid="real-money">
      <span className={classes.mark}>Real money</span>
      <span role="status">
        {hold === undefined ? (
          <>
            Orders of <b>{account.name}</b> trade real money at {account.venue}.
          </>
        ) : (
          <>
            <b>{account.name}</b> at {account.venue} trades nothing now. {hold}
          </>
        )}
      </span>
      {pathname !== PATHS.live && (
        <Anchor component={Link} to={PATHS.live} size="sm">
          {hold === undefined ? "Look at it, or stop it" : "See what is missing"}
        </Anchor>
      )}
    </section>
  );
}
