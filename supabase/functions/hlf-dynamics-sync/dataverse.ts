/**
 * The one change in Dataverse: a contact's visibility, and what each answer to it means.
 *
 *     Dataverse's answer                                       refusal
 *     204                                                      none
 *     401                                                      a new token, once; then misconfigured
 *     404 "does not exist"                                     contact_not_found
 *     400, a plug-in that says no to this contact, a 403 for
 *       this one record, a 404 about a record beside it         dynamics_rejected
 *     429                                                      throttled, with its Retry-After
 *     no connection, 503                                       repeated; then dynamics_unavailable
 *     no answer in time, a lost connection, 502, 504           outcome_unknown, at once
 *     412, 500 and whatever else                               dynamics_unavailable
 *     403; a 400 about the column's name or type; a 400 or 404
 *       that is not Dataverse's; 3xx; a 2xx that is not 204     misconfigured
 *
 * The last row concerns everybody: certjob then stops its stage instead of blocking one mentor after the other.
 *
 * A change that may have been sent is never sent again: Dataverse may still be at work on it, and the repeat of an older
 * value could land after a newer one. The caller is told that nobody knows, and sees to it that it has no last word.
 */

import type { Services } from "./config.ts";
import { Refusal } from "./refusal.ts";
import { withRepeats } from "./retry.ts";
import type { Deadline, Limits, Runtime } from "./runtime.ts";
import type { TokenSource } from "./token.ts";
import { type Answer, call, isObject, Unreachable } from "./upstream.ts";

const MOST_REPEATS = 3;
const USUAL_RETRY_AFTER_SECONDS = 10;

/**
 * Source: Microsoft, "Web service error codes" (Dataverse), "Troubleshoot Dataverse client errors" and "Troubleshoot
 * Dataverse Web API client errors".
 */
const OBJECT_DOES_NOT_EXIST = "0x80040217";
const PLUGIN_ABORTED = "0x80040265";
/** The role may write contacts, but not this one: stopping for it would leave all others undone. */
const NO_ACCESS_TO_RECORD = "0x80048306";
/** The payload or the address is wrong in itself. All our calls have the same, so it is no matter of one contact. */
const WRONG_FOR_ALL = new Set(["0x80048d19", "0x80060888", "0x8006088a"]);
const SAYS_NOTHING = new Set(["", "0x0"]);
/** How OData itself speaks of a payload, where the code says nothing. */
const WRONG_FOR_ALL_IN_WORDS = /Microsoft\.OData|Microsoft\.Dynamics\.CRM|property (named )?'/;
const ANY_ID = /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/;

export class Dataverse {
  constructor(
    private readonly services: Services,
    private readonly tokens: TokenSource,
    private readonly runtime: Runtime,
    private readonly limits: Limits,
  ) {}

  /** Make the contact visible or hidden; resolve once Dataverse has confirmed it. Raises Refusal. */
  async setVisible(contactId: string, visible: boolean, deadline: Deadline, caller: AbortSignal): Promise<void> {
    let token = await this.tokens.get(deadline);
    let isFirstToken = true;

    const attempt = async () => {
      checkThere(caller);
      let answer = await this.#patch(contactId, visible, token, deadline);
      if (answer.status === 401 && isFirstToken) {
        isFirstToken = false;
        token = await this.tokens.get(deadline, token);
        checkThere(caller);
        answer = await this.#patch(contactId, visible, token, deadline);
      }
      judge(answer, contactId);
    };
    await withRepeats(attempt, { most: MOST_REPEATS, deadline, runtime: this.runtime, caller });
  }

  async #patch(contactId: string, visible: boolean, token: string, deadline: Deadline): Promise<Answer> {
    const url = `${this.services.dynamicsUrl}/api/data/v9.2/contacts(${contactId})`;
    const headers = {
      "Authorization": `Bearer ${token}`,
      "Content-Type": "application/json",
      "Accept": "application/json",
      "If-Match": "*", // without it a PATCH creates a contact that is missing
      "OData-MaxVersion": "4.0",
      "OData-Version": "4.0",
    };
    const body = JSON.stringify({ [this.services.visibilityField]: visible });
    try {
      return await call(url, { method: "PATCH", headers, body }, Math.min(this.limits.dataverse, deadline.left));
    } catch (error) {
      if (!(error instanceof Unreachable)) throw error;
      if (error.surelyNotSent) {
        throw unavailable("Dataverse does not answer", { upstream: error.reason, repeatable: true });
      }
      throw unknown("Dataverse got the change and did not answer", error.reason);
    }
  }
}

