/** The answers of the contract, with their headers. */

import type { Rejection } from "./rejection.ts";

/** Return a success. */
export function success(content: Record<string, unknown>, correlationId: string): Response {
  return json(200, content, { "X-Correlation-Id": correlationId });
}

/** Return the error envelope. */
export function rejected(rejection: Rejection, correlationId: string): Response {
  const headers: Record<string, string> = { "X-Correlation-Id": correlationId };
  if (rejection.retryAfterSeconds !== undefined) headers["Retry-After"] = String(rejection.retryAfterSeconds);
  if (rejection.code === "unauthorized") headers["WWW-Authenticate"] = "Bearer";
  if (rejection.code === "method_not_allowed") headers["Allow"] = "GET, POST";
  return json(rejection.status, { error: { code: rejection.code, message: rejection.message } }, headers);
}

function json(status: number, content: Record<string, unknown>, headers: Record<string, string>): Response {
  return new Response(JSON.stringify(content), {
    status,
    headers: { "Content-Type": "application/json", "Cache-Control": "no-store", ...headers },
  });
}
