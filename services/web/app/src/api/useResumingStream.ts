import { useEffect, useRef, useState } from "react";
import { useApi } from "./clients";
import { follow, type ResumableStream, type StreamState } from "./resuming";

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
    const ending = new AbortController();
    const stream = latest.current();
    setState({ phase: "connecting" });
    let generation = session.generation;
    void follow(
      {
        ...stream,
        open: (cursor, signal) => {
          generation = session.generation;
          return stream.open(cursor, signal);
        },
        renew: () => session.renew(generation),
        onState: (next) => {
          setState(next);
          stream.onState?.(next);
        },
      },
      ending.signal,
    );
    return () => ending.abort();
  }, [key, session]);

  return state;
}
