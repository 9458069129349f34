/** The list of visible contacts by page, and the error of the contract for each of Dataverse's answers. */

import assert from "node:assert/strict";
import {
  type Behaviour,
  Contacts,
  dataverseError,
  drips,
  entraError,
  hangs,
  KEY,
  nextLink,
  says,
  Stage,
  WITH_DATES,
} from "./fake.ts";

const IDS = Array.from({ length: 7 }, (_, number) => `6f9619ff-8b86-4d01-b42d-00cf4fc9640${number}`);

/** Return the only page of a portal without a date column. */
function page(...ids: string[]): unknown {
  const contacts = ids.map((contact_id) => ({ contact_id, visible_until: null }));
  return { contacts, next: null, dates: false };
}

Deno.test("a page has the last day of the client secret", async () => {
  await using stage = new Stage({ AZURE_CLIENT_SECRET_UNTIL: "2027-03-10" });
  stage.dataverse.otherwise = new Contacts(3, ...IDS).answer;

  assert.equal(JSON.parse((await stage.list()).text).secret_until, "2027-03-10");
});

/** Read all pages, as certjob does. */
async function readAll(stage: Stage): Promise<{ ids: string[]; cursors: string[] }> {
  const ids: string[] = [];
  const cursors: string[] = [];
  for (let query = "?visible=true";;) {
    const answer = await stage.list(query);
    assert.equal(answer.status, 200, answer.text);
    const page = JSON.parse(answer.text);
    ids.push(...page.contacts.map((contact: { contact_id: string }) => contact.contact_id));
    if (page.next === null) return { ids, cursors };
    cursors.push(page.next);
    query = `?visible=true&after=${encodeURIComponent(page.next)}`;
  }
}

Deno.test("a page has 5,000 active contacts with the column", async () => {
  await using stage = new Stage();
  stage.dataverse.otherwise = new Contacts(5000, IDS[0]!).answer;

  const answer = await stage.list();

  assert.deepEqual([answer.status, JSON.parse(answer.text)], [200, page(IDS[0]!)]);
  const [request] = stage.dataverse.requests;
  assert.equal(`${request?.method} ${request?.path}`, "GET /api/data/v9.2/contacts");
  assert.deepEqual(Object.fromEntries(request!.query), {
    $select: "contactid",
    $filter: "hlf_visible eq true and statecode eq 0",
    $orderby: "contactid",
  });
  assert.equal(request?.headers.get("Prefer"), "odata.maxpagesize=5000");
  assert.equal(request?.body, "");
});

Deno.test("with a date column, each contact has its day", async () => {
  await using stage = new Stage(WITH_DATES);
  const contacts = new Contacts(3, ...IDS);
  contacts.days.set(IDS[0]!, "2027-03-10").set(IDS[6]!, "2099-12-31");
  stage.dataverse.otherwise = contacts.answer;

  const days: (string | null)[] = [];
  for (let query = "?visible=true";;) {
    const page = JSON.parse((await stage.list(query)).text);
    assert.equal(page.dates, true);
    days.push(...page.contacts.map((contact: { visible_until: string | null }) => contact.visible_until));
    if (page.next === null) break;
    query = `?visible=true&after=${page.next}`;
  }

  assert.deepEqual(days, ["2027-03-10", null, null, null, null, null, "2099-12-31"]);
  assert.equal(stage.dataverse.requests[2]?.query.get("$select"), "contactid,hlf_visibleuntil");
});

for (const value of ["2027-03-10T00:00:00Z", "Nordmann", 45, true]) {
  Deno.test(`a date column with the value ${value} is misconfigured`, async () => {
    await using stage = new Stage(WITH_DATES);
    stage.dataverse.otherwise = says(200, { value: [{ contactid: IDS[0], hlf_visibleuntil: value }] });

    const answer = await stage.list();

    assert.deepEqual([answer.status, answer.code], [500, "misconfigured"]);
    assert.match(answer.message ?? "", /DYNAMICS_VISIBLE_UNTIL_FIELD is not a column with the behaviour Date Only/);
    assert.ok(!answer.text.includes("Nordmann"));
  });
}

Deno.test("all pages together list every visible contact, and none with an empty column", async () => {
  await using stage = new Stage();
  const contacts = new Contacts(3, ...IDS);
  contacts.all.set(IDS[1]!, false).set(IDS[2]!, null);
  stage.dataverse.otherwise = contacts.answer;

  const { ids, cursors } = await readAll(stage);

  assert.deepEqual(ids, [IDS[0], IDS[3], IDS[4], IDS[5], IDS[6]]);
  assert.equal(new Set(cursors).size, 1);
});

