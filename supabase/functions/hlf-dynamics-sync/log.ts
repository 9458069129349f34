/** One line of JSON for each request with the key: enough to find it again, nothing about whom it concerned. */

import type { Refusal } from "./refusal.ts";
import type { Runtime } from "./runtime.ts";

const KNOWN_METHODS = new Set(["GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]);

/** Milliseconds between two lines about requests without the key. */
const STRANGERS_EVERY = 60_000;

export interface Outcome {
  readonly correlationId: string;
  readonly request: Request;
  readonly status: number;
  readonly refusal: Refusal | undefined;
  readonly milliseconds: number;
  /** How many contacts the answer lists; undefined when it lists none. */
  readonly listed: number | undefined;
  /** Where an error that nobody foresaw was thrown. */
  readonly origin: string | undefined;
}

/** Write, as the function starts, what is missing in its settings: names, no values. */
export function logProblems(runtime: Runtime, problems: readonly string[]): void {
  if (problems.length > 0) runtime.log(JSON.stringify({ problems }));
}

/** Each request's line. Strangers have one a minute, with their number: they must not use up the log's quota. */
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

  /** No key, no token, no contact: certjob's Idempotency-Key (event and version) tells which push it was. */
  #line(outcome: Outcome, unauthorized?: number): void {
    this.runtime.log(JSON.stringify({
      correlation_id: outcome.correlationId,
      idempotency_key: idempotencyKey(outcome),
      method: KNOWN_METHODS.has(outcome.request.method) ? outcome.request.method : "other",
      status: outcome.status,
      code: outcome.refusal?.code,
      upstream: outcome.refusal?.upstream,
      origin: outcome.origin,
      listed: outcome.listed,
      milliseconds: Math.round(outcome.milliseconds),
      unauthorized, // how many since the line before
    }));
  }
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
