import type { StreamTicksResponse } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { useEffect, useRef, useState } from "react";
import { NO_DEADLINE, useApi } from "@/api/clients";
import { useResumingStream } from "@/api/useResumingStream";
import { cursorsAfter, NO_TAPE, tapeAfter, type Tape } from "./tape";

/** The live market of one instrument; drawn at most once per frame, however fast ticks come. */
export function useTape(instrumentId: string | null) {
  const { marketData } = useApi();
  const [tape, setTape] = useState<Tape>(NO_TAPE);
  const newest = useRef<Tape>(NO_TAPE);
  const frame = useRef(0);

  useEffect(() => {
    newest.current = NO_TAPE;
    setTape(NO_TAPE);
    return () => {
      cancelAnimationFrame(frame.current);
      frame.current = 0;
    };
  }, [instrumentId]);

  const stream = useResumingStream<StreamTicksResponse, ReadonlyMap<string, string>>(instrumentId, () => ({
    open: (cursors, signal) =>
      marketData.streamTicks(
        { instrumentIds: [instrumentId!], afterCursors: [...(cursors?.values() ?? [])], conflate: true },
        { signal, ...NO_DEADLINE },
      ),
    advance: cursorsAfter,
    heartbeatSeconds: ({ acknowledgement }) => acknowledgement?.heartbeatSeconds,
    onMessage: (message) => {
      newest.current = tapeAfter(newest.current, message);
      frame.current ||= requestAnimationFrame(() => {
        frame.current = 0;
        setTape(newest.current);
      });
    },
  }));

  return { tape, stream };
}