Deno.test("a cursor is Dataverse's $skiptoken and contains no address", async () => {
  await using stage = new Stage();
  stage.dataverse.otherwise = new Contacts(3, ...IDS).answer;

  const { cursors } = await readAll(stage);

  for (const cursor of cursors) {
    assert.match(cursor, /^[A-Za-z0-9_-]{1,4096}$/);
    assert.doesNotMatch(atob(cursor.replaceAll("-", "+").replaceAll("_", "/")), /planted-organisation|https?:/);
  }
  const sent = stage.dataverse.requests[1]!.query.get("$skiptoken");
  assert.equal(sent, new URL(nextLink(IDS[2]!)).searchParams.get("$skiptoken"));
});

Deno.test("changes between two pages leave all other contacts listed once", async () => {
  await using stage = new Stage();
  const contacts = new Contacts(3, IDS[0]!, IDS[2]!, IDS[3]!, IDS[4]!, IDS[5]!);
  contacts.before = (page) => {
    if (page === 2) contacts.all.set(IDS[0]!, false).set(IDS[1]!, true).set(IDS[6]!, true).set(IDS[4]!, false);
  };
  stage.dataverse.otherwise = contacts.answer;

  const { ids } = await readAll(stage);

  assert.deepEqual(ids, [IDS[0], IDS[2], IDS[3], IDS[5], IDS[6]]);
});

Deno.test("a token that expires between two pages is replaced", async () => {
  await using stage = new Stage();
  const contacts = new Contacts(3, ...IDS);
  stage.dataverse.then(contacts.answer, says(401));
  stage.dataverse.otherwise = contacts.answer;

  const { ids } = await readAll(stage);

  assert.deepEqual(ids, IDS);
  assert.equal(stage.entra.requests.length, 2);
});

Deno.test("a page of 5,000 contacts is not too long", async () => {
  await using stage = new Stage();
  const many = Array.from({ length: 5000 }, () => crypto.randomUUID());
  stage.dataverse.otherwise = new Contacts(5000, ...many).answer;

  const answer = await stage.list();

  assert.deepEqual(JSON.parse(answer.text), page(...many.sort()));
});

for (const key of ["", "wrong"]) {
  Deno.test(`a list with the key "${key}" is unauthorized`, async () => {
    await using stage = new Stage();

    const answer = await stage.list("?visible=true", { key });

    assert.deepEqual([answer.status, answer.code], [401, "unauthorized"]);
    assert.equal(stage.entra.requests.length + stage.dataverse.requests.length, 0);
  });
}

const encoded = (text: string) => btoa(text).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
for (
  const query of [
    "?visible=false",
    "?visible=",
    "?visible",
    "?after=abc",
    "?visible=true&after=",
    "?visible=true&visible=true",
    "?visible=true&select=emailaddress1",
    "?visible=true&after=a",
    "?visible=true&after=%3Ccookie%3E",
    `?visible=true&after=${encoded("x&$select=emailaddress1")}`,
    `?visible=true&after=${encoded("x#")}`,
    `?visible=true&after=${encoded("x y")}`,
    `?visible=true&after=${encoded("\u0000")}`,
    `?visible=true&after=${"a".repeat(4097)}`,
    `?visible=true&after=abcd&after=efgh`,
  ]
) {
  Deno.test(`${query.slice(0, 60)} is an invalid request for a page`, async () => {
    await using stage = new Stage();

    const answer = await stage.list(query);

    assert.deepEqual([answer.status, answer.code], [400, "invalid_request"]);
    assert.equal(stage.entra.requests.length + stage.dataverse.requests.length, 0);
  });
}

