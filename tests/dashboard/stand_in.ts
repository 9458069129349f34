// A stand-in for Supabase: the page's files, a login, PostgREST and Realtime in front of a real PostgreSQL.
// Each request runs with the role and the claims of its token, as on Supabase, so policies and grants decide.
import postgres from "postgres";

type Claims = { sub?: string; role: string; email?: string };
type Change = { id: number; event: string; schema: string; table?: string };
type Subscription = { socket: WebSocket; topic: string; claims: Claims; changes: Change[]; send: Send };
type Send = (event: string, payload: unknown, ref?: string | null) => void;
type Relation = { schema: string; table: string; columns: string[] };

const [connection, page, userList] = Deno.args;
const users: { id: string; email: string; password: string }[] = JSON.parse(userList);
const options = { ...JSON.parse(connection), onnotice: () => {} };
const database = postgres({ ...options, max: 6 });
const log = postgres({ ...options, max: 1, idle_timeout: 0 }); // one session, because its slot is temporary
const tokens = new Map<string, Claims>();
const ANON: Claims = { role: "anon" };
const HEADERS = { "access-control-allow-origin": "*", "access-control-allow-headers": "*" };

const name = (text: string) => {
  if (!/^[a-z_][a-z0-9_]*$/.test(text)) throw new Error(`not a name: ${text}`);
  return `"${text}"`;
};

// Run one statement as the user of a request; return its rows as PostgreSQL writes them in JSON.
function as(claims: Claims, statement: string, values: unknown[] = []) {
  return database.begin(async (session) => {
    await session.unsafe(`SET LOCAL ROLE ${name(claims.role)}`);
    await session`SELECT set_config('request.jwt.claims', ${JSON.stringify(claims)}, true)`;
    return await session.unsafe(statement, values as string[]);
  });
}

function json(body: unknown, status = 200, headers = {}) {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  const all = { "content-type": "application/json", ...HEADERS, ...headers };
  return new Response(status === 204 ? null : text, { status, headers: all });
}

async function logIn(request: Request) {
  const { email, password } = await request.json();
  const user = users.find((each) => each.email === email && each.password === password);
  if (!user) return json({ error_code: "invalid_credentials", msg: "Invalid login credentials" }, 400);
  const now = Math.floor(Date.now() / 1000);
  const claims = { sub: user.id, role: "authenticated", email, aud: "authenticated", iat: now, exp: now + 3600 };
  const token = ["{}", JSON.stringify(claims), crypto.randomUUID()].map(btoa).join(".");
  tokens.set(token, claims);
  const about = {
    id: user.id,
    email,
    aud: "authenticated",
    role: "authenticated",
    app_metadata: {},
    user_metadata: {},
  };
  return json({ access_token: token, token_type: "bearer", expires_in: 3600, refresh_token: "none", user: about });
}

const claimsOf = (token: string | null) => tokens.get((token ?? "").replace(/^Bearer /, "")) ?? ANON;

async function rest(request: Request, url: URL) {
  const claims = claimsOf(request.headers.get("authorization"));
  const reads = request.method === "GET" || request.method === "HEAD";
  const schema = request.headers.get(reads ? "accept-profile" : "content-profile") ?? "public";
  const target = url.pathname.slice("/rest/v1/".length);
  const body = reads ? {} : await request.json();
  const values: unknown[] = [];
  const place = (value: unknown) => `$${values.push(value)}`;
  if (target.startsWith("rpc/")) {
    const given = Object.entries(body).map(([key, value]) => `${name(key)} => ${place(value)}`);
    const call = `${name(schema)}.${name(target.slice(4))}(${given})`;
    const rows = await as(claims, `SELECT to_json(t) AS answer FROM ${call} AS t`, values);
    const [{ is_set }] = await database`SELECT proretset AS is_set FROM pg_proc WHERE proname = ${target.slice(4)}`;
    const wantsOne = request.headers.get("accept")?.includes("vnd.pgrst.object") || !is_set;
    return json(wantsOne ? rows[0].answer : rows.map((row) => row.answer));
  }
  const table = `${name(schema)}.${name(target)}`;
  const comparisons: Record<string, string> = { eq: "=", neq: "<>" };
  const filters = [...url.searchParams].map(([key, value]) => [key, ...value.split(/\.(.*)/)])
    .filter(([, comparison]) => comparison in comparisons);
  const where = () =>
    ["true", ...filters.map(([key, which, value]) => `${name(key)} ${comparisons[which]} ${place(value)}`)]
      .join(" AND ");
  const columns = (url.searchParams.get("select") ?? "").split(",").filter(Boolean).map((each) => name(each.trim()));
  if (request.method === "PATCH") {
    const set = Object.entries(body).map(([key, value]) => `${name(key)} = ${place(value)}`);
    const returned = columns.length ? `RETURNING ${columns}` : "";
    const rows = await as(claims, `UPDATE ${table} SET ${set} WHERE ${where()} ${returned}`, values);
    return columns.length ? json(rows) : json("", 204);
  }
  const order = (url.searchParams.get("order") ?? "").replace(".asc", "");
  const query = `SELECT ${columns} FROM ${table} WHERE ${where()} ${order && `ORDER BY ${name(order)}`}`;
  const answers = `(SELECT coalesce(json_agg(t), '[]') FROM (TABLE found LIMIT 1000) AS t)::text AS answer`;
  const counted = `WITH found AS (${query}) SELECT ${answers}, (SELECT count(*) FROM found)::integer AS number`;
  const [{ answer, number }] = await as(claims, counted, values);
  const range = `0-${Math.min(number, 1000) - 1}/${number}`;
  return json(answer, 200, { "content-range": range, "access-control-expose-headers": "*" });
}

