import { Code, ConnectError, createClient, type Client, type Transport } from "@connectrpc/connect";
import { AuthService, type User } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { backoffMilliseconds, pause } from "./backoff";
import { isTransient, refusalOf, type Refusal } from "./refusal";
import { newRequestId } from "./requestId";
import { claim, forget, keep, kept, type Kept } from "./sessionKeeper";

/** A token is renewed so long before it expires, or in the last quarter of a shorter life. */
export const RENEW_BEFORE_SECONDS = 60;

export type SessionState =
  /** Looking whether an earlier page of this tab left a session. */
  | { phase: "restoring"; refusal?: Refusal }
  | { phase: "signedOut"; because?: string }
  | { phase: "signedIn"; user: User };

interface Access {
  token: string;
  /** By this machine's clock. */
  renewTimeMilliseconds: number;
  /** Counts renewals, so that many calls refused with one token renew it once. */
  generation: number;
}

/**
 * Who is signed in, and a valid access token for whoever calls. The access token lives in this
 * object only; nothing here is ever logged.
 */
export class Session {
  private state: SessionState = { phase: "restoring" };
  private readonly listeners = new Set<() => void>();
  private readonly auth: Client<typeof AuthService>;
  private access: Access | undefined;
  private renewals = 0;
  private renewing: Promise<void> | undefined;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private ending = new AbortController();

  /** `transport` must not ask this session for tokens. */
  constructor(transport: Transport) {
    this.auth = createClient(AuthService, transport);
  }

  readonly snapshot = (): SessionState => this.state;

  readonly subscribe = (listener: () => void): (() => void) => {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  };

  get generation(): number {
    return this.access?.generation ?? 0;
  }

  /** Takes up the session an earlier page of this tab left, if it left one. */
  async restore(): Promise<void> {
    const found = kept();
    if (!found) return this.become({ phase: "signedOut" });
    if (!(await claim(found.sessionId, this.ending.signal))) {
      forget();
      return this.become({ phase: "signedOut", because: "This session is open in another tab." });
    }
    for (let failures = 1; ; failures += 1) {
      try {
        await this.renew(this.generation);
        const { user } = await this.auth.getMe({}, { headers: this.headers() });
        if (user) this.become({ phase: "signedIn", user });
        return;
      } catch (error) {
        if (this.state.phase !== "restoring") return;
        const refusal = refusalOf(error);
        if (!isTransient(refusal) && refusal.code !== Code.Unknown) return this.end(refusal.message);
        this.become({ phase: "restoring", refusal });
        await pause(backoffMilliseconds(failures), this.ending.signal);
      }
    }
  }

  async register(email: string, password: string, fullName: string, requestId: string): Promise<void> {
    await this.auth.register({ requestId, email, password, fullName });
    await this.signIn(email, password);
  }

  async signIn(email: string, password: string): Promise<void> {
    // Without a request_id: a repeat would name the session but not show its tokens again.
    const answer = await this.auth.login({ email, password });
    if (!answer.user) throw new Error("the answer names no user");
    this.ending.abort();
    this.ending = new AbortController();
    this.take(answer);
    void claim(answer.sessionId, this.ending.signal);
    this.become({ phase: "signedIn", user: answer.user });
  }

  /** Ends the session everywhere; here also when the platform cannot be reached. */
  async signOut(): Promise<void> {
    try {
      await this.auth.logout({ requestId: newRequestId() }, { headers: this.headers() });
    } catch {
      // Its tokens run out by themselves; this page forgets them now.
    } finally {
      this.end();
    }
  }

  /** A token that is valid for a while; renews it first if need be. */
  async token(): Promise<string> {
    if (!this.access || Date.now() >= this.access.renewTimeMilliseconds) await this.renew(this.generation);
    if (!this.access) throw new ConnectError("signed out", Code.Unauthenticated);
    return this.access.token;
  }

  /** Renews the token of that generation; a newer one is left as it is. */
  async renew(generation: number): Promise<void> {
    if (generation !== this.generation) return;
    this.renewing ??= this.exchange().finally(() => {
      this.renewing = undefined;
    });
    return this.renewing;
  }

  /** Forgets the session and says why. */
  end(because?: string): void {
    clearTimeout(this.timer);
    this.ending.abort();
    this.ending = new AbortController();
    this.access = undefined;
    forget();
    this.become(because === undefined ? { phase: "signedOut" } : { phase: "signedOut", because });
  }

  private async exchange(): Promise<void> {
    const token: Kept | undefined = kept();
    if (!token) {
      this.end("Your session has ended. Sign in again.");
      throw new ConnectError("signed out", Code.Unauthenticated);
    }
    const ending = this.ending;
    try {
      const answer = await this.auth.refresh({ refreshToken: token.refreshToken, requestId: token.requestId });
      // Someone who signed out meanwhile stays signed out.
      if (!ending.signal.aborted) this.take(answer);
    } catch (error) {
      const refusal = refusalOf(error);
      if (refusal.code === Code.Unauthenticated && !ending.signal.aborted) this.end(refusal.message);
      throw error;
    }
  }

  private take(answer: { accessToken: string; refreshToken: string; sessionId: string; expiresIn: number }): void {
    keep(answer.refreshToken, answer.sessionId);
    const usableSeconds = answer.expiresIn - Math.min(RENEW_BEFORE_SECONDS, answer.expiresIn / 4);
    this.access = {
      token: answer.accessToken,
      renewTimeMilliseconds: Date.now() + usableSeconds * 1000,
      generation: ++this.renewals,
    };
    this.renewAfter(usableSeconds * 1000, 0);
  }

  private renewAfter(milliseconds: number, failures: number): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.renew(this.generation).catch(() => {
        if (this.access) this.renewAfter(backoffMilliseconds(failures + 1), failures + 1);
      });
    }, milliseconds);
  }

  private headers(): Record<string, string> {
    return this.access ? { authorization: `Bearer ${this.access.token}` } : {};
  }

  private become(state: SessionState): void {
    this.state = state;
    for (const listener of this.listeners) listener();
  }
}
