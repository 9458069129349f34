/** Handle one request: check key, method and settings, read the request, call Dataverse, answer, write the log line. */

import { rejected, success } from "./answer.ts";
import type { Config } from "./config.ts";
import { Dataverse } from "./dataverse.ts";
import { isAuthorized } from "./key.ts";
import { logProblems, originOf, RequestLog } from "./log.ts";
import { readCursor } from "./page.ts";
import { readPush } from "./push.ts";
import { Rejection } from "./rejection.ts";
import { Deadline, LIMITS, type Limits, RUNTIME, type Runtime } from "./runtime.ts";
import { TokenSource } from "./token.ts";

export type Handler = (request: Request) => Promise<Response>;

/** Return the request handler. It keeps a token between requests. Tests pass their own clock and limits. */
export function makeHandler(config: Config, runtime: Runtime = RUNTIME, limits: Limits = LIMITS): Handler {
  const { services, problems } = config;
  logProblems(runtime, problems);
  const log = new RequestLog(runtime);
  /** Whether the portal has a column for the last visible day. */
  const dates = services !== null && services.visibleUntilField !== null;
  const secretUntil = services?.secretUntil ?? null;
  const settings = secretUntil === null ? { dates } : { dates, secret_until: secretUntil };
  const dataverse = services && new Dataverse(services, new TokenSource(services, runtime, limits), runtime, limits);

  async function work(request: Request, deadline: Deadline): Promise<Record<string, unknown>> {
    if (!await isAuthorized(request, config.keys)) throw new Rejection("unauthorized", "the key is missing or wrong");
    if (request.method !== "GET" && request.method !== "POST") {
      throw new Rejection("method_not_allowed", "POST a value, or GET to look what is visible");
    }
    if (dataverse === null) throw new Rejection("misconfigured", problems.join("; "));
    if (request.method === "GET") {
      const query = new URL(request.url).searchParams;
      if (query.size === 0) return { ok: true, ...settings };
      return { ...await dataverse.readVisible(readCursor(query), deadline, request.signal), ...settings };
    }
    const push = await readPush(request, Math.min(limits.body, deadline.left));
    const stored = await dataverse.setVisible(push, deadline, request.signal);
    return { contact_id: stored.contactId, visible: stored.visible, visible_until: stored.visibleUntil, dates };
  }

  return async (request) => {
    const correlationId = crypto.randomUUID();
    const beganAt = runtime.now();
    let response: Response;
    let rejection: Rejection | undefined;
    let origin: string | undefined;
    let listed: number | undefined;
    try {
      const content = await work(request, new Deadline(runtime, limits.request));
      if (Array.isArray(content.contacts)) listed = content.contacts.length;
      response = success(content, correlationId);
    } catch (error) {
      if (error instanceof Rejection) rejection = error;
      else {
        rejection = new Rejection("internal_error", "the function failed; its log has the place");
        origin = originOf(error);
      }
      response = rejected(rejection, correlationId);
    }
    const milliseconds = runtime.now() - beganAt;
    log.write({ correlationId, request, status: response.status, rejection, milliseconds, listed, origin });
    return response;
  };
}
