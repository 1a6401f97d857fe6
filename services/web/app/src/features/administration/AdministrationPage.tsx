import { isAdministrator, useUser } from "@/api/clients";
import classes from "./AdministrationPage.module.css";
import { GlobalSwitch } from "./GlobalSwitch";
import { LiveTradingSwitch } from "./LiveTradingSwitch";
import { PeoplePage } from "./PeoplePage";
import { UnknownOrders } from "./UnknownOrders";

/** What operators, and administrators beyond them, may do. */
export function AdministrationPage() {
  const user = useUser();
  return (
    <div className={classes.page}>
      <GlobalSwitch />
      <LiveTradingSwitch />
      <UnknownOrders />
      {isAdministrator(user) && <PeoplePage />}
    </div>
  );
}
