/**
 * The token for Dataverse: client credentials from Entra, kept as long as it is good, asked for once however many wait.
 *
 *     Entra's answer                                   refusal
 *     200 with a token                                 none
 *     no connection, 5xx                               repeated once; then token_unavailable
 *     429, 408, temporarily_unavailable, no answer     token_unavailable
 *     any other 4xx (invalid_client and its like), 3xx,
 *       a 200 without a token                          misconfigured
 *
 * A token_unavailable carries Retry-After (Entra's own, else ten seconds), and Entra is not asked again before it.
 */

import type { Services } from "./config.ts";
import { Refusal } from "./refusal.ts";
import { withRepeats } from "./retry.ts";
import { Deadline, type Limits, type Runtime } from "./runtime.ts";
import { type Answer, call, Unreachable } from "./upstream.ts";

/** How long before its end a token is replaced: clocks differ, and a call takes a while. */
const MARGIN_SECONDS = 300;
const USUAL_RETRY_AFTER_SECONDS = 10;
const LATE = { upstream: "timeout", retryAfterSeconds: USUAL_RETRY_AFTER_SECONDS };
const PASSING_ERRORS = new Set(["temporarily_unavailable", "server_error"]);

/**
 * What to do about the commonest errors of Entra. Only a hint: their numbers may change, so nothing is decided by them.
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
  /** Until when Entra is not asked again, and what it said. */
  #hold: { until: number; upstream: string | undefined } | undefined;

  constructor(
    private readonly services: Services,
    private readonly runtime: Runtime,
    private readonly limits: Limits,
  ) {}

  /**
   * Return a token that is good for a while, other than the one that Dataverse has refused. Raises Refusal.
   *
   * All requests that need a new one wait for the same answer, each not beyond its own deadline.
   */
  async get(deadline: Deadline, refused?: string): Promise<string> {
    const last = this.#token?.value === refused ? undefined : this.#token;
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
      if (!(error instanceof Refusal) || error.code !== "token_unavailable") throw error;
      // To go on asking a service that throttles only lengthens it, and one that is down would cost each caller seconds.
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
      // A lost connection comes back in a moment; after a timeout no time is left for a repeat.
      throw unavailable({ upstream: error.reason, repeatable: true });
    }
  }
}

/** Return the token of an answer, or raise what the table at the top says. */
function read(answer: Answer, askedAt: number): Token {
  const { status, content } = answer;
  const value = content?.access_token;
  const seconds = lifeSeconds(content?.expires_in);
  if (status === 200 && typeof value === "string" && /^[\x21-\x7e]+$/.test(value) && seconds > 0) {
    // A token that lives shorter than two margins is renewed after half its life.
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
  throw new Refusal("misconfigured", `Entra gives no token (${what}); ${hint}`, { upstream });
}

/** Return `expires_in` in seconds; some versions of Entra write it as a text. NaN for what is no number. */
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
): Refusal {
  return new Refusal("token_unavailable", "Entra gives no token right now", details);
}

/** Wait for somebody else's flight, but not longer than there is time. */
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
