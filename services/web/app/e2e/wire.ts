import { connect, createServer, type Server, type Socket } from "node:net";

/** A wire between the browser and the edge that a test can cut, or leave hanging without a word. */
export class Wire {
  private state: "whole" | "cut" | "hanging" = "whole";
  private readonly pairs = new Set<[Socket, Socket]>();
  private readonly server: Server;

  private constructor(edge: URL) {
    this.server = createServer((browser) => {
      if (this.state === "cut") return browser.destroy();
      const far = connect(Number(edge.port), edge.hostname);
      const pair: [Socket, Socket] = [browser, far];
      this.pairs.add(pair);
      for (const socket of pair) {
        socket.on("error", () => {});
        socket.on("close", () => {
          this.pairs.delete(pair);
          browser.destroy();
          far.destroy();
        });
      }
      browser.on("data", (data) => void (this.state === "whole" && far.write(data)));
      far.on("data", (data) => void (this.state === "whole" && browser.write(data)));
    });
  }

  static async to(edgeUrl: string): Promise<Wire> {
    const wire = new Wire(new URL(edgeUrl));
    await new Promise<void>((resolve) => wire.server.listen(0, "127.0.0.1", resolve));
    return wire;
  }

  get url(): string {
    const address = this.server.address();
    if (address === null || typeof address === "string") throw new Error("not listening");
    return `http://127.0.0.1:${address.port}`;
  }

  /** Every connection breaks and new ones are refused. */
  cut(): void {
    this.state = "cut";
    this.drop();
  }

  /** Connections stay open and nothing passes: only a watchdog notices. */
  hang(): void {
    this.state = "hanging";
  }

  mend(): void {
    this.state = "whole";
  }

  close(): void {
    this.drop();
    this.server.close();
  }

  private drop(): void {
    for (const [browser] of [...this.pairs]) browser.destroy();
  }
}
