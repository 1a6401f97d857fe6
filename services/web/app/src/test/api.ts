import { ConnectError, createRouterTransport, type Code, type ConnectRouter } from "@connectrpc/connect";
import { create } from "@bufbuild/protobuf";
import { BadRequestSchema, ErrorInfoSchema } from "@gen/google/rpc/error_details_pb.js";
import { AuthService } from "@gen/tradeloom/auth/v1/auth_pb.js";
import { clientsOver, type Api } from "@/api/clients";
import { Session } from "@/api/session";
import { withToken } from "@/api/transport";

export const USER = { userId: "0198-user", email: "ada@example.com", fullName: "Ada" };

/** A refusal as the services write it. */
export function refused(
  code: Code,
  reason: string,
  metadata: Record<string, string> = {},
  violations: { field: string; description: string }[] = [],
): ConnectError {
  const details = [
    { desc: ErrorInfoSchema, value: create(ErrorInfoSchema, { reason, domain: "test.tradeloom", metadata }) },
    ...(violations.length ? [{ desc: BadRequestSchema, value: create(BadRequestSchema, { fieldViolations: violations }) }] : []),
  ];
  return new ConnectError(reason, code, undefined, details);
}

/** Services in memory behind the page's own transport stack, with someone signed in. */
export async function signedInApi(routes: (router: ConnectRouter) => void): Promise<Api> {
  const session = new Session(
    createRouterTransport(({ service }) => {
      service(AuthService, {
        login: () => ({ accessToken: "access-1", refreshToken: "refresh-1", expiresIn: 900, sessionId: "s1", user: USER }),
        refresh: () => ({ accessToken: "access-2", refreshToken: "refresh-2", expiresIn: 900, sessionId: "s1" }),
        logout: () => ({}),
      });
    }),
  );
  await session.signIn(USER.email, "a long enough password");
  const transport = createRouterTransport(routes, { transport: { interceptors: [withToken(session)] } });
  return { session, ...clientsOver(transport) };
}
