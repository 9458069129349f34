/** The errors of the contract: codes and their HTTP status. */

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
  /** Retry-After of the answer. The function's own repeats wait at least this long. */
  retryAfterSeconds?: number | undefined;
  /** Status and code from Entra or Dataverse, without their text, which may name people. */
  upstream?: string | undefined;
  /** Whether the function should repeat the call before it answers. */
  repeatable?: boolean;
}

/** Every failure becomes a Rejection. The caller gets the message, so it has no secret and no personal data. */
export class Rejection extends Error {
  override readonly name = "Rejection";
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
