import { Code, ConnectError } from "@connectrpc/connect";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { BACKOFF_MAX_MILLISECONDS, backoffMilliseconds } from "./backoff";
import { follow, HEARTBEAT_DEFAULT_SECONDS, OPENING_SECONDS_MAX, SILENT_HEARTBEATS, UNAUTHENTICATED_MAX, type StreamState } from "./resuming";
import { refused } from "@/test/api";

interface Message {
  cursor: string;
  heartbeat?: number;
}

/** One connection: what it sends, then how it ends. */
type Script = (signal: AbortSignal) => AsyncIterable<Message>;

function sends(...cursors: string[]): Script {
  return async function* () {
    for (const cursor of cursors) yield { cursor };
  };
}

function sendsThen(end: "breaks" | "silence" | ConnectError, ...messages: Message[]): Script {
  return async function* (signal) {
    yield* messages;
    if (end === "silence") {
      await new Promise((_, reject) => signal.addEventListener("abort", () => reject(new ConnectError("cut", Code.Canceled))));
    }
    throw end === "breaks" ? new ConnectError("broken", Code.Unavailable) : end;
  };
}

/** Follows the scripts in turn; after the last one the stream stays quiet. */
function play(scripts: Script[], renew?: () => Promise<void>) {
  const opened: (string | undefined)[] = [];
  const taken: string[] = [];
  const states: StreamState[] = [];
  const ending = new AbortController();
  const finished = follow<Message, string>(
    {
      open: (cursor, signal) => {
        opened.push(cursor);
        return (scripts.shift() ?? sendsThen("silence"))(signal);
      },
      advance: (_, message) => message.cursor,
      heartbeatSeconds: (message) => message.heartbeat,
      onMessage: (message) => taken.push(message.cursor),
      onState: (state) => states.push(state),
      ...(renew && { renew }),
    },
    ending.signal,
  );
  return { opened, taken, states, ending, finished };
}