const row = { contactid: IDS[0] };
const unknownColumn = "Could not find a property named 'x' on type 'Microsoft.Dynamics.CRM.contact'.";
for (
  const [what, behaviour, status, code, retryAfter, calls] of [
    ["too many requests", dataverseError(429, "0x80072322", "", { "Retry-After": "7" }), 429, "throttled", "7", 1],
    ["too many requests, without a time", says(429), 429, "throttled", "10", 1],
    ["a column that is not there", dataverseError(400, "0x80060888", unknownColumn), 500, "misconfigured", null, 1],
    ["the same without a code", dataverseError(400, "", unknownColumn), 500, "misconfigured", null, 1],
    ["a filter that is rejected", dataverseError(400, "0x80040203"), 500, "misconfigured", null, 1],
    ["no right to read", dataverseError(403, "0x80040220"), 500, "misconfigured", null, 1],
    ["an address without contacts", says(404), 500, "misconfigured", null, 1],
    ["a redirect", says(302, "", { Location: "http://127.0.0.1:9/" }), 500, "misconfigured", null, 1],
    ["a token that is never good", says(401), 500, "misconfigured", null, 2],
    ["a page of HTML", says(200, "<html>"), 500, "misconfigured", null, 1],
    ["an object without contacts", says(200, {}), 500, "misconfigured", null, 1],
    ["a contact without an id", says(200, { value: [row, {}] }), 500, "misconfigured", null, 1],
    ["a contact that is no object", says(200, { value: [null] }), 500, "misconfigured", null, 1],
    ["an id that is none", says(200, { value: [{ contactid: "4711" }] }), 500, "misconfigured", null, 1],
    ["a next link that is no text", says(200, { value: [row], "@odata.nextLink": 2 }), 500, "misconfigured", null, 1],
    ["a next link to nowhere", says(200, { value: [row], "@odata.nextLink": "x" }), 500, "misconfigured", null, 1],
    [
      "pages without a cookie, which end at 50,000",
      says(200, { value: [row], "@odata.nextLink": "https://x/?$skiptoken=%3Ccookie%20pagenumber=%222%22%20/%3E" }),
      500,
      "misconfigured",
      null,
      1,
    ],
    [
      "a cookie that is too long",
      says(200, { value: [row], "@odata.nextLink": nextLink(IDS[0]!) + "x".repeat(4096) }),
      500,
      "misconfigured",
      null,
      1,
    ],
    ["an error of its own", dataverseError(500, "0x80040216"), 502, "dynamics_unavailable", null, 4],
    ["an outage", says(503), 502, "dynamics_unavailable", null, 4],
    ["a gateway that waited too long", says(504), 502, "dynamics_unavailable", null, 4],
    ["an outage that will last", says(503, "", { "Retry-After": "30" }), 502, "dynamics_unavailable", "30", 1],
  ] as [string, Behaviour, number, string, string | null, number][]
) {
  Deno.test(`${what} is ${status} ${code} for a page`, async () => {
    await using stage = new Stage();
    stage.dataverse.otherwise = behaviour;

    const answer = await stage.list();

    assert.deepEqual([answer.status, answer.code, answer.retryAfter], [status, code, retryAfter]);
    assert.equal(stage.dataverse.requests.length, calls);
  });
}

Deno.test("a cursor that Dataverse rejects is an invalid request", async () => {
  await using stage = new Stage();
  stage.dataverse.otherwise = new Contacts(3, ...IDS).answer;

  const answer = await stage.list(`?visible=true&after=${encoded("planted")}`);

  assert.deepEqual([answer.status, answer.code], [400, "invalid_request"]);
});

for (const [what, behaviour] of [["hangs", hangs], ["drips", drips]] as [string, Behaviour][]) {
  Deno.test(`a page is retried if Dataverse ${what}`, async () => {
    await using stage = new Stage({}, { dataverse: 200, request: 2000 });
    stage.dataverse.then(behaviour);
    stage.dataverse.otherwise = new Contacts(3, IDS[0]!).answer;

    assert.deepEqual(JSON.parse((await stage.list()).text), page(IDS[0]!));
    assert.equal(stage.dataverse.requests.length, 2);
  });
}

Deno.test("an outage of Entra is token_unavailable for a page, too", async () => {
  await using stage = new Stage();
  stage.entra.otherwise = entraError(429, "temporarily_unavailable", 90055, { "Retry-After": "60" });

  const answer = await stage.list();

  assert.deepEqual([answer.status, answer.code, answer.retryAfter], [503, "token_unavailable", "60"]);
});

Deno.test("the log line of a page has the number of contacts, no contact and no cursor", async () => {
  await using stage = new Stage();
  stage.dataverse.otherwise = new Contacts(3, ...IDS).answer;

  const { cursors } = await readAll(stage);

  const lines = stage.clock.lines.map((line) => JSON.parse(line));
  assert.deepEqual(lines.map((line) => [line.method, line.status, line.listed]), [
    ["GET", 200, 3],
    ["GET", 200, 3],
    ["GET", 200, 1],
  ]);
  for (const secret of [...IDS, ...cursors, KEY]) assert.ok(!stage.clock.lines.join("\n").includes(secret));
});
