import { Code, ConnectError, createRouterTransport, type ServiceImpl } from "@connectrpc/connect";
import { AuthService } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { OrderService } from "@gen/tradeloom/orders/v1/orders_pb.js";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { clientsOver } from "./clients";
import { Session } from "./session";
import { keep, kept } from "./sessionKeeper";
import { withToken } from "./transport";
import { refused, USER } from "@/test/api";

const PASSWORD = "a long enough password";

/** An auth service that rotates tokens and knows the answers it gave. */
class Auth {
  spent = new Map<string, { requestId: string; answer: object }>();
  newest = 0;
  refreshes = 0;
  failNextAs: Code | undefined;
  readonly impl: Partial<ServiceImpl<typeof AuthService>> = {
    login: () => ({ ...this.pair(), user: USER }),
    refresh: ({ refreshToken, requestId }) => {
      this.refreshes += 1;
      const before = this.spent.get(refreshToken);
      if (before && before.requestId !== requestId) throw refused(Code.Unauthenticated, "REFRESH_TOKEN_REUSED");
      const answer = before?.answer ?? this.pair();
      this.spent.set(refreshToken, { requestId, answer });
      if (this.failNextAs) {
        const code = this.failNextAs;
        this.failNextAs = undefined;
        throw new ConnectError("cut", code);
      }
      return answer;
    },
    getMe: () => ({ user: USER }),
    logout: () => ({}),
  };

  pair() {
    this.newest += 1;
    return { accessToken: `access-${this.newest}`, refreshToken: `refresh-${this.newest}`, expiresIn: 900, sessionId: "s1" };
  }

  session() {
    return new Session(createRouterTransport(({ service }) => void service(AuthService, this.impl)));
  }
}

