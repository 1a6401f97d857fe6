import { useEffect, useRef, useState } from "react";
import { useApi } from "./clients";
import { follow, type ResumableStream, type StreamState } from "./resuming";
import { takeSlot } from "./streamSlots";

/** A window that is not seen for this long lets its streams rest: they cost others their places. */
export const UNSEEN_SECONDS_MAX = 20;

/**
 * Follows a stream for as long as the component shows and `key` stays the same; null for none.
 * The stream of the first render with a key is the one that is followed.
 */
export function useResumingStream<Message, Cursor>(
  key: string | null,
  make: () => ResumableStream<Message, Cursor>,
): StreamState {
  const { session } = useApi();
  const [state, setState] = useState<StreamState>({ phase: "connecting" });
  const latest = useRef(make);
  latest.current = make;

  useEffect(() => {
    if (key === null) return;
    const leaving = new AbortController();
    const stream = latest.current();
    const tell = (next: StreamState) => {
      if (leaving.signal.aborted) return;
      setState(next);
      stream.onState?.(next);
    };
    let generation = session.generation;
    const followed: ResumableStream<Message, Cursor> = {
      ...stream,
      open: (cursor, signal) => {
        generation = session.generation;
        return stream.open(cursor, signal);
      },
      renew: (refusal) => session.recover(generation, refusal),
      onState: tell,
    };

    void (async () => {
      let cursor: Cursor | undefined;
      while (!leaving.signal.aborted) {
        const unseen = new Unseen(leaving.signal);
        tell({ phase: "queued" });
        const release = await takeSlot(unseen.signal);
        if (release) {
          cursor = await follow(followed, unseen.signal, cursor);
          release();
        }
        // Refused for good: nothing changes that but another key.
        if (!unseen.signal.aborted) return unseen.stop();
        tell({ phase: "resting" });
        await unseen.isOver();
      }
    })();
    return () => leaving.abort();
  }, [key, session]);

  return state;
}

/** Aborts when the window has not been seen for a while, or the component goes. */
class Unseen {
  private readonly ending = new AbortController();
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly leaving: AbortSignal) {
    leaving.addEventListener("abort", this.stop);
    document.addEventListener("visibilitychange", this.look);
    this.look();
  }

  get signal(): AbortSignal {
    return this.ending.signal;
  }

  /** Resolves when the window is seen again, or the component goes. */
  isOver(): Promise<void> {
    return new Promise((resolve) => {
      const check = () => {
        if (document.hidden && !this.leaving.aborted) return;
        document.removeEventListener("visibilitychange", check);
        this.leaving.removeEventListener("abort", check);
        resolve();
      };
      document.addEventListener("visibilitychange", check);
      this.leaving.addEventListener("abort", check);
      check();
    });
  }

  readonly stop = () => {
    clearTimeout(this.timer);
    document.removeEventListener("visibilitychange", this.look);
    this.leaving.removeEventListener("abort", this.stop);
    this.ending.abort();
  };

  private readonly look = () => {
    clearTimeout(this.timer);
    if (document.hidden) this.timer = setTimeout(this.stop, UNSEEN_SECONDS_MAX * 1000);
  };
}
