import { ConnectError, createRouterTransport, type Code, type ConnectRouter, type ServiceImpl } from "@connectrpc/connect";
import { create } from "@bufbuild/protobuf";
import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "@gen/google/rpc/error_details_pb.js";
import { AuthService } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { clientsOver, type Api } from "@/api/clients";
import { Session } from "@/api/session";
import { StepUp } from "@/api/stepUp";
import { withStepUp, withToken } from "@/api/transport";

export const USER = { userId: "0198-user", email: "ada@example.com", fullName: "Ada", emailVerified: true };

/** A refusal as the services write it. */
export function refused(
  code: Code,
  reason: string,
  metadata: Record<string, string> = {},
  violations: { field: string; description: string }[] = [],
  retryDelaySeconds?: number,
): ConnectError {
  const details = [
    ...(retryDelaySeconds === undefined
      ? []
      : [{ desc: RetryInfoSchema, value: create(RetryInfoSchema, { retryDelay: { seconds: BigInt(retryDelaySeconds) } }) }]),
    { desc: ErrorInfoSchema, value: create(ErrorInfoSchema, { reason, domain: "test.tradeloom", metadata }) },
    ...(violations.length ? [{ desc: BadRequestSchema, value: create(BadRequestSchema, { fieldViolations: violations }) }] : []),
  ];
  return new ConnectError(reason, code, undefined, details);
}

/** The page's own transport stack before services in memory, with nobody signed in; `auth` answers calls without a token. */
export function apiOver(routes: (router: ConnectRouter) => void, auth: Partial<ServiceImpl<typeof AuthService>> = {}): Api {
  const session = new Session(
    createRouterTransport(({ service }) => {
      service(AuthService, {
        login: () => ({ accessToken: "access-1", refreshToken: "refresh-1", expiresIn: 900, sessionId: "s1", user: USER }),
        refresh: () => ({ accessToken: "access-2", refreshToken: "refresh-2", expiresIn: 900, sessionId: "s1" }),
        logout: () => ({}),
        ...auth,
      });
    }),
  );
  const stepUp = new StepUp();
  const transport = createRouterTransport(routes, { transport: { interceptors: [withToken(session)] } });
  return { session, stepUp, ...clientsOver(withStepUp(transport, stepUp)) };
}

/** The same, with someone signed in. */
export async function signedInApi(
  routes: (router: ConnectRouter) => void,
  auth: Partial<ServiceImpl<typeof AuthService>> = {},
): Promise<Api> {
  const api = apiOver(routes, auth);
  await api.session.signIn(USER.email, "a long enough password");
  return api;
}
