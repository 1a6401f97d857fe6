import { Code, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { refusalOf } from "./refusal";
import type { Session } from "./session";
import type { StepUp } from "./stepUp";

/** A call that is not answered within this is given up; streams have their own watchdog. */
export const CALL_TIMEOUT_MILLISECONDS = 10_000;

/** Speaks gRPC-Web to the edge that served this page. */
export function openTransport(interceptors: Interceptor[] = []): Transport {
  return createGrpcWebTransport({
    baseUrl: window.location.origin,
    useBinaryFormat: true,
    defaultTimeoutMs: CALL_TIMEOUT_MILLISECONDS,
    interceptors,
  });
}

/**
 * Why a call is refused whose token is the trouble; the edge gives no reason. A wrong code or password
 * is UNAUTHENTICATED too, and must not be sent twice.
 */
const OF_THE_TOKEN = new Set(["", "TOKEN_INVALID", "TOKEN_OUTDATED", "SESSION_REVOKED"]);

/**
 * Puts the access token on every call. A call refused for its token was not carried out, so it is
 * repeated once with a new one; streams are opened again by whoever follows them.
 */
export function withToken(session: Session): Interceptor {
  return (next) => async (request) => {
    request.header.set("authorization", `Bearer ${await session.token()}`);
    const generation = session.generation;
    try {
      return await next(request);
    } catch (error) {
      const refusal = refusalOf(error);
      if (refusal.code !== Code.Unauthenticated || !OF_THE_TOKEN.has(refusal.reason) || request.stream) throw error;
      await session.recover(generation, refusal);
      if (session.snapshot().phase === "signedOut") throw error;
      request.header.set("authorization", `Bearer ${await session.token()}`);
      return next(request);
    }
  };
}

/** Repeats a call that needs a fresh second factor, once, after that was proved; each time it has its whole deadline. */
export function withStepUp(transport: Transport, stepUp: StepUp): Transport {
  return {
    async unary(method, signal, timeoutMs, header, message, contextValues) {
      const call = () => transport.unary(method, signal, timeoutMs, header, message, contextValues);
      try {
        return await call();
      } catch (error) {
        if (refusalOf(error).reason !== "STEP_UP_REQUIRED" || !(await stepUp.ask()) || signal?.aborted) throw error;
        return call();
      }
    },
    stream: (...call) => transport.stream(...call),
  };
}
