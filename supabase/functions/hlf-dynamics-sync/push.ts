/** What a caller asks for, read from a request that may be anything. */

import { readText } from "./body.ts";
import { Refusal } from "./refusal.ts";
import { parseObject } from "./upstream.ts";

const LONGEST_BODY_BYTES = 10_000;
const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

export interface Push {
  /** In lower case. */
  readonly contactId: string;
  readonly visible: boolean;
}

/** Read a POST's body. Raises Refusal: invalid_request, too_large or request_timeout. */
export async function readPush(request: Request, milliseconds: number): Promise<Push> {
  const type = request.headers.get("Content-Type")?.split(";")[0]?.trim().toLowerCase();
  if (type !== "application/json") throw new Refusal("invalid_request", "Content-Type must be application/json");
  const { text, isCut } = await readBody(request, milliseconds);
  if (isCut) throw new Refusal("too_large", `at most ${LONGEST_BODY_BYTES} bytes`);
  const content = parseObject(text);
  const contactId = typeof content?.contact_id === "string" ? content.contact_id.toLowerCase() : "";
  if (!UUID.test(contactId) || typeof content?.visible !== "boolean") {
    throw new Refusal("invalid_request", 'expected {"contact_id": "<uuid>", "visible": true or false}');
  }
  return { contactId, visible: content.visible };
}

async function readBody(request: Request, milliseconds: number): Promise<{ text: string; isCut: boolean }> {
  try {
    return await readText(request.body, { bytes: LONGEST_BODY_BYTES, signal: AbortSignal.timeout(milliseconds) });
  } catch {
    // Not invalid_request: certjob would block the mentor for what the network did.
    throw new Refusal("request_timeout", "the body did not arrive");
  }
}