async function file(path: string, origin: string) {
  const wanted = path === "/" ? "/index.html" : path;
  const library = "node_modules/@supabase/supabase-js/dist/umd/supabase.js";
  try {
    const content = await Deno.readTextFile(wanted === "/supabase.js" ? library : page + wanted);
    const types: Record<string, string> = { html: "text/html", js: "text/javascript", json: "application/json" };
    const headers = { "content-type": `${types[wanted.split(".").pop()!]}; charset=utf-8` };
    const configured = content.replaceAll("https://PROJECT.supabase.co", origin)
      .replace("wss://PROJECT.supabase.co", origin.replace("http", "ws"));
    return new Response(configured, { headers });
  } catch {
    return json({}, 404);
  }
}

// PostgreSQL's errors as PostgREST answers them. A missing right of a visitor is a missing login.
function failure(error: unknown, claims: Claims) {
  if (!(error instanceof postgres.PostgresError)) throw error;
  const { code, message, hint, detail } = error;
  const status = { "42501": claims === ANON ? 401 : 403, "23505": 409 }[code] ?? 400;
  return json({ code, message, hint: hint ?? null, details: detail ?? null }, status);
}

// Realtime: subscribers of changes to tables of the publication, in the form of Phoenix channels.
const subscriptions = new Set<Subscription>();

function realtime(request: Request) {
  const { socket, response } = Deno.upgradeWebSocket(request);
  socket.onmessage = ({ data }) => {
    const [joinRef, ref, topic, event, payload] = JSON.parse(data);
    const send: Send = (kind, content, to = ref) => socket.send(JSON.stringify([joinRef, to, topic, kind, content]));
    if (event === "phx_join") {
      const asked: Change[] = payload.config?.postgres_changes ?? [];
      const changes = asked.map((each, index) => ({ ...each, id: index + 1 }));
      subscriptions.add({ socket, topic, claims: claimsOf(payload.access_token), changes, send });
      send("phx_reply", { status: "ok", response: { postgres_changes: changes } });
      const message = {
        channel: topic,
        extension: "postgres_changes",
        status: "ok",
        message: "Subscribed to PostgreSQL",
      };
      send("system", message, null);
    } else if (event === "phx_leave" || event === "heartbeat") send("phx_reply", { status: "ok", response: {} });
  };
  socket.onclose = () => subscriptions.forEach((each) => each.socket === socket && subscriptions.delete(each));
  return response;
}

const relations = new Map<number, Relation>();

// Read a message of the plug-in pgoutput, version 1: a description of a table, or a changed row of one.
function parse(bytes: Uint8Array) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const text = (length: number) => new TextDecoder().decode(bytes.subarray(at, at += length));
  const word = () => [text(bytes.indexOf(0, at) - at), at++][0] as string;
  const short = () => view.getInt16((at += 2) - 2);
  const long = () => view.getInt32((at += 4) - 4);
  const row = (columns: string[]) => {
    short(); // the number of columns
    return Object.fromEntries(columns.map((each) => [each, text(1) === "t" ? text(long()) : null]));
  };
  const kind = text(1);
  if (kind === "R") {
    const [id, schema, table] = [long(), word(), word()];
    at += 1; // the replica identity
    const columns = Array.from({ length: short() }, () => [at += 1, word(), long(), long()][1] as string);
    relations.set(id, { schema, table, columns });
  }
  const type = { I: "INSERT", U: "UPDATE" }[kind];
  if (!type) return null;
  const relation = relations.get(long())!;
  if (text(1) !== "N") [row(relation.columns), text(1)];
  return { ...relation, type, record: row(relation.columns) };
}

// Send each change to the subscribers who may read the row.
async function publish() {
  const slot = "'stand_in', NULL, NULL, 'proto_version', '1', 'publication_names', 'supabase_realtime'";
  for (const { data } of await log.unsafe(`SELECT data FROM pg_logical_slot_get_binary_changes(${slot})`)) {
    const change = parse(data);
    if (!change) continue;
    const { schema, table, type, record, columns } = change;
    for (const { claims, changes, send } of subscriptions) {
      const wanted = changes.filter((each) => each.event === type && each.schema === schema && each.table === table);
      const statement = `SELECT FROM ${name(schema)}.${name(table)} WHERE id = $1`;
      const readable = await as(claims, statement, [record.id]).then((rows) => rows.length > 0, () => false);
      const about = { schema, table, type, record, columns: columns.map((each) => ({ name: each, type: "text" })) };
      const data = { ...about, old_record: {}, errors: null, commit_timestamp: new Date().toISOString() };
      if (wanted.length && readable) send("postgres_changes", { ids: wanted.map((each) => each.id), data }, null);
    }
  }
  setTimeout(publish, 100);
}

export async function serve(): Promise<string> {
  await log`SELECT pg_create_logical_replication_slot('stand_in', 'pgoutput', true)`;
  publish();
  const server = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen: () => {} }, async (request) => {
    const url = new URL(request.url);
    if (request.method === "OPTIONS") return new Response(null, { headers: HEADERS });
    try {
      if (url.pathname.startsWith("/realtime/")) return realtime(request);
      if (url.pathname === "/auth/v1/token") return await logIn(request);
      if (url.pathname.startsWith("/auth/")) return json({});
      if (url.pathname.startsWith("/rest/")) return await rest(request, url);
      return await file(url.pathname, url.origin);
    } catch (error) {
      return failure(error, claimsOf(request.headers.get("authorization")));
    }
  });
  return `http://127.0.0.1:${server.addr.port}`;
}
