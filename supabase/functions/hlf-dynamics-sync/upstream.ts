/** One call to Entra or Dataverse: it ends in time, follows no redirect, and takes no longer answer than was expected. */

import { readText } from "./body.ts";

const LONGEST_ANSWER_BYTES = 65_536;
const LONGEST_RETRY_AFTER_SECONDS = 86_400;
/** How Deno's fetch says that it got no connection: name lookup, refusal, TLS. Other words mean: perhaps sent. */
const NOT_CONNECTED = /client error \(Connect\)/;

export interface Answer {
  readonly status: number;
  readonly retryAfterSeconds: number | undefined;
  /** The body's JSON object; undefined if it is anything else, such as a gateway's page. */
  readonly content: Record<string, unknown> | undefined;
}

/** Nothing that can be called an answer came back. */
export class Unreachable extends Error {
  override readonly name = "Unreachable";

  constructor(readonly reason: "timeout" | "no connection" | "connection lost") {
    super(reason);
  }

  /** Whether no byte of the request can have arrived. */
  get surelyNotSent(): boolean {
    return this.reason === "no connection";
  }
}

/** Make the call. Raises Unreachable; an answer of any status is returned. */
export async function call(
  url: string,
  init: { method: string; headers: Record<string, string>; body?: string },
  milliseconds: number,
  longestBytes = LONGEST_ANSWER_BYTES,
): Promise<Answer> {
  // The signal covers the body too: a server that drips must not hold the request.
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
    // What fetch says names addresses and quotes what came over the wire; which of the three it was is all that helps.
    if (signal.aborted) throw new Unreachable("timeout");
    const said = error instanceof Error ? `${error} ${error.cause}` : ""; // the cause has it since Deno 2.9
    throw new Unreachable(NOT_CONNECTED.test(said) ? "no connection" : "connection lost");
  }
}

/** Return a JSON object, undefined for anything else. */
export function parseObject(text: string): Record<string, unknown> | undefined {
  try {
    const content: unknown = JSON.parse(text);
    return isObject(content) ? content : undefined;
  } catch {
    return undefined;
  }
}

/** Whether it is an object with names, no array. */
export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** Return Retry-After in whole seconds, whichever of its forms it has (RFC 9110, 10.2.3); undefined for rubbish. */
function retryAfter(headers: Headers): number | undefined {
  const text = headers.get("Retry-After")?.trim() ?? "";
  const seconds = /^\d+(\.\d*)?$/.test(text) ? Number(text) : secondsUntil(text, headers.get("Date"));
  if (Number.isNaN(seconds)) return undefined;
  return Math.min(Math.max(Math.ceil(seconds), 1), LONGEST_RETRY_AFTER_SECONDS);
}

/** A date is read by the clock of the server that wrote it. NaN for what is no HTTP-date. */
function secondsUntil(date: string, writtenAt: string | null): number {
  // Date.parse takes almost anything for a date.
  if (!/^[A-Z][a-z]+, .+ \d\d:\d\d:\d\d GMT$/.test(date)) return NaN;
  return (Date.parse(date) - (Date.parse(writtenAt ?? "") || Date.now())) / 1000;
}
