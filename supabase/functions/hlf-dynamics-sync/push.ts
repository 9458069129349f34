/** Read the body of a POST, and validate it. */

import { readText } from "./body.ts";
import { Rejection } from "./rejection.ts";
import { parseObject } from "./upstream.ts";

const LONGEST_BODY_BYTES = 10_000;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
/** The view's filter reaches 100 years ahead; certjob sends 2099-12-31 for a later day. */
const DAY = /^20\d\d-\d\d-\d\d$/;

export interface Push {
  /** In lower case. */
  readonly contactId: string;
  readonly visible: boolean;
  /** The last day on which a visible contact is visible; null for a hidden one. */
  readonly visibleUntil: string | null;
}

/** Read a POST's body. Raises Rejection: invalid_request, too_large or request_timeout. */
export async function readPush(request: Request, milliseconds: number): Promise<Push> {
  const type = request.headers.get("Content-Type")?.split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json") throw new Rejection("invalid_request", "Content-Type must be application/json");
  const { text, isCut } = await readBody(request, milliseconds);
  if (isCut) throw new Rejection("too_large", `at most ${LONGEST_BODY_BYTES} bytes`);
  const content = parseObject(text);
  const contactId = typeof content?.contact_id === "string" ? content.contact_id.toLowerCase() : "";
  const visible = content?.visible;
  const visibleUntil = content?.visible_until;
  if (!UUID.test(contactId)) throw new Rejection("invalid_request", "contact_id is not a UUID");
  if (visible === true && isDay(visibleUntil)) return { contactId, visible, visibleUntil };
  if (visible === false && visibleUntil === null) return { contactId, visible, visibleUntil };
  throw new Rejection(
    "invalid_request",
    'expected "visible": true and "visible_until": "2027-03-10" (a day up to 2099), or false and null',
  );
}

/** Return whether this is a day of the calendar, up to 2099. */
function isDay(value: unknown): value is string {
  if (typeof value !== "string" || !DAY.test(value)) return false;
  const date = new Date(`${value}T00:00:00Z`);
  return !Number.isNaN(date.getTime()) && date.toISOString().startsWith(value); // 30 February becomes 2 March
}

async function readBody(request: Request, milliseconds: number): Promise<{ text: string; isCut: boolean }> {
  try {
    return await readText(request.body, { bytes: LONGEST_BODY_BYTES, signal: AbortSignal.timeout(milliseconds) });
  } catch {
    // Not invalid_request, because certjob would block the mentor although the network failed.
    throw new Rejection("request_timeout", "the body did not arrive");
  }
}
