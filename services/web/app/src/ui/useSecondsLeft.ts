import { useEffect, useState } from "react";
import { isRefusal, refusalOf } from "@/api/refusal";

/** How many seconds a call that was refused for the time being must wait, counted down; 0 where it need not. */
export function useSecondsLeft(error: unknown): number {
  const [left, setLeft] = useState(0);
  useEffect(() => {
    const refusal = error ? (isRefusal(error) ? error : refusalOf(error)) : undefined;
    const end = Date.now() + (refusal?.retryDelaySeconds ?? 0) * 1000;
    const count = () => {
      const seconds = Math.max(0, Math.ceil((end - Date.now()) / 1000));
      setLeft(seconds);
      if (seconds === 0) clearInterval(timer);
    };
    const timer = setInterval(count, 1_000);
    count();
    return () => clearInterval(timer);
  }, [error]);
  return left;
}
