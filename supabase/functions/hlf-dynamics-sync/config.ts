/** Read the function's settings once. A missing or unusable setting becomes a sentence, not a crash. */

export interface Services {
  /** The address of Entra for tokens, with the tenant. */
  readonly tokenUrl: string;
  readonly clientId: string;
  readonly clientSecret: string;
  /** Dataverse's own address, without a path. */
  readonly dynamicsUrl: string;
  /** The contact's yes/no column that the portal reads. */
  readonly visibilityField: string;
  /** The contact's date column with the last visible day; null if the portal has none. */
  readonly visibleUntilField: string | null;
  /** The last day of the client secret, `unusable`, or null if it is not set. A wrong one must not stop the pushes. */
  readonly secretUntil: string | null;
}

export interface Config {
  /** The valid keys: one, or two during a change of keys. */
  readonly keys: readonly string[];
  /** Entra and Dataverse; null if there are `problems`. */
  readonly services: Services | null;
  /** One sentence for each setting that is missing or unusable; names, never values. */
  readonly problems: readonly string[];
}

const USUAL_AUTHORITY = "https://login.microsoftonline.com";
/** Characters of a key. A caller with a shorter key, which can be guessed, gets misconfigured. */
const SHORTEST_KEY = 32;
const LOOPBACK = new Set(["127.0.0.1", "localhost", "[::1]"]);

/** Read the settings from the environment. */
export function readConfig(environment: (name: string) => string | undefined): Config {
  const problems: string[] = [];

  function read(name: string, isUsable: (value: string) => boolean = () => true): string {
    const value = environment(name)?.trim() ?? "";
    if (value === "") problems.push(`${name} is not set`);
    else if (!isUsable(value)) problems.push(`${name} is not usable`);
    return value;
  }

  const words = (environment("HLF_SYNC_KEY") ?? "").split(",").map((word) => word.trim()).filter((word) => word !== "");
  const keys = words.filter((word) => /^[\x21-\x7e]+$/.test(word)); // other characters are invalid in a header
  if (keys.length === 0) problems.push(`HLF_SYNC_KEY is not ${words.length === 0 ? "set" : "usable"}`); // for the log
  if (keys.some((key) => key.length < SHORTEST_KEY)) {
    problems.push(`HLF_SYNC_KEY has fewer than ${SHORTEST_KEY} characters`);
  }
  const tenant = read("AZURE_TENANT_ID", (value) => /^[A-Za-z0-9.-]+$/.test(value)); // an id, or a domain
  const authority = environment("AZURE_AUTHORITY")?.trim() ? read("AZURE_AUTHORITY", isSafeUrl) : USUAL_AUTHORITY;
  const secretUntil = environment("AZURE_CLIENT_SECRET_UNTIL")?.trim() ?? "";
  const services: Services = {
    tokenUrl: `${withoutSlash(authority)}/${tenant}/oauth2/v2.0/token`,
    clientId: read("AZURE_CLIENT_ID"),
    clientSecret: read("AZURE_CLIENT_SECRET"),
    dynamicsUrl: withoutSlash(read("DYNAMICS_URL", (value) => isSafeUrl(value) && new URL(value).pathname === "/")),
    visibilityField: read("DYNAMICS_VISIBILITY_FIELD", (value) => /^[A-Za-z][A-Za-z0-9_]*$/.test(value)),
    visibleUntilField: environment("DYNAMICS_VISIBLE_UNTIL_FIELD")?.trim()
      ? read("DYNAMICS_VISIBLE_UNTIL_FIELD", isCustomColumn)
      : null,
    secretUntil: secretUntil === "" || isDay(secretUntil) ? secretUntil || null : "unusable",
  };
  return { keys, services: problems.length === 0 ? services : null, problems };
}

/** Return whether this is a URL without a query, over TLS unless it is on this machine. Secrets are sent to it. */
function isSafeUrl(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const url = new URL(text);
  if (url.search !== "" || url.hash !== "" || url.username !== "" || url.password !== "") return false;
  return url.protocol === "https:" || (url.protocol === "http:" && LOOPBACK.has(url.hostname));
}

/** Return whether the column has a prefix. Dynamics' own dates, such as `birthdate`, have none. */
function isCustomColumn(name: string): boolean {
  return /^[A-Za-z][A-Za-z0-9]*_[A-Za-z0-9_]+$/.test(name);
}

/** Return whether this is a day such as 2027-03-10. */
function isDay(text: string): boolean {
  const day = new Date(`${text}T00:00:00Z`);
  return /^\d{4}-\d{2}-\d{2}$/.test(text) && !Number.isNaN(day.valueOf()) && day.toISOString().startsWith(text);
}

function withoutSlash(url: string): string {
  return url.replace(/\/+$/, "");
}
