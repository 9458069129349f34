/** Entra and Dataverse as scripted HTTP servers on loopback, and the function that calls them. */

import { type Config, readConfig } from "../config.ts";
import { makeHandler } from "../handler.ts";
import { LIMITS, type Limits, type Runtime } from "../runtime.ts";

export const KEY = "planted-sync-key-of-thirty-two-letters";
export const CONTACT = "6f9619ff-8b86-4d01-b42d-00cf4fc964ff";
export const SECRET = "planted~client-secret";
/** The setting for the date column. */
export const WITH_DATES = { DYNAMICS_VISIBLE_UNTIL_FIELD: "hlf_visibleuntil" };

/** The answer to one request. */
export type Behaviour = (request: Seen, signal: AbortSignal) => Response | Promise<Response>;

/** A received request. */
export interface Seen {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly headers: Headers;
  readonly body: string;
}

/** A server that takes one step of its script per request, then `otherwise`. */
export class Fake implements AsyncDisposable {
  readonly requests: Seen[] = [];
  readonly #steps: Behaviour[] = [];
  readonly #server: Deno.HttpServer<Deno.NetAddr>;

  constructor(public otherwise: Behaviour) {
    this.#server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, async (request) => {
      const { pathname, searchParams } = new URL(request.url);
      const { method, headers } = request;
      const seen = { method, path: pathname, query: searchParams, headers, body: await request.text() };
      this.requests.push(seen);
      return await (this.#steps.shift() ?? this.otherwise)(seen, request.signal);
    });
  }

  get url(): string {
    return `http://127.0.0.1:${this.#server.addr.port}`;
  }

  /** Append to the script. */
  then(...steps: Behaviour[]): void {
    this.#steps.push(...steps);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#server.shutdown();
  }
}

/** A port that rejects connections and that no other process can take, because an open connection uses it. */
export class Nowhere implements Disposable {
  private constructor(readonly listener: Deno.TcpListener, readonly connection: Deno.TcpConn) {}

  static async find(): Promise<Nowhere> {
    const listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
    return new Nowhere(listener, await Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port }));
  }

  get url(): string {
    return `http://127.0.0.1:${this.connection.localAddr.port}`;
  }

  [Symbol.dispose](): void {
    this.connection.close();
    this.listener.close();
  }
}

/** Answer with a status, JSON or a string, and headers. */
export function says(status: number, content?: unknown, headers: Record<string, string> = {}): Behaviour {
  const body = content === undefined || typeof content === "string" ? content ?? null : JSON.stringify(content);
  return () => new Response(body, { status, headers: { "Content-Type": "application/json", ...headers } });
}

/** Store a change, and answer with the selected columns of the contact, as Dataverse does. */
export const stores: Behaviour = ({ path, query, body }) => {
  const contact = { contactid: path.match(/\((.+)\)/)?.[1], ...JSON.parse(body) };
  const selected = query.get("$select")?.split(",") ?? Object.keys(contact);
  const content = Object.fromEntries(selected.map((name) => [name, contact[name] ?? null]));
  return Response.json({ "@odata.context": "http://x/$metadata#contacts/$entity", ...content });
};

/** Answer with an error in Dataverse's form. */
export function dataverseError(status: number, code: string, message = "for a reason", headers = {}): Behaviour {
  return says(status, { error: { code, message } }, headers);
}

/** Answer with an error in Entra's form. */
export function entraError(status: number, error: string, number: number, headers = {}): Behaviour {
  const text = `AADSTS${number}: The secret '${SECRET}' of Kari Nordmann.`;
  return says(status, { error, error_description: text, error_codes: [number] }, headers);
}

/** Wait until the caller disconnects. */
export const hangs: Behaviour = (_request, signal) =>
  new Promise((resolve) => signal.addEventListener("abort", () => resolve(new Response())));

/** Start an answer that never ends. */
export const drips: Behaviour = (_request, signal) => {
  const body = new ReadableStream({
    start(controller) {
      controller.enqueue(new TextEncoder().encode("{"));
      signal.addEventListener("abort", () => controller.close());
    },
  });
  return new Response(body, { status: 200 });
};

/** Answer with the tokens 1, 2, …, valid for so many seconds. */
export function tokens(expiresIn: number | string = 3600): Behaviour {
  let number = 0;
  return () =>
    Response.json({ token_type: "Bearer", expires_in: expiresIn, access_token: `planted-token-${++number}` });
}

/** The contacts as Dataverse lists them: sorted by id, each page with a cookie of its last contact. */
export class Contacts {
  /** The contacts with the value of the column. */
  readonly all = new Map<string, boolean | null>();
  /** The values of the column `hlf_visibleuntil`. */
  readonly days = new Map<string, string>();
  /** Called before each page. */
  before: (page: number) => void = () => {};
  #pages = 0;

  constructor(readonly pageSize: number, ...visible: string[]) {
    for (const id of visible) this.all.set(id, true);
  }

