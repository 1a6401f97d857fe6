import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { createFileRegistry, fromBinary, type DescMessage, type Message } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import type { StreamTicksResponse } from "@gen/tradeloom/marketdata/v1/marketdata_pb.js";
import { expect, type Page } from "@playwright/test";

// The generated modules are made for a bundler, and Node takes them for CommonJS.
const CONTRACT = readFileSync(fileURLToPath(new URL("../../../../gen/edge/tradeloom.binpb", import.meta.url)));
const RESPONSE: DescMessage = createFileRegistry(fromBinary(FileDescriptorSetSchema, CONTRACT)).getMessage(
  "tradeloom.marketdata.v1.StreamTicksResponse",
)!;
const TRAILERS = 0x80;
const HEADER_BYTES = 5;

/** All that a page was sent of one instrument's ticks, over all its streams: whole, in order and once, or said to be otherwise. */
export class Ticks {
  private cursor = "";
  private readonly rests = new Map<number, Buffer>();
  streams = 0;
  /** Ticks seen so far. */
  count = 0;
  /** What a reader was told that it does not get: bounds, one each. */
  readonly told: string[] = [];
  /** What it was not told. Nothing may ever be here. */
  readonly wrong: string[] = [];

  /** Before the page is opened: from then on it passes on what its streams bring. */
  static async of(page: Page): Promise<Ticks> {
    const ticks = new Ticks();
    await page.exposeFunction("passOn", (stream: number, bytes: string) => ticks.take(stream, Buffer.from(bytes, "base64")));
    await page.addInitScript(() => {
      const real = window.fetch;
      let streams = 0;
      window.fetch = async (...call) => {
        const response = await real(...call);
        const address = call[0] instanceof Request ? call[0].url : String(call[0]);
        if (!address.endsWith("/StreamTicks") || !response.body) return response;
        const stream = (streams += 1);
        const seen = response.body.pipeThrough(
          new TransformStream<Uint8Array, Uint8Array>({
            async transform(bytes, onwards) {
              const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
              // Awaited, so that what has arrived stays in its order.
              await (window as unknown as { passOn(stream: number, bytes: string): Promise<void> }).passOn(stream, btoa(text));
              onwards.enqueue(bytes);
            },
          }),
        );
        return new Response(seen, { status: response.status, headers: response.headers });
      };
    });
    return ticks;
  }

  /** Waits for so many more, and that everything so far was right. */
  async more(count: number, seconds = 20): Promise<void> {
    const wanted = this.count + count;
    await expect.poll(() => this.count, { timeout: seconds * 1000 }).toBeGreaterThanOrEqual(wanted);
    expect(this.wrong).toEqual([]);
  }

  private take(stream: number, bytes: Buffer): void {
    this.streams = Math.max(this.streams, stream);
    let rest = Buffer.concat([this.rests.get(stream) ?? Buffer.alloc(0), bytes]);
    while (rest.length >= HEADER_BYTES) {
      const end = HEADER_BYTES + rest.readUInt32BE(1);
      if (rest.length < end) break;
      if (!(rest[0]! & TRAILERS)) this.read(rest.subarray(HEADER_BYTES, end));
      rest = rest.subarray(end);
    }
    this.rests.set(stream, rest);
  }

  private read(bytes: Buffer): void {
    const message = fromBinary(RESPONSE, bytes) as Message as StreamTicksResponse;
    if (message.acknowledgement && !this.cursor) this.cursor = message.acknowledgement.cursors[0] ?? "";
    if (message.gap) {
      this.told.push(`${message.gap.afterCursor} to ${message.gap.resumeCursor}`);
      if (message.gap.afterCursor !== this.cursor) this.wrong.push(`a gap after ${message.gap.afterCursor}, had ${this.cursor}`);
      this.cursor = message.gap.resumeCursor;
    }
    if (message.conflation) this.wrong.push("left out for being slow");
    for (const batch of message.batches) {
      const last = sequenceOf(this.cursor);
      if (sequenceOf(batch.previousCursor) !== last || batch.firstSequence !== last + 1n) {
        this.wrong.push(`${batch.firstSequence} after ${batch.previousCursor}, had ${this.cursor}`);
      }
      this.cursor = batch.cursor;
      this.count += batch.ticks.length;
    }
  }
}

function sequenceOf(cursor: string): bigint {
  return BigInt(cursor.slice(cursor.lastIndexOf("-") + 1));
}
