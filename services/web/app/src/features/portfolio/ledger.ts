import type { LedgerEntry } from "@gen/tradeloom/orders/v1/orders_pb.js";

/** Entries that belong together; those of one asset sum to zero. */
export interface Transaction {
  transactionId: string;
  kind: string;
  time: LedgerEntry["time"];
  entries: LedgerEntry[];
}

/** Entries by their transactions, in the order they came; one that goes on on the next page is whole again. */
export function transactionsOf(entries: readonly LedgerEntry[]): Transaction[] {
  const found = new Map<string, Transaction>();
  for (const entry of entries) {
    const { transactionId, kind, time } = entry;
    const transaction = found.get(transactionId);
    if (transaction) transaction.entries.push(entry);
    else found.set(transactionId, { transactionId, kind, time, entries: [entry] });
  }
  return [...found.values()];
}
