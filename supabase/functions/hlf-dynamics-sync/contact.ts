/** The columns of a contact that the function reads, and their values in an answer of Dataverse. */

import type { Services } from "./config.ts";
import { misconfigured } from "./dataverse_error.ts";
import type { Rejection } from "./rejection.ts";
import { isObject } from "./upstream.ts";

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;
const DAY = /^\d{4}-\d\d-\d\d$/;

/** Return the contact ID of a row in lower case. Raises Rejection (misconfigured). */
export function readContactId(row: unknown): string {
  const id = isObject(row) && typeof row.contactid === "string" ? row.contactid.toLowerCase() : "";
  if (!UUID.test(id)) throw noContacts();
  return id;
}

/** Return the last visible day of a row; null if it is empty or the portal has no such column. Raises Rejection. */
export function readVisibleUntil(row: unknown, services: Services): string | null {
  if (services.visibleUntilField === null || !isObject(row)) return null;
  const value = row[services.visibleUntilField] ?? null;
  if (value === null) return null;
  // Dataverse writes a column with another behaviour as a time, such as 2027-03-10T00:00:00Z.
  if (typeof value === "string" && DAY.test(value)) return value;
  throw misconfigured("DYNAMICS_VISIBLE_UNTIL_FIELD is not a column with the behaviour Date Only", "dataverse 200");
}

/** Return the columns to select: the contact ID and all others that are configured. */
export function columns(...others: (string | null)[]): string {
  return ["contactid", ...others.filter((name) => name !== null)].join(",");
}

export function noContacts(): Rejection {
  return misconfigured("what answers is not Dataverse's contacts (200); check DYNAMICS_URL", "dataverse 200");
}
