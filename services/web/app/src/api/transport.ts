import { Code, type Interceptor, type Transport } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { refusalOf } from "./refusal";
import type { Session } from "./session";

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
      if (refusal.reason === "SESSION_REVOKED") session.end(refusal.message);
      if (refusal.code !== Code.Unauthenticated || request.stream) throw error;
      await session.renew(generation);
      request.header.set("authorization", `Bearer ${await session.token()}`);
      return next(request);
    }
  };
}
