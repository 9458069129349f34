/** Check the caller's key in constant time. */

/** Return whether the request has one of the keys. Without keys, no request has. */
export async function isAuthorized(request: Request, keys: readonly string[]): Promise<boolean> {
  const given = await digest(bearer(request.headers.get("Authorization")));
  let matches = 0;
  for (const expected of await Promise.all(keys.map(digest))) matches += equals(given, expected);
  return matches > 0;
}

function bearer(header: string | null): string {
  return header?.match(/^Bearer +(\S+)$/i)?.[1] ?? "";
}

/** Return a digest. Digests have one length, so the time of a comparison does not depend on the key. */
async function digest(text: string): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text)));
}

/** Return 1 if all bytes are equal, else 0. It always compares all of them. */
function equals(one: Uint8Array, other: Uint8Array): number {
  let difference = 0;
  one.forEach((byte, index) => difference |= byte ^ (other[index] ?? 0));
  return Number(difference === 0);
}
