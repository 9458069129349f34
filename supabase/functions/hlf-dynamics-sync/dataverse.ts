/**
 * The two calls to Dataverse: change a contact's visibility, and read a page of the visible contacts.
 *
 *     Dataverse's answer to a change                           rejection
 *     200 with the contact                                     none
 *     401                                                      a new token, once; then misconfigured
 *     404 "does not exist"                                     contact_not_found
 *     400, a plug-in that rejects this contact, a 403 for
 *       this record, a 404 about another record                 dynamics_rejected
 *     429                                                      throttled, with its Retry-After
 *     no connection, 503                                       repeated; then dynamics_unavailable
 *     no answer in time, a lost connection, 502, 504           outcome_unknown, at once
 *     412, 500, any other status                               dynamics_unavailable
 *     403; a 400 about a column's name or type; a 400 or 404
 *       that is not from Dataverse; 3xx; any other 2xx          misconfigured
 *
 * Errors of the last row affect every contact, so certjob stops its stage and blocks no mentor.
 *
 * The function never repeats a change that it may have sent, because Dataverse may still apply the first one after a
 * newer value. It answers outcome_unknown, and certjob sends the current value again.
 */

import type { Services } from "./config.ts";
import { columns, noContacts, readContactId, readVisibleUntil } from "./contact.ts";
import { misconfigured, readError } from "./dataverse_error.ts";
import { judgePage, type Page, pageUrl } from "./page.ts";
import type { Push } from "./push.ts";
import { Rejection } from "./rejection.ts";
import { withRepeats } from "./retry.ts";
import type { Deadline, Limits, Runtime } from "./runtime.ts";
import type { TokenSource } from "./token.ts";
import { type Answer, call, Unreachable } from "./upstream.ts";

const MOST_REPEATS = 3;
/** A page of 5,000 contacts is about half a megabyte. */
const LONGEST_PAGE_BYTES = 4_000_000;

/**
 * Source: Microsoft, "Web service error codes" (Dataverse), "Troubleshoot Dataverse client errors" and "Troubleshoot
 * Dataverse Web API client errors".
 */
const OBJECT_DOES_NOT_EXIST = "0x80040217";
const PLUGIN_ABORTED = "0x80040265";
/** The role may write contacts, but not this one, so the error does not stop the stage. */
const NO_ACCESS_TO_RECORD = "0x80048306";
const ANY_ID = /[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}/;

export class Dataverse {
  constructor(
    private readonly services: Services,
    private readonly tokens: TokenSource,
    private readonly runtime: Runtime,
    private readonly limits: Limits,
  ) {}

  /** Show or hide the contact; return the values that Dataverse has stored. Raises Rejection. */
  async setVisible(push: Push, deadline: Deadline, caller: AbortSignal): Promise<Push> {
    const { dynamicsUrl, visibilityField, visibleUntilField } = this.services;
    const select = columns(visibilityField, visibleUntilField);
    const url = `${dynamicsUrl}/api/data/v9.2/contacts(${push.contactId})?$select=${select}`;
    const until = visibleUntilField === null ? {} : { [visibleUntilField]: push.visibleUntil };
    const body = JSON.stringify({ [visibilityField]: push.visible, ...until });
    // Without If-Match, a PATCH creates a missing contact.
    const headers = { "Content-Type": "application/json", "If-Match": "*", "Prefer": "return=representation" };
    return await this.#ask(deadline, caller, async (token) => {
      try {
        return await this.#call(url, { method: "PATCH", headers, body }, token, deadline);
      } catch (error) {
        if (error instanceof Unreachable && !error.surelyNotSent) {
          throw unknown("Dataverse got the change and did not answer", error.reason);
        }
        throw error;
      }
    }, (answer) => judge(answer, push.contactId, this.services));
  }

  /** Return a page of the visible contacts; `after` is the cursor of the previous page. Raises Rejection. */
  async readVisible(after: string | null, deadline: Deadline, caller: AbortSignal): Promise<Page> {
    const url = pageUrl(this.services, after);
    const headers = { "Prefer": "odata.maxpagesize=5000" };
    return await this.#ask(
      deadline,
      caller,
      (token) => this.#call(url, { method: "GET", headers }, token, deadline, LONGEST_PAGE_BYTES),
      (answer) => judgePage(answer, after, this.services),
    );
  }

  /** Send with a token, once more with a new one if Dataverse rejects it, and retry repeatable errors. */
  async #ask<T>(
    deadline: Deadline,
    caller: AbortSignal,
    send: (token: string) => Promise<Answer>,
    read: (answer: Answer) => T,
  ): Promise<T> {
    let token = await this.tokens.get(deadline);
    let isFirstToken = true;

    const attempt = async () => {
      checkThere(caller);
      try {
        let answer = await send(token);
        if (answer.status === 401 && isFirstToken) {
          isFirstToken = false;
          token = await this.tokens.get(deadline, token);
          checkThere(caller);
          answer = await send(token);
        }
        return read(answer);
      } catch (error) {
        if (!(error instanceof Unreachable)) throw error;
        throw unavailable("Dataverse does not answer", { upstream: error.reason, repeatable: true });
      }
    };
    return await withRepeats(attempt, { most: MOST_REPEATS, deadline, runtime: this.runtime, caller });
  }

  #call(
    url: string,
    init: { method: string; headers: Record<string, string>; body?: string },
    token: string,
    deadline: Deadline,
    longestBytes?: number,
  ): Promise<Answer> {
    const headers = {
      "Authorization": `Bearer ${token}`,
      "Accept": "application/json",
      "OData-MaxVersion": "4.0",
      "OData-Version": "4.0",
      ...init.headers,
    };
    return call(url, { ...init, headers }, Math.min(this.limits.dataverse, deadline.left), longestBytes);
  }
}

