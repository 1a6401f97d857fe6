import { isAdministrator, useUser } from "@/api/clients";
import classes from "./AdministrationPage.module.css";
import { GlobalSwitch } from "./GlobalSwitch";
import { PeoplePage } from "./PeoplePage";

/** What operators, and administrators beyond them, may do. */
export function AdministrationPage() {
  const user = useUser();
  return (
    <div className={classes.page}>
      <GlobalSwitch />
      {isAdministrator(user) && <PeoplePage />}
    </div>
  );
}
