/**
 * Read a page of the contacts that the portal shows.
 *
 *     Dataverse's answer                                       rejection
 *     200 with contacts                                        none
 *     429                                                      throttled, with its Retry-After
 *     400 to a cursor, unless it is about the column           invalid_request
 *     401 (after a new token), 403, any other 400, 404, 3xx;
 *       a 2xx without a list of contacts; a next page
 *       without a paging cookie                                misconfigured
 *     everything else, no answer in time                       repeated; then dynamics_unavailable
 *
 * The function retries after every temporary error, because reading has no effect.
 */

import type { Services } from "./config.ts";
import { columns, noContacts, readContactId, readVisibleUntil } from "./contact.ts";
import { misconfigured, readError } from "./dataverse_error.ts";
import { Rejection } from "./rejection.ts";
import type { Answer } from "./upstream.ts";

const LONGEST_CURSOR = 4096;

/** Visible contacts, and the cursor of the next page. */
export interface Page {
  /** The contact ID in lower case, and the last visible day if the portal has a column for it. */
  readonly contacts: readonly { readonly contact_id: string; readonly visible_until: string | null }[];
  /** `after` of the next request; null: this is the last page. */
  readonly next: string | null;
}

/** Return the cursor of a request; null for the first page. Raises Rejection if the function did not make it. */
export function readCursor(query: URLSearchParams): string | null {
  const names = [...query.keys()];
  const isKnown = names.every((name) => name === "visible" || name === "after") && new Set(names).size === names.length;
  if (!isKnown || query.get("visible") !== "true") {
    throw new Rejection("invalid_request", "expected ?visible=true, and &after=<cursor> of the page before");
  }
  const cursor = query.get("after");
  if (cursor !== null) skipToken(cursor);
  return cursor;
}

/** Return the URL of a page. Sorted by id, a contact that appears or disappears between two pages moves no other. */
export function pageUrl(services: Services, after: string | null): string {
  const filter = encodeURIComponent(`${services.visibilityField} eq true and statecode eq 0`);
  const query = `$select=${columns(services.visibleUntilField)}&$filter=${filter}&$orderby=contactid`;
  const url = `${services.dynamicsUrl}/api/data/v9.2/contacts?${query}`;
  return after === null ? url : `${url}&$skiptoken=${skipToken(after)}`;
}

/** Return the page. Raises the Rejection of the table at the top. */
export function judgePage(answer: Answer, after: string | null, services: Services): Page {
  const { status, content } = answer;
  if (status === 200) return readPage(content, services);
  const { said, upstream } = readError(answer);
  if (status === 403) throw misconfigured(`the application user may not read contacts (${said})`, upstream);
  if (status === 400 && after !== null) {
    throw new Rejection("invalid_request", `Dataverse does not take this cursor (${said}); begin anew`, { upstream });
  }
  if (status === 400) {
    throw misconfigured(`Dataverse did not list the contacts (${said}); check the names of the columns`, upstream);
  }
  if (status < 400 || status === 404) {
    throw misconfigured(`what answers is not Dataverse's contacts (${said}); check DYNAMICS_URL`, upstream);
  }
  const details = { upstream, retryAfterSeconds: answer.retryAfterSeconds, repeatable: true };
  throw new Rejection("dynamics_unavailable", `Dataverse could not list contacts (${said})`, details);
}

function readPage(content: Record<string, unknown> | undefined, services: Services): Page {
  const rows = content?.value;
  const link = content?.["@odata.nextLink"] ?? null;
  if (!Array.isArray(rows) || (link !== null && typeof link !== "string")) throw noContacts();
  const contacts = rows.map((row: unknown) => {
    return { contact_id: readContactId(row), visible_until: readVisibleUntil(row, services) };
  });
  return { contacts, next: link === null ? null : cursorOf(link) };
}

/** Return the $skiptoken of a next link in Base64url. The link contains addresses, so the caller gets no more of it. */
function cursorOf(link: string): string {
  const written = link.match(/[?&](?:\$|%24)skiptoken=([^&#]*)/)?.[1] ?? "";
  const token = written.replace(/[^\x21-\x7e]/g, encodeURIComponent);
  if (!/pagingcookie="[^"]/.test(decoded(token))) {
    // Source: Microsoft, "Page results using FetchXml": simple paging.
    throw misconfigured("Dataverse pages without a cookie, and would end at 50,000 contacts", "dataverse 200");
  }
  const cursor = btoa(token).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
  if (cursor.length > LONGEST_CURSOR) throw misconfigured("Dataverse's cursor is too long", "dataverse 200");
  return cursor;
}

/** Return the $skiptoken of a cursor that `cursorOf` made. */
function skipToken(cursor: string): string {
  if (cursor.length <= LONGEST_CURSOR && /^[A-Za-z0-9_-]+$/.test(cursor) && cursor.length % 4 !== 1) {
    const token = atob(cursor.replaceAll("-", "+").replaceAll("_", "/"));
    if (/^[\x21-\x7e]+$/.test(token) && !/[&#]/.test(token)) return token;
  }
  throw new Rejection("invalid_request", "after is not a cursor of this function");
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}
