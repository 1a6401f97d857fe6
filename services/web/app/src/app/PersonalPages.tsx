import { Navigate, NavLink, Route, Routes } from "react-router";
import { ActivityPage } from "@/features/activity/ActivityPage";
import { ApiKeysPage } from "@/features/apiKeys/ApiKeysPage";
import { PlanPage } from "@/features/plan/PlanPage";
import { SecurityPage } from "@/features/security/SecurityPage";
import { Empty } from "@/ui/states";
import { PATHS } from "./paths";
import classes from "./PersonalPages.module.css";

const PLACES = [
  { path: PATHS.security, label: "Security" },
  { path: PATHS.apiKeys, label: "API keys" },
  { path: PATHS.plan, label: "Plan" },
  { path: PATHS.activity, label: "Activity" },
];

/** What belongs to the person, whichever account they trade with. */
export function PersonalPages() {
  return (
    <div className={classes.page}>
      <nav className={classes.places} aria-label="Your account">
        {PLACES.map(({ path, label }) => (
          <NavLink key={path} to={path} className={classes.place!}>
            {label}
          </NavLink>
        ))}
      </nav>
      <Routes>
        <Route index element={<Navigate to={PATHS.security} replace />} />
        <Route path="security" element={<SecurityPage />} />
        <Route path="api-keys" element={<ApiKeysPage />} />
        <Route path="plan" element={<PlanPage />} />
        <Route path="activity" element={<ActivityPage />} />
        <Route path="*" element={<Empty title="There is no such page" />} />
      </Routes>
    </div>
  );
}
