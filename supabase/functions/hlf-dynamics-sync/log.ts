/** One line of JSON for each request: enough to find it again, nothing about whom it concerned. */

import type { Refusal } from "./refusal.ts";
import type { Runtime } from "./runtime.ts";

const KNOWN_METHODS = new Set(["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]);

export interface Outcome {
  readonly correlationId: string;
  readonly request: Request;
  readonly status: number;
  readonly refusal: Refusal | undefined;
  readonly milliseconds: number;
  /** Where an error that nobody foresaw was thrown. */
  readonly origin: string | undefined;
}

/** Write, as the function starts, what is missing in its settings: names, no values. */
export function logProblems(runtime: Runtime, problems: readonly string[]): void {
  if (problems.length > 0) runtime.log(JSON.stringify({ problems }));
}

/** Write the line. No key, no token, no contact: certjob's Idempotency-Key (event and version) tells which push it was. */
export function logOutcome(runtime: Runtime, outcome: Outcome): void {
  runtime.log(JSON.stringify({
    correlation_id: outcome.correlationId,
    idempotency_key: idempotencyKey(outcome),
    method: KNOWN_METHODS.has(outcome.request.method) ? outcome.request.method : "other",
    status: outcome.status,
    code: outcome.refusal?.code,
    upstream: outcome.refusal?.upstream,
    origin: outcome.origin,
    milliseconds: Math.round(outcome.milliseconds),
  }));
}

/** Only certjob's own form, and only from a caller with the key: a log is no place for what strangers send. */
function idempotencyKey(outcome: Outcome): string | undefined {
  const key = outcome.request.headers.get("Idempotency-Key") ?? "";
  return outcome.status !== 401 && /^\d{1,20}-\d{1,10}$/.test(key) ? key : undefined;
}

/** Return the kind of error and the places in our files, without its message, which may quote anything. */
export function originOf(error: unknown): string {
  if (!(error instanceof Error)) return typeof error;
  const frames = error.stack?.match(/[\w-]+\.ts:\d+:\d+/g) ?? [];
  return [error.name, ...frames].slice(0, 5).join(" ");
}
