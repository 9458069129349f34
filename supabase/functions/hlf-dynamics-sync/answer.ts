/** The answers of the contract, with their headers. */

import type { Refusal } from "./refusal.ts";

/** Return a success. */
export function success(content: Record<string, unknown>, correlationId: string): Response {
  return json(200, content, { "X-Correlation-Id": correlationId });
}

/** Return the error envelope. */
export function refused(refusal: Refusal, correlationId: string): Response {
  const headers: Record<string, string> = { "X-Correlation-Id": correlationId };
  if (refusal.retryAfterSeconds !== undefined) headers["Retry-After"] = String(refusal.retryAfterSeconds);
  if (refusal.code === "unauthorized") headers["WWW-Authenticate"] = "Bearer";
  if (refusal.code === "method_not_allowed") headers["Allow"] = "GET, POST";
  return json(refusal.status, { error: { code: refusal.code, message: refusal.message } }, headers);
}

function json(status: number, content: Record<string, unknown>, headers: Record<string, string>): Response {
  return new Response(JSON.stringify(content), {
    status,
    headers: { "Content-Type": "application/json", "Cache-Control": "no-store", ...headers },
  });
}
