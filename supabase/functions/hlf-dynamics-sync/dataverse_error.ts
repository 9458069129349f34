/** What an answer of Dataverse says when it is no success: the error in its own form. */

import { Refusal } from "./refusal.ts";
import { type Answer, isObject } from "./upstream.ts";

const USUAL_RETRY_AFTER_SECONDS = 10;

/**
 * Source: Microsoft, "Web service error codes" (Dataverse) and "Troubleshoot Dataverse Web API client errors".
 */
/** The payload or the address is wrong in itself. All our calls have the same, so it is no matter of one contact. */
const WRONG_FOR_ALL = new Set(["0x80048d19", "0x80060888", "0x8006088a"]);
const SAYS_NOTHING = new Set(["", "0x0"]);
/** How OData itself speaks of a payload, where the code says nothing. */
const WRONG_FOR_ALL_IN_WORDS = /Microsoft\.OData|Microsoft\.Dynamics\.CRM|property (named )?'/;

/** Return the error of Dataverse's own form, `{"error": {"code", "message"}}`; `isOurs` is false for anybody else's. */
export function readError(answer: Answer): { code: string; message: string; isOurs: boolean } {
  const error = answer.content?.error;
  if (!isObject(error) || typeof error.code !== "string") return { code: "", message: "", isOurs: false };
  const code = /^0x[0-9a-f]{1,8}$/i.test(error.code) ? error.code.toLowerCase() : "";
  return { code, message: typeof error.message === "string" ? error.message : "", isOurs: true };
}

/** Whether the column's name or type is wrong, or the address: that concerns everybody. */
export function isAboutPayload(code: string, message: string): boolean {
  return WRONG_FOR_ALL.has(code) || (SAYS_NOTHING.has(code) && WRONG_FOR_ALL_IN_WORDS.test(message));
}

/** Return the refusal of a call that came too early, with the time to come back. */
export function throttled(answer: Answer, upstream: string): Refusal {
  const retryAfterSeconds = answer.retryAfterSeconds ?? USUAL_RETRY_AFTER_SECONDS;
  return new Refusal("throttled", "Dataverse asks to wait", { retryAfterSeconds, upstream });
}
