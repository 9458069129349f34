/**
 * Get the token for Dataverse from Entra (client credentials). Requests share it while it is valid.
 *
 *     Entra's answer                                   rejection
 *     200 with a token                                 none
 *     no connection, 5xx                               repeated once; then token_unavailable
 *     429, 408, temporarily_unavailable, no answer     token_unavailable
 *     any other 4xx (such as invalid_client), 3xx,
 *       a 200 without a token                          misconfigured
 *
 * token_unavailable has a Retry-After (from Entra, else ten seconds). The function does not call Entra before that.
 */

import type { Services } from "./config.ts";
import { Rejection } from "./rejection.ts";
import { withRepeats } from "./retry.ts";
import { Deadline, type Limits, type Runtime } from "./runtime.ts";
import { type Answer, call, Unreachable } from "./upstream.ts";

/** A token is replaced so long before its end, because clocks differ and a call takes time. */
const MARGIN_SECONDS = 300;
const USUAL_RETRY_AFTER_SECONDS = 10;
const LATE = { upstream: "timeout", retryAfterSeconds: USUAL_RETRY_AFTER_SECONDS };
const PASSING_ERRORS = new Set(["temporarily_unavailable", "server_error"]);

/**
 * The next step for the most frequent errors of Entra. No decision depends on the numbers, because they may change.
 * Source: Microsoft, "Microsoft Entra authentication and authorization error codes".
 */
const HINTS: Record<number, string> = {
  7000215: "the client secret is wrong: set AZURE_CLIENT_SECRET to the secret's value, not its id",
  7000222: "the client secret has expired: make a new one and set AZURE_CLIENT_SECRET",
  700016: "the tenant does not know the application: check AZURE_CLIENT_ID and AZURE_TENANT_ID",
  900023: "there is no such tenant: check AZURE_TENANT_ID",
  90002: "there is no such tenant: check AZURE_TENANT_ID",
  500011: "the tenant does not know this Dynamics: check DYNAMICS_URL",
};

interface Token {
  readonly value: string;
  /** On the runtime's clock, in milliseconds. */
  readonly freshUntil: number;
}

export class TokenSource {
  #token: Token | undefined;
  #flight: Promise<string> | undefined;
  /** No call to Entra before `until`; `upstream` is its last error. */
  #hold: { until: number; upstream: string | undefined } | undefined;

  constructor(
    private readonly services: Services,
    private readonly runtime: Runtime,
    private readonly limits: Limits,
  ) {}

  /**
   * Return a valid token that is not the `rejected` one. Raises Rejection.
   *
   * All requests that need a new token wait for the same answer, each until its own deadline.
   */
  async get(deadline: Deadline, rejected?: string): Promise<string> {
    const last = this.#token?.value === rejected ? undefined : this.#token;
    return last && this.runtime.now() < last.freshUntil ? last.value : await this.#renew(deadline);
  }

  #renew(deadline: Deadline): Promise<string> {
    const now = this.runtime.now();
    if (this.#hold && now < this.#hold.until) {
      const { until, upstream } = this.#hold;
      return Promise.reject(unavailable({ upstream, retryAfterSeconds: Math.ceil((until - now) / 1000) }));
    }
    this.#flight ??= this.#request().finally(() => this.#flight = undefined);
    return withDeadline(this.#flight, deadline);
  }

  async #request(): Promise<string> {
    const deadline = new Deadline(this.runtime, this.limits.entra);
    try {
      this.#token = await withRepeats(() => this.#ask(deadline), { most: 1, deadline, runtime: this.runtime });
      this.#hold = undefined;
      return this.#token.value;
    } catch (error) {
      if (!(error instanceof Rejection) || error.code !== "token_unavailable") throw error;
      // More calls would prolong throttling, and an outage would cost each caller seconds.
      const seconds = error.retryAfterSeconds ?? USUAL_RETRY_AFTER_SECONDS;
      this.#hold = { until: this.runtime.now() + seconds * 1000, upstream: error.upstream };
      throw unavailable({ upstream: error.upstream, retryAfterSeconds: seconds });
    }
  }

  async #ask(deadline: Deadline): Promise<Token> {
    const askedAt = this.runtime.now();
    const form = new URLSearchParams({
      grant_type: "client_credentials",
      client_id: this.services.clientId,
      client_secret: this.services.clientSecret,
      scope: `${this.services.dynamicsUrl}/.default`,
    });
    const headers = { "Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json" };
    try {
      const init = { method: "POST", headers, body: form.toString() };
      return read(await call(this.services.tokenUrl, init, deadline.left), askedAt);
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      // A lost connection may work at once; after a timeout, no time is left for a repeat.
      throw unavailable({ upstream: error.reason, repeatable: true });
    }
  }
}

/** Return the token of an answer. Raises the Rejection of the table at the top. */
function read(answer: Answer, askedAt: number): Token {
  const { status, content } = answer;
  const value = content?.access_token;
  const seconds = lifeSeconds(content?.expires_in);
  if (status === 200 && typeof value === "string" && /^[\x21-\x7e]+$/.test(value) && seconds > 0) {
    // A token that is valid for less than two margins is replaced after half that time.
    const freshSeconds = seconds - Math.min(MARGIN_SECONDS, seconds / 2);
    return { value, freshUntil: askedAt + freshSeconds * 1000 };
  }
  const number = firstNumber(content?.error_codes);
  const upstream = `entra ${status}` + (number === undefined ? "" : ` AADSTS${number}`);
  if (status >= 500 || status === 429 || status === 408 || PASSING_ERRORS.has(String(content?.error))) {
    throw unavailable({ upstream, retryAfterSeconds: answer.retryAfterSeconds, repeatable: status >= 500 });
  }
  const hint = HINTS[number ?? 0] ?? "check AZURE_TENANT_ID, AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_AUTHORITY";
  const what = number === undefined ? `${status}` : `${status} AADSTS${number}`;
  throw new Rejection("misconfigured", `Entra gives no token (${what}); ${hint}`, { upstream });
}

/** Return `expires_in` in seconds, or NaN. Some versions of Entra send a string. */
function lifeSeconds(value: unknown): number {
  const number = typeof value === "string" && /^\d{1,9}$/.test(value) ? Number(value) : value;
  return typeof number === "number" && Number.isFinite(number) ? number : NaN;
}

function firstNumber(codes: unknown): number | undefined {
  const first: unknown = Array.isArray(codes) ? codes[0] : undefined;
  return Number.isSafeInteger(first) ? first as number : undefined;
}

function unavailable(
  details: { upstream: string | undefined; retryAfterSeconds?: number | undefined; repeatable?: boolean },
): Rejection {
  return new Rejection("token_unavailable", "Entra gives no token right now", details);
}

/** Wait for the shared request until this request's own deadline. */
async function withDeadline(flight: Promise<string>, deadline: Deadline): Promise<string> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(unavailable(LATE)), deadline.left);
  });
  try {
    return await Promise.race([flight, late]);
  } finally {
    clearTimeout(timer);
  }
}
