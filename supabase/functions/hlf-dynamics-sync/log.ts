/** Log one line of JSON for each request with the key: enough to find the request, and no data about a person. */

import type { Rejection } from "./rejection.ts";
import type { Runtime } from "./runtime.ts";

const KNOWN_METHODS = new Set(["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]);

/** Milliseconds between two lines about requests without the key. */
const STRANGERS_EVERY = 60_000;

export interface Outcome {
  readonly correlationId: string;
  readonly request: Request;
  readonly status: number;
  readonly rejection: Rejection | undefined;
  readonly milliseconds: number;
  /** The number of contacts in the answer; undefined for any other answer. */
  readonly listed: number | undefined;
  /** Where an unexpected error was thrown. */
  readonly origin: string | undefined;
}

/** Log the problems of the settings at the start of the function: names, no values. */
export function logProblems(runtime: Runtime, problems: readonly string[]): void {
  if (problems.length > 0) runtime.log(JSON.stringify({ problems }));
}

/** Writes a line for each request. Requests without the key get one line a minute, because the log has a quota. */
export class RequestLog {
  #strangers = 0;
  #saidAt = -Infinity;

  constructor(private readonly runtime: Runtime) {}

  write(outcome: Outcome): void {
    if (outcome.status !== 401) return this.#line(outcome);
    this.#strangers += 1;
    if (this.runtime.now() - this.#saidAt < STRANGERS_EVERY) return;
    this.#line(outcome, this.#strangers);
    this.#strangers = 0;
    this.#saidAt = this.runtime.now();
  }

  /** Contains no key, token or contact. certjob's Idempotency-Key (event and version) identifies the push. */
  #line(outcome: Outcome, unauthorized?: number): void {
    this.runtime.log(JSON.stringify({
      correlation_id: outcome.correlationId,
      idempotency_key: idempotencyKey(outcome),
      method: KNOWN_METHODS.has(outcome.request.method) ? outcome.request.method : "other",
      status: outcome.status,
      code: outcome.rejection?.code,
      upstream: outcome.rejection?.upstream,
      origin: outcome.origin,
      listed: outcome.listed,
      milliseconds: Math.round(outcome.milliseconds),
      unauthorized, // the number of requests since the last line
    }));
  }
}

/** Return the header if it has certjob's form and the caller has the key, because others could write into the log. */
function idempotencyKey(outcome: Outcome): string | undefined {
  const key = outcome.request.headers.get("Idempotency-Key") ?? "";
  return outcome.status !== 401 && /^\d{1,20}-\d{1,10}$/.test(key) ? key : undefined;
}

/** Return the kind of error and its places in our files. Its message is left out, because it may quote any data. */
export function originOf(error: unknown): string {
  if (!(error instanceof Error)) return typeof error;
  const frames = error.stack?.match(/[\w-]+\.ts:\d+:\d+/g) ?? [];
  return [error.name, ...frames].slice(0, 5).join(" ");
}