/** Raise if the caller has disconnected, because it may have sent a newer value since. */
function checkThere(caller: AbortSignal): void {
  if (caller.aborted) throw new Rejection("request_timeout", "the caller has gone");
}

/** Return the stored values of a success. Raises the Rejection of the table at the top. */
function judge(answer: Answer, contactId: string, services: Services): Push {
  const { status, retryAfterSeconds } = answer;
  if (status === 200) return readStored(answer, contactId, services);
  const { code, message, isOurs, said, upstream } = readError(answer);
  if (status === 502 || status === 504) {
    throw unknown(`a gateway got no answer from Dataverse (${said})`, upstream, retryAfterSeconds);
  }
  if (status === 503) {
    throw unavailable(`Dataverse does not work (${said})`, { upstream, retryAfterSeconds, repeatable: true });
  }
  if (status === 404 && isOurs && isAboutContact(code, message, contactId)) {
    throw new Rejection("contact_not_found", "Dynamics has no contact with this id", { upstream });
  }
  if (code === PLUGIN_ABORTED) {
    throw rejected(`a plug-in or workflow in Dynamics rejected this contact (${said})`, upstream);
  }
  if (status === 404 && code === OBJECT_DOES_NOT_EXIST) {
    throw rejected(`something that belongs to this contact is missing in Dynamics (${said})`, upstream);
  }
  if (status === 403 && code === NO_ACCESS_TO_RECORD) {
    throw rejected(`the application user may write contacts, but not this one (${said}); widen its role`, upstream);
  }
  if (status === 403) throw misconfigured(`the application user may not write contacts (${said})`, upstream);
  if (status === 400 && isOurs) {
    throw rejected(`Dynamics rejected the change of this contact (${said})`, upstream);
  }
  if (status < 400 || status === 400 || status === 404) {
    throw misconfigured(`what answers is not Dataverse's contacts (${said}); check DYNAMICS_URL`, upstream);
  }
  throw unavailable(`Dataverse could not do it (${said})`, { upstream, retryAfterSeconds });
}

function readStored({ content }: Answer, contactId: string, services: Services): Push {
  if (readContactId(content) !== contactId) throw noContacts();
  const visible = content?.[services.visibilityField];
  if (typeof visible !== "boolean") {
    throw misconfigured("DYNAMICS_VISIBILITY_FIELD is not a yes/no column", "dataverse 200");
  }
  return { contactId, visible, visibleUntil: readVisibleUntil(content, services) };
}

/**
 * Return whether the contact does not exist. Some versions send only a message, without a code. A plug-in can raise the
 * same error about another record.
 */
function isAboutContact(code: string, message: string, contactId: string): boolean {
  const text = message.toLowerCase();
  if (code === OBJECT_DOES_NOT_EXIST) return text.includes(contactId) || !ANY_ID.test(text);
  return code === "" && text.includes(contactId) && text.includes("does not exist");
}

function rejected(message: string, upstream: string): Rejection {
  return new Rejection("dynamics_rejected", message, { upstream });
}

function unknown(message: string, upstream: string, retryAfterSeconds?: number): Rejection {
  return new Rejection("outcome_unknown", `${message}; it may be done, or be done later`, {
    upstream,
    retryAfterSeconds,
  });
}

function unavailable(
  message: string,
  details: { upstream: string; retryAfterSeconds?: number | undefined; repeatable?: boolean },
): Rejection {
  return new Rejection("dynamics_unavailable", message, details);
}
