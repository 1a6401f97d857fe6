import { Code, ConnectError, createClient, type Client, type Transport } from "@connectrpc/connect";
import { AuthService, type User } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { backoffMilliseconds, pause } from "./backoff";
import { isWorthRepeating, refusalOf, type Refusal } from "./refusal";
import { newRequestId } from "./requestId";
import { claim, forget, keep, kept, type Kept } from "./sessionKeeper";

/** A token is renewed so long before it expires, or in the last quarter of a shorter life. */
export const RENEW_BEFORE_SECONDS = 60;

export type SessionState =
  /** Looking whether an earlier page of this tab left a session. */
  | { phase: "restoring"; refusal?: Refusal }
  | { phase: "signedOut"; because?: string }
  | { phase: "signedIn"; user: User };

/** A token as auth hands it out: alone, or with the refresh token of its session. */
interface AccessAnswer {
  accessToken: string;
  expiresIn: number;
}

/** What proves the second factor: the authenticator app's digits, or a code kept for when it is lost. */
export type Proof = { code: string } | { recoveryCode: string };

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
  /** Auth without a token: what everybody may call. */
  readonly auth: Client<typeof AuthService>;
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
        if (!isWorthRepeating(refusal)) return this.end(refusal.message);
        this.become({ phase: "restoring", refusal });
        await pause(backoffMilliseconds(failures), this.ending.signal);
      }
    }
  }

  async register(email: string, password: string, fullName: string, requestId: string): Promise<void> {
    await this.auth.register({ requestId, email, password, fullName });
    await this.signIn(email, password);
  }

  /** Signs in, or returns the challenge for answerChallenge where a second factor is asked for. */
  async signIn(email: string, password: string): Promise<string | undefined> {
    // Without a request_id: a repeat would name the session but not show its tokens again.
    const answer = await this.auth.login({ email, password });
    if (answer.challenge) return answer.challenge;
    this.enter(answer);
    return undefined;
  }

  /** Finishes signing in; how many recovery codes are left. */
  async answerChallenge(challenge: string, proof: Proof): Promise<number> {
    const answer = await this.auth.verifyTotp({ challenge, ...proof });
    this.enter(answer);
    return answer.recoveryCodesLeft;
  }

  /** Takes the access token of a call that proves the second factor in place of the present one, unless the session ends before. */
  async proving<Answer extends AccessAnswer>(call: Promise<Answer>): Promise<Answer> {
    const { ending } = this;
    const answer = await call;
    if (!ending.signal.aborted) this.takeAccess(answer);
    return answer;
  }

  /** Looks who the caller is by now: an address was verified, a second factor enabled, a role given. */
  async reload(): Promise<void> {
    const ending = this.ending;
    await this.token();
    const { user } = await this.auth.getMe({}, { headers: this.headers() });
    if (!user || ending.signal.aborted || this.state.phase !== "signedIn") return;
    const before = this.state.user;
    this.become({ phase: "signedIn", user });
    // Only the next token says so too.
    if (user.emailVerified && !before.emailVerified) await this.renew(this.generation);
  }

  /** After a call with the token of that generation was refused for it: gets another, or ends what has ended. */
  async recover(generation: number, refusal: Refusal): Promise<void> {
    if (generation !== this.generation) return;
    if (refusal.reason === "SESSION_REVOKED") return this.end(refusal.message);
    await this.renew(generation);
    if (refusal.reason === "TOKEN_OUTDATED") void this.reload().catch(() => {});
  }

  private enter(answer: AccessAnswer & { refreshToken: string; sessionId: string; user?: User | undefined }): void {
    if (!answer.user) throw new Error("the answer names no user");
    this.ending.abort();
    this.ending = new AbortController();
    keep(answer.refreshToken, answer.sessionId);
    this.takeAccess(answer);
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
    if (this.state.phase === "signedOut") throw new ConnectError("signed out", Code.Unauthenticated);
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
    const { ending, renewals } = this;
    try {
      const answer = await this.auth.refresh({ refreshToken: token.refreshToken, requestId: token.requestId });
      // Someone who signed out meanwhile stays signed out.
      if (ending.signal.aborted) return;
      keep(answer.refreshToken, answer.sessionId);
      // A token that proves the second factor may have come meanwhile: this one need not.
      if (renewals === this.renewals) this.takeAccess(answer);
    } catch (error) {
      const refusal = refusalOf(error);
      if (refusal.code === Code.Unauthenticated && !ending.signal.aborted) this.end(refusal.message);
      throw error;
    }
  }

  private takeAccess({ accessToken, expiresIn }: AccessAnswer): void {
    const usableSeconds = expiresIn - Math.min(RENEW_BEFORE_SECONDS, expiresIn / 4);
    this.access = {
      token: accessToken,
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