describe("a session", () => {
  beforeEach(() => {
    sessionStorage.clear();
    vi.useFakeTimers();
  });
  afterEach(() => void vi.useRealTimers());

  test("keeps the access token in memory only", async () => {
    const session = new Auth().session();
    await session.signIn(USER.email, PASSWORD);
    expect(await session.token()).toBe("access-1");
    const stored = JSON.stringify({ ...sessionStorage, ...localStorage }) + document.cookie;
    expect(stored).not.toContain("access-1");
    expect(stored).not.toContain(PASSWORD);
  });

  test("renews its token before it expires", async () => {
    const session = new Auth().session();
    await session.signIn(USER.email, PASSWORD);
    await vi.advanceTimersByTimeAsync(839_000);
    expect(await session.token()).toBe("access-1");
    await vi.advanceTimersByTimeAsync(2_000);
    expect(await session.token()).toBe("access-2");
  });

  test("renews once for many calls at a time", async () => {
    const auth = new Auth();
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    vi.setSystemTime(Date.now() + 3_600_000); // The machine slept; no timer ran.
    const tokens = await Promise.all([session.token(), session.token(), session.token()]);
    expect(new Set(tokens)).toEqual(new Set(["access-2"]));
    expect(auth.refreshes).toBe(1);
  });

  test("is taken up again after a reload", async () => {
    const auth = new Auth();
    await auth.session().signIn(USER.email, PASSWORD);
    const reloaded = auth.session();
    await reloaded.restore();
    expect(reloaded.snapshot()).toMatchObject({ phase: "signedIn", user: { email: USER.email } });
    expect(await reloaded.token()).toBe("access-2");
  });

  test("survives that the answer to a refresh is lost to a reload", async () => {
    const auth = new Auth();
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    auth.failNextAs = Code.Unavailable;
    await expect(session.renew(session.generation)).rejects.toThrow();
    const reloaded = auth.session();
    await reloaded.restore();
    expect(reloaded.snapshot().phase).toBe("signedIn");
    expect(kept()?.refreshToken).toBe("refresh-2");
  });

  test.each([Code.Unavailable, Code.Internal])("stays while the platform cannot be reached, or fails: %i", async (code) => {
    const auth = new Auth();
    const before = auth.session();
    await before.signIn(USER.email, PASSWORD);
    auth.failNextAs = code;
    const session = auth.session();
    const restored = session.restore();
    await vi.advanceTimersByTimeAsync(0);
    expect(session.snapshot()).toMatchObject({ phase: "restoring", refusal: { code } });
    await vi.advanceTimersByTimeAsync(1_000);
    await restored;
    expect(session.snapshot().phase).toBe("signedIn");
  });

  test("ends, and says why, when its refresh token is refused", async () => {
    const auth = new Auth();
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    auth.spent.set("refresh-1", { requestId: "another", answer: {} });
    await expect(session.renew(session.generation)).rejects.toThrow();
    expect(session.snapshot()).toMatchObject({ phase: "signedOut", because: expect.stringContaining("two places") });
    expect(kept()).toBeUndefined();
  });

  test("forgets everything at sign-out, even when the platform does not answer", async () => {
    const auth = new Auth();
    auth.impl.logout = () => {
      throw new ConnectError("away", Code.Unavailable);
    };
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    await session.signOut();
    expect(session.snapshot()).toEqual({ phase: "signedOut" });
    expect(kept()).toBeUndefined();
    await expect(session.token()).rejects.toThrow();
  });

  test("is not used by a copy of its tab", async () => {
    const auth = new Auth();
    keep("refresh-1", "s1");
    vi.stubGlobal("navigator", {
      locks: { request: () => Promise.reject(new DOMException("waited", "TimeoutError")) },
    });
    const copy = auth.session();
    await copy.restore();
    expect(copy.snapshot()).toMatchObject({ phase: "signedOut", because: expect.stringContaining("another tab") });
    expect(auth.refreshes).toBe(0);
    vi.unstubAllGlobals();
  });

  test("repeats a call refused for its token once, with a new one and the same request", async () => {
    const auth = new Auth();
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    const seen: [string | null, string][] = [];
    const { orders } = clientsOver(
      createRouterTransport(
        ({ service }) =>
          void service(OrderService, {
            placeOrder: ({ requestId }, { requestHeader }) => {
              seen.push([requestHeader.get("authorization"), requestId]);
              if (requestHeader.get("authorization") === "Bearer access-1") throw refused(Code.Unauthenticated, "TOKEN_INVALID");
              return {};
            },
          }),
        { transport: { interceptors: [withToken(session)] } },
      ),
    );
    await orders.placeOrder({ requestId: "r1" });
    expect(seen).toEqual([
      ["Bearer access-1", "r1"],
      ["Bearer access-2", "r1"],
    ]);
  });

  test("asks for a second step where there is a second factor, and is nobody's until it is done", async () => {
    const auth = new Auth();
    auth.impl.login = () => ({ challenge: "challenge-1" });
    auth.impl.verifyTotp = ({ challenge, code }) => {
      if (challenge !== "challenge-1" || code !== "123456") throw refused(Code.Unauthenticated, "CODE_INVALID");
      return { ...auth.pair(), user: USER, recoveryCodesLeft: 9 };
    };
    const session = auth.session();
    await session.restore();
    expect(await session.signIn(USER.email, PASSWORD)).toBe("challenge-1");
    expect(session.snapshot()).toEqual({ phase: "signedOut" });
    expect(kept()).toBeUndefined();
    await expect(session.answerChallenge("challenge-1", { code: "000000" })).rejects.toThrow();
    expect(await session.answerChallenge("challenge-1", { code: "123456" })).toBe(9);
    expect(session.snapshot()).toMatchObject({ phase: "signedIn", user: { email: USER.email } });
  });

  test("takes the token of a proved second factor, and no refresh that was under way puts an older one in its place", async () => {
    const auth = new Auth();
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    const renewing = session.renew(session.generation);
    await session.proving(Promise.resolve({ accessToken: "fresh", expiresIn: 900 }));
    await renewing;
    expect(await session.token()).toBe("fresh");
    expect(kept()?.refreshToken).toBe("refresh-2");
  });

  test("takes no token that was meant for a session before", async () => {
    const session = new Auth().session();
    await session.signIn(USER.email, PASSWORD);
    let answer: (access: { accessToken: string; expiresIn: number }) => void = () => {};
    const proving = session.proving(new Promise<{ accessToken: string; expiresIn: number }>((resolve) => (answer = resolve)));
    await session.signOut();
    await session.signIn("bob@example.com", PASSWORD);
    answer({ accessToken: "of-ada", expiresIn: 900 });
    await proving;
    expect(await session.token()).toBe("access-2");
  });

  test("learns that the address was verified, and gets a token that says so", async () => {
    const auth = new Auth();
    auth.impl.login = () => ({ ...auth.pair(), user: { ...USER, emailVerified: false } });
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    await session.reload();
    expect(session.snapshot()).toMatchObject({ user: { emailVerified: true } });
    expect(await session.token()).toBe("access-2");
  });

  /** Calls that change something, each refused as `refuse` has it, and the tokens they came with. */
  function refusing(session: Session, refuse: (token: string) => ConnectError | undefined) {
    const tokens: string[] = [];
    const { orders } = clientsOver(
      createRouterTransport(
        ({ service }) =>
          void service(OrderService, {
            placeOrder: (_, { requestHeader }) => {
              const token = requestHeader.get("authorization")!.replace("Bearer ", "");
              tokens.push(token);
              const refusal = refuse(token);
              if (refusal) throw refusal;
              return {};
            },
          }),
        { transport: { interceptors: [withToken(session)] } },
      ),
    );
    return { tokens, call: () => orders.placeOrder({ requestId: "r1" }) };
  }

  test("refreshes a token whose rights have changed, and looks what they are now", async () => {
    const auth = new Auth();
    auth.impl.getMe = () => ({ user: { ...USER, roles: ["user", "admin"] } });
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    const { tokens, call } = refusing(session, (token) =>
      token === "access-1" ? refused(Code.Unauthenticated, "TOKEN_OUTDATED") : undefined,
    );
    await call();
    expect(tokens).toEqual(["access-1", "access-2"]);
    await vi.waitFor(() => expect(session.snapshot()).toMatchObject({ user: { roles: ["user", "admin"] } }));
  });

  test("sends a call once whose code or password is wrong: that is no matter of the token", async () => {
    const auth = new Auth();
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    for (const reason of ["CODE_INVALID", "CREDENTIALS_INVALID", "CHALLENGE_INVALID"]) {
      const { tokens, call } = refusing(session, () => refused(Code.Unauthenticated, reason));
      await expect(call()).rejects.toThrow();
      expect(tokens).toHaveLength(1);
    }
    expect(auth.refreshes).toBe(0);
  });

  test("ends, and says why, when it was ended elsewhere", async () => {
    const auth = new Auth();
    const session = auth.session();
    await session.signIn(USER.email, PASSWORD);
    const { tokens, call } = refusing(session, () => refused(Code.Unauthenticated, "SESSION_REVOKED"));
    await expect(call()).rejects.toThrow();
    expect(session.snapshot()).toMatchObject({ phase: "signedOut", because: expect.stringContaining("was ended") });
    expect(tokens).toHaveLength(1);
    expect(auth.refreshes).toBe(0);
  });
});
