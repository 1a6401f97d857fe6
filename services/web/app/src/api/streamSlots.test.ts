import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { STREAMS_MAX, takeSlot } from "./streamSlots";

/** The Web Locks a browser has and jsdom lacks: one holder per name, in the order of asking. */
class Locks {
  private readonly queues = new Map<string, Promise<unknown>>();

  request(name: string, { signal }: { signal: AbortSignal }, held: () => unknown): Promise<unknown> {
    const before = this.queues.get(name) ?? Promise.resolve();
    const given = before.then(() => {
      if (signal.aborted) throw new DOMException("aborted", "AbortError");
      return held();
    });
    this.queues.set(name, given.catch(() => {}));
    return given;
  }
}

describe("places for streams", () => {
  beforeEach(() => void vi.stubGlobal("navigator", { locks: new Locks() }));
  afterEach(() => void vi.unstubAllGlobals());

  test("are bounded over plain HTTP, and given on in turn", async () => {
    const page = new AbortController();
    const releases = await Promise.all(Array.from({ length: STREAMS_MAX }, () => takeSlot(page.signal)));
    const taken = vi.fn();
    const waiting = takeSlot(page.signal).then(taken);
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(taken).not.toHaveBeenCalled();
    releases[2]!();
    await waiting;
    expect(taken).toHaveBeenCalledWith(expect.any(Function));
  });

  test("are not taken by who has gone", async () => {
    const page = new AbortController();
    const releases = await Promise.all(Array.from({ length: STREAMS_MAX }, () => takeSlot(page.signal)));
    const gone = new AbortController();
    const left = takeSlot(gone.signal);
    gone.abort();
    for (const release of releases) release!();
    expect(await left).toBeUndefined();
    expect(await takeSlot(page.signal)).toBeTypeOf("function");
  });
});
