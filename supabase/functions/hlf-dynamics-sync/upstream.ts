/** Call Entra or Dataverse with limits for time and length, and without redirects. */

import { readText } from "./body.ts";

const LONGEST_ANSWER_BYTES = 65_536;
const LONGEST_RETRY_AFTER_SECONDS = 86_400;
/** Deno's error without a connection (DNS, rejection, TLS). After other errors, the request may have been sent. */
const NOT_CONNECTED = /client error \(Connect\)/;

export interface Answer {
  readonly status: number;
  readonly retryAfterSeconds: number | undefined;
  /** The body's JSON object; undefined if it is anything else, such as a gateway's page. */
  readonly content: Record<string, unknown> | undefined;
}

/** There was no complete answer. */
export class Unreachable extends Error {
  override readonly name = "Unreachable";

  constructor(readonly reason: "timeout" | "no connection" | "connection lost") {
    super(reason);
  }

  /** Return whether the server cannot have received the request. */
  get surelyNotSent(): boolean {
    return this.reason === "no connection";
  }
}

/** Make the call and return the answer, of any status. Raises Unreachable. */
export async function call(
  url: string,
  init: { method: string; headers: Record<string, string>; body?: string },
  milliseconds: number,
  longestBytes = LONGEST_ANSWER_BYTES,
): Promise<Answer> {
  // The signal also limits the body, because a server may send it slowly.
  const signal = AbortSignal.timeout(milliseconds);
  try {
    const response = await fetch(url, { ...init, redirect: "manual", signal });
    const { text, isCut } = await readText(response.body, { bytes: longestBytes });
    return {
      status: response.status,
      retryAfterSeconds: retryAfter(response.headers),
      content: isCut ? undefined : parseObject(text),
    };
  } catch (error) {
    // The error of fetch contains addresses and data, so only its kind is kept.
    if (signal.aborted) throw new Unreachable("timeout");
    const said = error instanceof Error ? `${error} ${error.cause}` : ""; // in the cause since Deno 2.9
    throw new Unreachable(NOT_CONNECTED.test(said) ? "no connection" : "connection lost");
  }
}

/** Return the JSON object; undefined for any other text. */
export function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const content: unknown = JSON.parse(text);
    return isObject(content) ? content : undefined;
  } catch {
    return undefined;
  }
}

/** Return whether the value is an object and not an array. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Return Retry-After in whole seconds, from either of its forms (RFC 9110, 10.2.3); undefined if it is invalid. */
function retryAfter(headers: Headers): number | undefined {
  const text = headers.get("Retry-After")?.trim() ?? "";
  const seconds = /^\d+(\.\d*)?$/.test(text) ? Number(text) : secondsUntil(text, headers.get("Date"));
  if (Number.isNaN(seconds)) return undefined;
  return Math.min(Math.max(Math.ceil(seconds), 1), LONGEST_RETRY_AFTER_SECONDS);
}

/** Return the seconds until an HTTP date on the clock of the server that sent it, or NaN. */
function secondsUntil(date: string, writtenAt: string | null): number {
  // Date.parse accepts almost any text.
  if (!/^[A-Z][a-z]+, .+ \d\d:\d\d:\d\d GMT$/.test(date)) return NaN;
  return (Date.parse(date) - (Date.parse(writtenAt ?? "") || Date.now())) / 1000;
}
