/** Why a request was not done: the codes of the contract, each with its HTTP status. */

const STATUS = {
  invalid_request: 400,
  unauthorized: 401,
  contact_not_found: 404,
  method_not_allowed: 405,
  request_timeout: 408,
  too_large: 413,
  dynamics_rejected: 422,
  throttled: 429,
  internal_error: 500,
  misconfigured: 500,
  dynamics_unavailable: 502,
  token_unavailable: 503,
  outcome_unknown: 504,
} as const;

export type Code = keyof typeof STATUS;

interface Details {
  /** When to come back; the answer carries it as Retry-After, and a repeat of our own waits at least as long. */
  retryAfterSeconds?: number | undefined;
  /** What Entra or Dataverse said, as a status and a code without their text, which may name people. */
  upstream?: string | undefined;
  /** Whether the same call may succeed in a moment, so that it is worth a repeat before anybody is told. */
  repeatable?: boolean;
}

/** Every failure ends in one of these. The message goes to the caller: no secret, no personal data. */
export class Refusal extends Error {
  override readonly name = "Refusal";
  readonly status: number;
  readonly retryAfterSeconds: number | undefined;
  readonly upstream: string | undefined;
  readonly repeatable: boolean;

  constructor(readonly code: Code, message: string, details: Details = {}) {
    super(message);
    this.status = STATUS[code];
    this.retryAfterSeconds = details.retryAfterSeconds;
    this.upstream = details.upstream;
    this.repeatable = details.repeatable ?? false;
  }
}
