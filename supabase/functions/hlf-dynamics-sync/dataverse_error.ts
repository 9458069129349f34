/** Read an error of Dataverse, for both calls. */

import { Rejection } from "./rejection.ts";
import { type Answer, isObject } from "./upstream.ts";

const USUAL_RETRY_AFTER_SECONDS = 10;

/**
 * Source: Microsoft, "Web service error codes" (Dataverse) and "Troubleshoot Dataverse Web API client errors".
 */
/** Errors about a column or the address. They affect every contact, because all calls have the same ones. */
const WRONG_FOR_ALL = new Set(["0x80048d19", "0x80060888", "0x8006088a"]);
const SAYS_NOTHING = new Set(["", "0x0"]);
/** Messages of OData about a column, in errors without a code. */
const WRONG_FOR_ALL_IN_WORDS = /Microsoft\.OData|Microsoft\.Dynamics\.CRM|property (named )?'/;

export interface DataverseError {
  /** In lower case, such as 0x80040217; empty without one. */
  readonly code: string;
  readonly message: string;
  /** Whether it has Dataverse's form, `{"error": {"code", "message"}}`, and not that of a gateway. */
  readonly isOurs: boolean;
  /** Status and code, for the caller. */
  readonly said: string;
  /** The same, for the log. */
  readonly upstream: string;
}

/** Return the parts of the error. Raises Rejection for an error that affects every contact in both calls. */
export function readError(answer: Answer): DataverseError {
  const { status, content } = answer;
  const error = isObject(content?.error) && typeof content.error.code === "string" ? content.error : undefined;
  const code = String(error?.code ?? "").match(/^0x[0-9a-f]{1,8}$/i)?.[0].toLowerCase() ?? "";
  const message = typeof error?.message === "string" ? error.message : "";
  const said = code === "" ? `${status}` : `${status} ${code}`;
  const upstream = `dataverse ${said}`;
  if (status === 429) {
    const retryAfterSeconds = answer.retryAfterSeconds ?? USUAL_RETRY_AFTER_SECONDS;
    throw new Rejection("throttled", "Dataverse asks to wait", { retryAfterSeconds, upstream });
  }
  if (status === 401) {
    throw misconfigured(`Dataverse does not take the token (${said}); is the application user there?`, upstream);
  }
  if (status === 400 && isAboutPayload(code, message)) {
    throw misconfigured(
      `Dataverse does not accept a column (${said}); check DYNAMICS_VISIBILITY_FIELD and DYNAMICS_VISIBLE_UNTIL_FIELD`,
      upstream,
    );
  }
  return { code, message, isOurs: error !== undefined, said, upstream };
}

/** Return whether a column's name or type is wrong, or the address. */
function isAboutPayload(code: string, message: string): boolean {
  return WRONG_FOR_ALL.has(code) || (SAYS_NOTHING.has(code) && WRONG_FOR_ALL_IN_WORDS.test(message));
}

export function misconfigured(message: string, upstream: string): Rejection {
  return new Rejection("misconfigured", message, { upstream });
}