/** Whoever asked may have sent a newer value since they went: an older one must not land after it. */
function checkThere(caller: AbortSignal): void {
  if (caller.aborted) throw new Refusal("request_timeout", "the caller has gone");
}

/** Return for a success, raise what the table at the top says for anything else. */
function judge(answer: Answer, contactId: string): void {
  const { status, retryAfterSeconds } = answer;
  if (status === 204) return;
  const { code, message, isOurs } = readError(answer);
  const said = code === "" ? `${status}` : `${status} ${code}`;
  const upstream = `dataverse ${said}`;
  if (status === 429) {
    const wait = retryAfterSeconds ?? USUAL_RETRY_AFTER_SECONDS;
    throw new Refusal("throttled", "Dataverse asks to wait", { retryAfterSeconds: wait, upstream });
  }
  if (status === 502 || status === 504) {
    throw unknown(`a gateway got no answer from Dataverse (${said})`, upstream, retryAfterSeconds);
  }
  if (status === 503) {
    throw unavailable(`Dataverse does not work (${said})`, { upstream, retryAfterSeconds, repeatable: true });
  }
  if (status === 404 && isOurs && isAboutContact(code, message, contactId)) {
    throw new Refusal("contact_not_found", "Dynamics has no contact with this id", { upstream });
  }
  if (code === PLUGIN_ABORTED) {
    throw rejected(`a plug-in or workflow in Dynamics refused this contact (${said})`, upstream);
  }
  if (status === 404 && code === OBJECT_DOES_NOT_EXIST) {
    throw rejected(`something that belongs to this contact is missing in Dynamics (${said})`, upstream);
  }
  if (status === 401) {
    throw misconfigured(`Dataverse does not take the token (${said}); is the application user there?`, upstream);
  }
  if (status === 403 && code === NO_ACCESS_TO_RECORD) {
    throw rejected(`the application user may write contacts, but not this one (${said}); widen its role`, upstream);
  }
  if (status === 403) throw misconfigured(`the application user may not write contacts (${said})`, upstream);
  if (status === 400 && isAboutPayload(code, message)) {
    throw misconfigured(`Dataverse does not know the column (${said}); check DYNAMICS_VISIBILITY_FIELD`, upstream);
  }
  if (status === 400 && isOurs) {
    throw rejected(`Dynamics refused the change of this contact (${said})`, upstream);
  }
  if (status < 400 || status === 400 || status === 404) {
    throw misconfigured(`what answers is not Dataverse's contacts (${said}); check DYNAMICS_URL`, upstream);
  }
  throw unavailable(`Dataverse could not do it (${said})`, { upstream, retryAfterSeconds });
}

/** Return the error of Dataverse's own form, `{"error": {"code", "message"}}`; `isOurs` is false for anybody else's. */
function readError(answer: Answer): { code: string; message: string; isOurs: boolean } {
  const error = answer.content?.error;
  if (!isObject(error) || typeof error.code !== "string") return { code: "", message: "", isOurs: false };
  const code = /^0x[0-9a-f]{1,8}$/i.test(error.code) ? error.code.toLowerCase() : "";
  return { code, message: typeof error.message === "string" ? error.message : "", isOurs: true };
}

/** Some versions leave the code empty and say it in words; a plug-in's own search may miss another record. */
function isAboutContact(code: string, message: string, contactId: string): boolean {
  const text = message.toLowerCase();
  if (code === OBJECT_DOES_NOT_EXIST) return text.includes(contactId) || !ANY_ID.test(text);
  return code === "" && text.includes(contactId) && text.includes("does not exist");
}

function isAboutPayload(code: string, message: string): boolean {
  return WRONG_FOR_ALL.has(code) || (SAYS_NOTHING.has(code) && WRONG_FOR_ALL_IN_WORDS.test(message));
}

function rejected(message: string, upstream: string): Refusal {
  return new Refusal("dynamics_rejected", message, { upstream });
}

function misconfigured(message: string, upstream: string): Refusal {
  return new Refusal("misconfigured", message, { upstream });
}

function unknown(message: string, upstream: string, retryAfterSeconds?: number): Refusal {
  return new Refusal("outcome_unknown", `${message}; it may be done, or be done later`, {
    upstream,
    retryAfterSeconds,
  });
}

function unavailable(
  message: string,
  details: { upstream: string; retryAfterSeconds?: number | undefined; repeatable?: boolean },
): Refusal {
  return new Refusal("dynamics_unavailable", message, details);
}
