/** Asks the person for a fresh second factor where a call needs one; a dialog shows it and answers. */
export class StepUp {
  private asking: { promise: Promise<boolean>; resolve(isProved: boolean): void } | undefined;
  private readonly listeners = new Set<() => void>();

  /** Whether somebody waits for an answer. */
  readonly snapshot = (): boolean => this.asking !== undefined;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  /** Whether it was proved. Calls that are refused at the same time share one question. */
  ask(): Promise<boolean> {
    if (!this.asking) {
      let resolve: (isProved: boolean) => void = () => {};
      this.asking = { promise: new Promise<boolean>((done) => (resolve = done)), resolve: (isProved) => resolve(isProved) };
      this.tell();
    }
    return this.asking.promise;
  }

  answer(isProved: boolean): void {
    this.asking?.resolve(isProved);
    this.asking = undefined;
    this.tell();
  }

  private tell(): void {
    for (const listener of this.listeners) listener();
  }
}
