import { Code, type ConnectError } from "@connectrpc/connect";
import { act, render, screen } from "@testing-library/react";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { ApiProvider, type Api } from "./clients";
import { UNSEEN_SECONDS_MAX, useResumingStream } from "./useResumingStream";
import { refused, signedInApi } from "@/test/api";

const opened: (string | undefined)[] = [];
const open = new Set<AbortSignal>();
let firstRefusal: ConnectError | undefined;

function Shown({ name }: { name: string | null }) {
  const state = useResumingStream<string, string>(name, () => ({
    async *open(cursor, signal) {
      opened.push(cursor);
      if (opened.length === 1 && firstRefusal) throw firstRefusal;
      open.add(signal);
      signal.addEventListener("abort", () => open.delete(signal));
      for (let beat = 0; !signal.aborted; beat += 1) {
        yield `${name}-${beat}`;
        await new Promise((resolve) => {
          setTimeout(resolve, 1_000);
          signal.addEventListener("abort", resolve);
        });
      }
    },
    advance: (_, message) => message,
    onMessage: () => {},
  }));
  return <p>{state.phase}</p>;
}

function see(isSeen: boolean) {
  Object.defineProperty(document, "hidden", { value: !isSeen, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}

describe("a followed stream", () => {
  let api: Api;
  beforeEach(async () => {
    vi.useFakeTimers();
    opened.length = 0;
    open.clear();
    firstRefusal = undefined;
    api = await signedInApi(() => {});
  });
  afterEach(() => {
    see(true);
    vi.useRealTimers();
  });

  const show = (name: string | null) => (
    <ApiProvider api={api}>
      <Shown name={name} />
    </ApiProvider>
  );
  const pass = (seconds: number) => act(() => vi.advanceTimersByTimeAsync(seconds * 1000));

  test("is closed when its component goes, and another opened for another key", async () => {
    const { rerender, unmount } = render(show("btc"));
    await pass(1);
    expect(screen.getByText("live")).toBeTruthy();
    rerender(show("eth"));
    await pass(1);
    expect(opened).toEqual([undefined, undefined]);
    expect(open.size).toBe(1);
    unmount();
    await pass(1);
    expect(open.size).toBe(0);
  });

  test("rests while nobody looks, and goes on after its cursor", async () => {
    render(show("btc"));
    await pass(2.5);
    act(() => see(false));
    await pass(UNSEEN_SECONDS_MAX + 1);
    expect(screen.getByText("resting")).toBeTruthy();
    expect(open.size).toBe(0);
    act(() => see(true));
    await pass(1);
    expect(screen.getByText("live")).toBeTruthy();
    expect(opened).toHaveLength(2);
    expect(opened[1]).toMatch(/^btc-2\d$/);
  });

  test("is not disturbed by a short look elsewhere", async () => {
    render(show("btc"));
    await pass(1);
    act(() => see(false));
    await pass(UNSEEN_SECONDS_MAX / 2);
    act(() => see(true));
    await pass(UNSEEN_SECONDS_MAX);
    expect(opened).toHaveLength(1);
  });

  test("goes on with a new token when what the old one allows has changed", async () => {
    firstRefusal = refused(Code.Unauthenticated, "TOKEN_OUTDATED");
    expect(await api.session.token()).toBe("access-1");
    render(show("btc"));
    await pass(1);
    expect(screen.getByText("live")).toBeTruthy();
    expect(opened).toHaveLength(2);
    expect(await api.session.token()).toBe("access-2");
  });

  test("ends with its session, which says why", async () => {
    firstRefusal = refused(Code.Unauthenticated, "SESSION_REVOKED");
    render(show("btc"));
    await pass(1);
    expect(api.session.snapshot()).toMatchObject({ phase: "signedOut", because: expect.stringContaining("was ended") });
  });
});
