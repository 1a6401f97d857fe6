import { Button, Center } from "@mantine/core";
import type { UseInfiniteQueryResult } from "@tanstack/react-query";
import type { ReactNode } from "react";
import classes from "./Rows.module.css";
import { Empty, Failed, Loading } from "./states";

/** A list whose rows read as sentences, on a phone as on a desk. */
export function Rows({ label, children }: { label: string; children: ReactNode }) {
  return (
    <ul className={classes.rows} aria-label={label}>
      {children}
    </ul>
  );
}

interface RowProps {
  title: ReactNode;
  details?: ReactNode;
  action?: ReactNode;
}

export function Row({ title, details, action, ...rest }: RowProps & { "data-testid"?: string }) {
  return (
    <li className={classes.row} {...rest}>
      <div className={classes.text}>
        <div className={classes.title}>{title}</div>
        {details && <div className={classes.details}>{details}</div>}
      </div>
      {action && <div className={classes.action}>{action}</div>}
    </li>
  );
}

interface PagedProps<Item> {
  /** Such as "your API keys". */
  what: string;
  query: Pick<UseInfiniteQueryResult, "isPending" | "error" | "refetch" | "hasNextPage" | "isFetchingNextPage" | "fetchNextPage">;
  items: readonly Item[];
  empty: ReactNode;
  more: string;
  children(item: Item): ReactNode;
}

/** The rows of a list that comes page by page, whatever became of it. */
export function PagedRows<Item>({ what, query, items, empty, more, children }: PagedProps<Item>) {
  const retry = () => void query.refetch();
  if (query.isPending) return <Loading what={what} />;
  if (query.error && items.length === 0) return <Failed what={what} error={query.error} onRetry={retry} />;
  if (items.length === 0) return typeof empty === "string" ? <Empty title={empty} /> : empty;
  return (
    <>
      <Rows label={what.replace(/^(your|the) /, "").replace(/^./, (first) => first.toUpperCase())}>{items.map(children)}</Rows>
      {query.error && <Failed what={`more of ${what}`} error={query.error} onRetry={() => void query.fetchNextPage()} />}
      {query.hasNextPage && !query.error && (
        <Center p="sm">
          <Button size="xs" variant="default" loading={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
            {more}
          </Button>
        </Center>
      )}
    </>
  );
}
