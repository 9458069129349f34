/** The function's settings, read once; what is missing or unusable becomes a sentence, not a crash. */

export interface Services {
  /** Where the token comes from, the tenant included. */
  readonly tokenUrl: string;
  readonly clientId: string;
  readonly clientSecret: string;
  /** Dataverse's own address, without a path. */
  readonly dynamicsUrl: string;
  /** The contact's yes/no column that the portal goes by. */
  readonly visibilityField: string;
  /** The contact's date column after which the portal hides it; null where the portal has none. */
  readonly visibleUntilField: string | null;
}

export interface Config {
  /** Every key that lets a caller in: one, or two while they are being changed. */
  readonly keys: readonly string[];
  /** Entra and Dataverse; null as long as `problems` says why not. */
  readonly services: Services | null;
  /** One sentence for each setting that is missing or unusable; names, never values. */
  readonly problems: readonly string[];
}

const USUAL_AUTHORITY = "https://login.microsoftonline.com";
/** Characters of a key: a shorter one could be found by trying. It lets its caller in, but only to be told so. */
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
  const keys = words.filter((word) => /^[\x21-\x7e]+$/.test(word)); // what a header can carry
  if (keys.length === 0) problems.push(`HLF_SYNC_KEY is not ${words.length === 0 ? "set" : "usable"}`); // for the log
  if (keys.some((key) => key.length < SHORTEST_KEY)) {
    problems.push(`HLF_SYNC_KEY has fewer than ${SHORTEST_KEY} characters`);
  }
  const tenant = read("AZURE_TENANT_ID", (value) => /^[A-Za-z0-9.-]+$/.test(value)); // an id, or a domain
  const authority = environment("AZURE_AUTHORITY")?.trim() ? read("AZURE_AUTHORITY", isSafeUrl) : USUAL_AUTHORITY;
  const services: Services = {
    tokenUrl: `${withoutSlash(authority)}/${tenant}/oauth2/v2.0/token`,
    clientId: read("AZURE_CLIENT_ID"),
    clientSecret: read("AZURE_CLIENT_SECRET"),
    dynamicsUrl: withoutSlash(read("DYNAMICS_URL", (value) => isSafeUrl(value) && new URL(value).pathname === "/")),
    visibilityField: read("DYNAMICS_VISIBILITY_FIELD", (value) => /^[A-Za-z][A-Za-z0-9_]*$/.test(value)),
    visibleUntilField: environment("DYNAMICS_VISIBLE_UNTIL_FIELD")?.trim()
      ? read("DYNAMICS_VISIBLE_UNTIL_FIELD", isCustomColumn)
      : null,
  };
  return { keys, services: problems.length === 0 ? services : null, problems };
}

/** Whether secrets may travel there: an address without a query, over TLS unless it stays on this machine. */
function isSafeUrl(text: string): boolean {
  if (!URL.canParse(text)) return false;
  const url = new URL(text);
  if (url.search !== "" || url.hash !== "" || url.username !== "" || url.password !== "") return false;
  return url.protocol === "https:" || (url.protocol === "http:" && LOOPBACK.has(url.hostname));
}

/** A column of the programme's own has a prefix. Dynamics' own dates, such as `birthdate`, have none. */
function isCustomColumn(name: string): boolean {
  return /^[A-Za-z][A-Za-z0-9]*_[A-Za-z0-9_]+$/.test(name);
}

function withoutSlash(url: string): string {
  return url.replace(/\/+$/, "");
}