describe("a resuming stream", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  test("opens again after its last cursor when it breaks", async () => {
    const run = play([sendsThen("breaks", { cursor: "1" }, { cursor: "2" }), sends("3")]);
    await vi.advanceTimersByTimeAsync(BACKOFF_MAX_MILLISECONDS);
    expect(run.opened.slice(0, 2)).toEqual([undefined, "2"]);
    expect(run.taken).toEqual(["1", "2", "3"]);
    run.ending.abort();
  });

  test("opens again when it ends without an error, as at a token's end", async () => {
    const run = play([sends("1"), sends("2")]);
    await vi.advanceTimersByTimeAsync(BACKOFF_MAX_MILLISECONDS);
    expect(run.taken).toEqual(["1", "2"]);
    run.ending.abort();
  });

  test("is given up after two silent heartbeats and resumed", async () => {
    const run = play([sendsThen("silence", { cursor: "1", heartbeat: 2 }), sends("2")]);
    await vi.advanceTimersByTimeAsync(2 * SILENT_HEARTBEATS * 1000 - 1);
    expect(run.opened).toHaveLength(1);
    await vi.advanceTimersByTimeAsync(1 + BACKOFF_MAX_MILLISECONDS);
    expect(run.opened[1]).toBe("1");
    expect(run.taken).toEqual(["1", "2"]);
    run.ending.abort();
  });

  test("is given up when it does not open", async () => {
    const run = play([sendsThen("silence"), sends("1")]);
    await vi.advanceTimersByTimeAsync(OPENING_SECONDS_MAX * 1000 + BACKOFF_MAX_MILLISECONDS);
    expect(run.taken).toEqual(["1"]);
    run.ending.abort();
  });

  test("goes on another time from where it was left", async () => {
    const run = play([sendsThen("silence", { cursor: "7" })]);
    await vi.advanceTimersByTimeAsync(10);
    run.ending.abort();
    expect(await run.finished).toBe("7");
  });

  test("is not given up while heartbeats come", async () => {
    const run = play([
      async function* () {
        for (let beat = 0; beat < 50; beat += 1) {
          yield { cursor: "1" };
          await new Promise((resolve) => setTimeout(resolve, HEARTBEAT_DEFAULT_SECONDS * 1000));
        }
      },
    ]);
    await vi.advanceTimersByTimeAsync(49 * HEARTBEAT_DEFAULT_SECONDS * 1000);
    expect(run.opened).toHaveLength(1);
    run.ending.abort();
  });

  test("waits longer after each failure, up to a bound, and anew after a success", async () => {
    expect(backoffMilliseconds(1, () => 1)).toBe(250);
    expect(backoffMilliseconds(3, () => 1)).toBe(1000);
    expect(backoffMilliseconds(3, () => 0)).toBe(500);
    expect(backoffMilliseconds(99, () => 1)).toBe(BACKOFF_MAX_MILLISECONDS);
    const run = play([sendsThen("breaks"), sendsThen("breaks"), sendsThen("breaks", { cursor: "1" })]);
    await vi.advanceTimersByTimeAsync(5_000);
    const failures = run.states.flatMap((state) => (state.phase === "waiting" ? [state.failures] : []));
    expect(failures).toEqual([1, 2, 1]);
    run.ending.abort();
  });

  test("ends for good when it is refused for good", async () => {
    const run = play([sendsThen(refused(Code.NotFound, "ACCOUNT_NOT_FOUND"))]);
    await run.finished;
    expect(run.states.at(-1)).toMatchObject({ phase: "ended", refusal: { reason: "ACCOUNT_NOT_FOUND" } });
    expect(run.opened).toHaveLength(1);
  });

  test("gets a new token when the old one is refused, and gives up after three", async () => {
    const expired = () => sendsThen(refused(Code.Unauthenticated, "TOKEN_INVALID"));
    const renew = vi.fn(() => Promise.resolve());
    const run = play([expired(), sendsThen("breaks", { cursor: "1" }), expired(), expired(), expired(), expired()], renew);
    await vi.advanceTimersByTimeAsync(60_000);
    await run.finished;
    expect(run.taken).toEqual(["1"]);
    expect(renew).toHaveBeenCalledTimes(4);
    expect(run.states.at(-1)?.phase).toBe("ended");
  });

  test("waits for as long as auth is away, however often it is refused meanwhile", async () => {
    const expired = () => sendsThen(refused(Code.Unauthenticated, "TOKEN_INVALID"));
    const away = 3 + UNAUTHENTICATED_MAX;
    let renewals = 0;
    const renew = () => {
      renewals += 1;
      return renewals <= away ? Promise.reject(new ConnectError("connection refused", Code.Unavailable)) : Promise.resolve();
    };
    const run = play([...Array.from({ length: away + 1 }, expired), sends("1")], renew);
    await vi.advanceTimersByTimeAsync((away + 2) * BACKOFF_MAX_MILLISECONDS);
    expect(run.taken).toEqual(["1"]);
    expect(run.states.some(({ phase }) => phase === "ended")).toBe(false);
    expect(run.states).toContainEqual(expect.objectContaining({ phase: "waiting", refusal: expect.objectContaining({ code: Code.Unavailable }) }));
    run.ending.abort();
  });

  test("ends with what refused the renewal for good", async () => {
    const renew = () => Promise.reject(refused(Code.Unauthenticated, "REFRESH_TOKEN_INVALID"));
    const run = play([sendsThen(refused(Code.Unauthenticated, "TOKEN_INVALID"))], renew);
    await run.finished;
    expect(run.states.at(-1)).toMatchObject({ phase: "ended", refusal: { reason: "REFRESH_TOKEN_INVALID" } });
    expect(run.opened).toHaveLength(1);
  });

  test("starts over from the snapshot when its cursor is no longer known", async () => {
    const run = play([
      sendsThen("breaks", { cursor: "1" }),
      sendsThen(refused(Code.InvalidArgument, "CURSOR_INVALID")),
      sends("9"),
    ]);
    await vi.advanceTimersByTimeAsync(BACKOFF_MAX_MILLISECONDS);
    expect(run.opened.slice(0, 3)).toEqual([undefined, "1", undefined]);
    run.ending.abort();
  });

  test("says nothing more once its follower has gone", async () => {
    const run = play([sendsThen("silence", { cursor: "1" })]);
    await vi.advanceTimersByTimeAsync(10);
    run.ending.abort();
    await run.finished;
    expect(run.states.map((state) => state.phase)).toEqual(["connecting", "live"]);
  });
});