  readonly answer: Behaviour = (request) => {
    this.before(++this.#pages);
    const cookie = request.query.get("$skiptoken");
    const last = cookie?.match(/last%3d%22%7b([0-9a-f-]+)%7d/i)?.[1] ?? "";
    if (cookie !== null && last === "") return dataverseError(400, "0x80040203", "Malformed cookie")(request, never);
    const ids = [...this.all].filter(([id, visible]) => visible && id > last.toLowerCase()).map(([id]) => id).sort();
    const hasDay = request.query.get("$select") === "contactid,hlf_visibleuntil";
    const value = ids.slice(0, this.pageSize).map((contactid) => {
      const day = hasDay ? { hlf_visibleuntil: this.days.get(contactid) ?? null } : {};
      return { "@odata.etag": 'W/"1"', contactid, ...day };
    });
    const content: Record<string, unknown> = { "@odata.context": "http://x/$metadata#contacts(contactid)", value };
    if (ids.length > this.pageSize) content["@odata.nextLink"] = nextLink(value.at(-1)?.contactid ?? "");
    return Response.json(content);
  };
}

const never = new AbortController().signal;

/** A next link as in Microsoft's documentation, with the address of the organisation. */
export function nextLink(last: string): string {
  const inner = encodeURIComponent(`<cookie page="1"><contactid last="{${last.toUpperCase()}}" /></cookie>`)
    .replaceAll("%3C", "%3c").replaceAll("%3D", "%3d").replaceAll("%7B", "%7b").replaceAll("%7D", "%7d");
  const cookie = encodeURIComponent(`<cookie pagenumber="2" pagingcookie="${inner}" istracking="False" />`);
  return `https://planted-organisation.crm4.dynamics.com/api/data/v9.2/contacts?$select=contactid&$skiptoken=${cookie}`;
}

/** A clock that tests and sleeps move, without real waits. */
export class FakeClock implements Runtime {
  readonly lines: string[] = [];
  readonly sleeps: number[] = [];
  #moved = 0;

  now(): number {
    return performance.now() + this.#moved;
  }

  sleep(milliseconds: number): Promise<void> {
    this.sleeps.push(milliseconds);
    this.move(milliseconds / 1000);
    return Promise.resolve();
  }

  move(seconds: number): void {
    this.#moved += seconds * 1000;
  }

  log(line: string): void {
    this.lines.push(line);
  }
}

/** A complete answer. */
export interface Got {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
  readonly code: string | undefined;
  readonly message: string | undefined;
  readonly retryAfter: string | null;
}

/** The function with Entra and Dataverse. */
export class Stage implements AsyncDisposable {
  readonly entra = new Fake(tokens());
  readonly dataverse = new Fake(stores);
  readonly clock = new FakeClock();
  readonly config: Config;
  readonly handler: (request: Request) => Promise<Response>;

  constructor(settings: Record<string, string> = {}, limits: Partial<Limits> = {}) {
    const environment: Record<string, string> = {
      HLF_SYNC_KEY: KEY,
      AZURE_TENANT_ID: "planted-tenant",
      AZURE_CLIENT_ID: "planted-client",
      AZURE_CLIENT_SECRET: SECRET,
      AZURE_AUTHORITY: this.entra.url,
      DYNAMICS_URL: this.dataverse.url,
      DYNAMICS_VISIBILITY_FIELD: "hlf_visible",
      ...settings,
    };
    this.config = readConfig((name) => environment[name]);
    this.handler = makeHandler(this.config, this.clock, { ...LIMITS, ...limits });
  }

  /** Send a push as certjob does; `init` overrides parts of the request. */
  push(init: RequestInit & { key?: string } = {}): Promise<Got> {
    const headers = new Headers({ "Content-Type": "application/json", "Idempotency-Key": "4711-2" });
    if (init.key !== "") headers.set("Authorization", `Bearer ${init.key ?? KEY}`);
    new Headers(init.headers).forEach((value, name) => headers.set(name, value));
    const body = JSON.stringify({ contact_id: CONTACT, visible: false, visible_until: null });
    const isBare = init.method === "GET" || init.method === "HEAD";
    return this.send({ method: "POST", ...(isBare ? {} : { body }), ...init, headers });
  }

  /** Request a page of the visible contacts. */
  list(query = "?visible=true", init: RequestInit & { key?: string } = {}): Promise<Got> {
    return this.send({ ...init, headers: { "Authorization": `Bearer ${init.key ?? KEY}` } }, query);
  }

  async send(init: RequestInit, query = ""): Promise<Got> {
    const response = await this.handler(new Request(`http://127.0.0.1/hlf-dynamics-sync${query}`, init));
    const text = await response.text();
    const error = text === "" ? undefined : JSON.parse(text).error;
    return {
      status: response.status,
      headers: response.headers,
      text,
      code: error?.code,
      message: error?.message,
      retryAfter: response.headers.get("Retry-After"),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.entra[Symbol.asyncDispose](), this.dataverse[Symbol.asyncDispose]()]);
  }
}
