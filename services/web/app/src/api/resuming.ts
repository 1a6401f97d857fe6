import { Code, ConnectError } from "@connectrpc/connect";
import { backoffMilliseconds, pause } from "./backoff";
import { isWorthRepeating, refusalOf, type Refusal } from "./refusal";

/** Heartbeats come at most so far apart, if the stream's acknowledgement does not say it. */
export const HEARTBEAT_DEFAULT_SECONDS = 10;
/** A stream silent for so many heartbeats is given up and opened again. */
export const SILENT_HEARTBEATS = 2;
/** Refusals in a row, each after a renewal of the token that succeeded, after which signing in again is all that helps. */
export const UNAUTHENTICATED_MAX = 3;

/** A stream acknowledges at once; one that does not within this is given up. */
export const OPENING_SECONDS_MAX = 10;

export type StreamState =
  /** Waits until another window, or another stream of this one, gives its place up. */
  | { phase: "queued" }
  /** Nobody looks: it resumes when the window is seen again. */
  | { phase: "resting" }
  | { phase: "connecting" }
  | { phase: "live" }
  /** Cut off; tries again by itself. */
  | { phase: "waiting"; refusal: Refusal; failures: number }
  /** Refused for good: trying again would be refused again. */
  | { phase: "ended"; refusal: Refusal };

export interface ResumableStream<Message, Cursor> {
  /** Opens the stream after a cursor; without one, from its snapshot. */
  open(cursor: Cursor | undefined, signal: AbortSignal): AsyncIterable<Message>;
  /** The cursor to resume after once `message` has been taken. */
  advance(cursor: Cursor | undefined, message: Message): Cursor | undefined;
  /** What an acknowledgement says about heartbeats; undefined for other messages. */
  heartbeatSeconds?(message: Message): number | undefined;
  onMessage(message: Message): void;
  onState?(state: StreamState): void;
  /** Gets a fresh token after the stream was refused; rejects with why there is none. */
  renew?(refusal: Refusal): Promise<void>;
}

/**
 * Follows a stream until `signal` aborts or it is refused for good: opens it again after its last
 * cursor whenever it ends, breaks or falls silent, waiting longer each time it fails at once.
 * Returns the last cursor, to go on from there another time.
 */
export async function follow<Message, Cursor>(
  stream: ResumableStream<Message, Cursor>,
  signal: AbortSignal,
  after?: Cursor,
): Promise<Cursor | undefined> {
  let cursor = after;
  let failures = 0;
  let unauthenticated = 0;
  const tell = (state: StreamState) => {
    if (!signal.aborted) stream.onState?.(state);
  };

  while (!signal.aborted) {
    if (failures === 0) tell({ phase: "connecting" });
    const attempt = new AbortController();
    const stop = () => attempt.abort();
    signal.addEventListener("abort", stop);
    const watchdog = new Watchdog(() => attempt.abort());
    let refusal: Refusal;
    try {
      let silent = true;
      for await (const message of stream.open(cursor, attempt.signal)) {
        if (attempt.signal.aborted) break;
        watchdog.heard(stream.heartbeatSeconds?.(message));
        stream.onMessage(message);
        cursor = stream.advance(cursor, message);
        if (silent) {
          silent = false;
          failures = 0;
          unauthenticated = 0;
          tell({ phase: "live" });
        }
      }
      // Streams end when their token does, and when a server drains: that is no failure by itself.
      refusal = refusalOf(new ConnectError(watchdog.barked ? "silent for too long" : "ended", Code.Unavailable));
    } catch (error) {
      refusal = watchdog.barked
        ? refusalOf(new ConnectError("silent for too long", Code.Unavailable))
        : refusalOf(error);
    } finally {
      watchdog.stop();
      attempt.abort();
      signal.removeEventListener("abort", stop);
    }
    if (signal.aborted) break;

    if (refusal.code === Code.Unauthenticated && stream.renew && unauthenticated < UNAUTHENTICATED_MAX) {
      const notRenewed = await stream.renew(refusal).then(() => undefined, refusalOf);
      if (signal.aborted) break;
      if (!notRenewed) {
        unauthenticated += 1;
      } else {
        // That auth is away says nothing about the token: it is a wait like any other.
        refusal = notRenewed;
        if (!isWorthRepeating(refusal)) {
          tell({ phase: "ended", refusal });
          break;
        }
      }
    } else if (refusal.reason === "CURSOR_INVALID" && cursor !== undefined) {
      cursor = undefined;
    } else if (!isWorthRepeating(refusal)) {
      tell({ phase: "ended", refusal });
      break;
    }
    failures += 1;
    tell({ phase: "waiting", refusal, failures });
    await pause(Math.max(backoffMilliseconds(failures), (refusal.retryDelaySeconds ?? 0) * 1000), signal);
  }
  return cursor;
}

/** Barks when a stream does not open, or when nothing was heard for two heartbeats. */
class Watchdog {
  barked = false;
  private seconds = HEARTBEAT_DEFAULT_SECONDS;
  private timer: ReturnType<typeof setTimeout> | undefined;

  constructor(private readonly bark: () => void) {
    this.wait(OPENING_SECONDS_MAX);
  }

  heard(heartbeatSeconds: number | undefined): void {
    if (heartbeatSeconds !== undefined && heartbeatSeconds > 0) this.seconds = heartbeatSeconds;
    this.wait(this.seconds * SILENT_HEARTBEATS);
  }

  stop(): void {
    clearTimeout(this.timer);
  }

  private wait(seconds: number): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.barked = true;
      this.bark();
    }, seconds * 1000);
  }
}
