/** The change in Dataverse, and the error of the contract for each of its answers. */

import assert from "node:assert/strict";
import { type Behaviour, CONTACT, dataverseError, drips, hangs, Nowhere, says, Stage, WITH_DATES } from "./fake.ts";

Deno.test("a push changes one column of one existing contact", async () => {
  await using stage = new Stage();
  const body = { "contact_id": CONTACT, visible: false, "visible_until": null, "full_name": "Kari" };

  await stage.push({ body: JSON.stringify(body) });

  const [request] = stage.dataverse.requests;
  assert.equal(`${request?.method} ${request?.path}`, `PATCH /api/data/v9.2/contacts(${CONTACT})`);
  assert.deepEqual(Object.fromEntries(request!.query), { $select: "contactid,hlf_visible" });
  assert.equal(request?.body, '{"hlf_visible":false}');
  assert.equal(request?.headers.get("If-Match"), "*");
  assert.equal(request?.headers.get("Prefer"), "return=representation");
  assert.equal(request?.headers.get("Content-Type"), "application/json");
});

for (const [visible, day] of [[true, "2027-03-10"], [false, null]] as const) {
  Deno.test(`visible ${visible} and the day ${day} are sent in one PATCH`, async () => {
    await using stage = new Stage(WITH_DATES);
    const wish = { "contact_id": CONTACT, visible, "visible_until": day };

    const answer = await stage.push({ body: JSON.stringify(wish) });

    assert.deepEqual(JSON.parse(answer.text), { ...wish, dates: true });
    assert.equal(stage.dataverse.requests.length, 1);
    assert.deepEqual(JSON.parse(stage.dataverse.requests[0]!.body), { hlf_visible: visible, hlf_visibleuntil: day });
    const select = stage.dataverse.requests[0]!.query.get("$select");
    assert.equal(select, "contactid,hlf_visible,hlf_visibleuntil");
  });
}

Deno.test("the answer has the values that Dataverse has stored", async () => {
  await using stage = new Stage(WITH_DATES);
  const stored = { contactid: CONTACT, "hlf_visible": true, "hlf_visibleuntil": "2030-01-01" }; // a workflow changed them
  stage.dataverse.otherwise = says(200, stored);

  const answer = await stage.push();

  const expected = { "contact_id": CONTACT, visible: true, "visible_until": "2030-01-01", dates: true };
  assert.deepEqual([answer.status, JSON.parse(answer.text)], [200, expected]);
});

const unknownDate = "Could not find a property named 'hlf_visibleuntil' on type 'Microsoft.Dynamics.CRM.contact'.";
const noDate = "Microsoft.OData.ODataException: Cannot convert the literal '2027-03-10' to the expected type";
for (
  const [what, behaviour] of [
    ["is missing", dataverseError(400, "0x80060888", unknownDate)],
    ["is missing, without a code", dataverseError(400, "0x0", unknownDate)],
    ["takes no dates", dataverseError(400, "0x80048d19", noDate)],
    ["holds times", says(200, { contactid: CONTACT, hlf_visible: true, hlf_visibleuntil: "2027-03-10T00:00:00Z" })],
    ["holds text", says(200, { contactid: CONTACT, hlf_visible: true, hlf_visibleuntil: "10.3." })],
  ] as [string, Behaviour][]
) {
  Deno.test(`a date column that ${what} is misconfigured`, async () => {
    await using stage = new Stage(WITH_DATES);
    stage.dataverse.otherwise = behaviour;

    const answer = await stage.push();

    assert.deepEqual([answer.status, answer.code], [500, "misconfigured"]);
    assert.match(answer.message ?? "", /DYNAMICS_VISIBLE_UNTIL_FIELD/);
    assert.equal(stage.dataverse.requests.length, 1);
  });
}

const OTHER = "5d0b0ad5-4a3c-4bb8-8d1e-6d5b3b6a8a11";
const missing = `contact With Id = ${CONTACT} Does Not Exist`;
const otherMissing = "account With Id = 5d0b0ad5-4a3c-4bb8-8d1e-6d5b3b6a8a11 Does Not Exist";
const unknownColumn = "Could not find a property named 'hlf_Visible' on type 'Microsoft.Dynamics.CRM.contact'.";
const badPayload = "An error occurred while validating input parameters: Microsoft.OData.ODataException: no boolean";
for (
  const [what, behaviour, status, code, retryAfter, calls] of [
    ["a contact that is missing", dataverseError(404, "0x80040217", missing), 404, "contact_not_found", null, 1],
    ["the same, said in words", dataverseError(404, "", missing), 404, "contact_not_found", null, 1],
    [
      "another contact that is missing",
      dataverseError(404, "", "x With Id = 1 Does Not Exist"),
      500,
      "misconfigured",
      null,
      1,
    ],
    ["something of the contact's", dataverseError(404, "0x80040217", otherMissing), 422, "dynamics_rejected", null, 1],
    ["an address without contacts", dataverseError(404, "0x8006088a"), 500, "misconfigured", null, 1],
    ["a page that was not found", says(404, "<html>"), 500, "misconfigured", null, 1],
    ["no page at all", says(404), 500, "misconfigured", null, 1],
    ["a value that a rule rejects", dataverseError(400, "0x80040203"), 422, "dynamics_rejected", null, 1],
    ["a plug-in that says no", dataverseError(400, "0x80040265"), 422, "dynamics_rejected", null, 1],
    ["a plug-in that says no with 403", dataverseError(403, "0x80040265"), 422, "dynamics_rejected", null, 1],
    ["a plug-in that says no with 500", dataverseError(500, "0x80040265"), 422, "dynamics_rejected", null, 1],
    ["a column that is not there", dataverseError(400, "0x80048d19"), 500, "misconfigured", null, 1],
    ["the same without a code", dataverseError(400, "0x0", unknownColumn), 500, "misconfigured", null, 1],
    ["the same in older words", dataverseError(400, "", badPayload), 500, "misconfigured", null, 1],
    [
      "a rejection without a code",
      dataverseError(400, "", "This contact is locked"),
      422,
      "dynamics_rejected",
      null,
      1,
    ],
    ["a gateway's 400", says(400, "<html>"), 500, "misconfigured", null, 1],
    ["no right to write", dataverseError(403, "0x80040220"), 500, "misconfigured", null, 1],
    ["no right to this one contact", dataverseError(403, "0x80048306"), 422, "dynamics_rejected", null, 1],
    ["a firewall", says(403, "<html>"), 500, "misconfigured", null, 1],
    ["a redirect", says(302, "", { Location: "http://127.0.0.1:9/" }), 500, "misconfigured", null, 1],
    ["a page instead of a confirmation", says(200, "<html>"), 500, "misconfigured", null, 1],
    ["a record that was made", says(201, {}), 500, "misconfigured", null, 1],
    ["a confirmation without values", says(204), 500, "misconfigured", null, 1],
    ["another contact", says(200, { contactid: OTHER, hlf_visible: false }), 500, "misconfigured", null, 1],
    ["a column without yes or no", says(200, { contactid: CONTACT, hlf_visible: 1 }), 500, "misconfigured", null, 1],
    ["too many requests", dataverseError(429, "0x80072322", "", { "Retry-After": "7" }), 429, "throttled", "7", 1],
    ["too many requests, without a time", says(429), 429, "throttled", "10", 1],
    ["a change in between", dataverseError(412, "0x80060882"), 502, "dynamics_unavailable", null, 1],
    ["an error of its own", dataverseError(500, "0x80040216"), 502, "dynamics_unavailable", null, 1],
    ["a status that nobody foresaw", says(409), 502, "dynamics_unavailable", null, 1],
    ["a bad gateway", says(502), 504, "outcome_unknown", null, 1],
    ["an outage", says(503), 502, "dynamics_unavailable", null, 4],
    ["a gateway that waited too long", says(504), 504, "outcome_unknown", null, 1],
    ["a gateway that says when", says(504, "", { "Retry-After": "9" }), 504, "outcome_unknown", "9", 1],
    ["an outage that will last", says(503, "", { "Retry-After": "30" }), 502, "dynamics_unavailable", "30", 1],
  ] as [string, Behaviour, number, string, string | null, number][]
) {
  Deno.test(`${what} is ${status} ${code}`, async () => {
    await using stage = new Stage();
    stage.dataverse.otherwise = behaviour;

    const answer = await stage.push();

    assert.deepEqual([answer.status, answer.code, answer.retryAfter], [status, code, retryAfter]);
    assert.equal(stage.dataverse.requests.length, calls);
  });
}

Deno.test("a push succeeds after three failures, with growing waits", async () => {
  await using stage = new Stage();
  stage.dataverse.then(says(503), says(503), says(503));

  assert.equal((await stage.push()).status, 200);

  const [first, second, third] = stage.clock.sleeps;
  assert.equal(stage.clock.sleeps.length, 3);
  assert.ok(first! >= 125 && first! <= 250 && second! >= 250 && second! <= 500 && third! >= 500 && third! <= 1000);
});

Deno.test("a retry waits for Dataverse's Retry-After", async () => {
  await using stage = new Stage();
  stage.dataverse.then(says(503, "", { "Retry-After": "5" }));

  assert.equal((await stage.push()).status, 200);
  assert.deepEqual(stage.clock.sleeps, [5000]);
});

for (
  const [text, seconds] of [
    ["Tue, 10 Mar 2026 01:59:00 GMT", "1"],
    ["Tue, 10 Mar 2026 02:01:30 GMT", "90"],
    ["Tuesday, 10-Mar-26 02:01:30 GMT", "90"],
    ["Fri, 31 Dec 9999 23:59:59 GMT", "86400"],
    ["9".repeat(400), "86400"],
    ["10 GMT", "10"],
    ["5, 7", "10"],
    ["+5", "10"],
    ["0x10", "10"],
    ["", "10"],
  ]
) {
  Deno.test(`Dataverse's Retry-After: ${text?.slice(0, 40)} becomes ${seconds} s`, async () => {
    await using stage = new Stage();
    const headers = { "Date": "Tue, 10 Mar 2026 02:00:00 GMT", "Retry-After": text ?? "" };
    stage.dataverse.otherwise = dataverseError(429, "0x80072322", "", headers);

    const answer = await stage.push();

    assert.deepEqual([answer.status, answer.retryAfter], [429, seconds]);
    assert.equal(stage.dataverse.requests.length, 1);
  });
}

Deno.test("no retry starts without enough time", async () => {
  await using stage = new Stage();
  stage.dataverse.otherwise = says(503, "", { "Retry-After": "8" });

  const answer = await stage.push();

  assert.deepEqual([answer.status, answer.retryAfter], [502, "8"]);
  assert.deepEqual(stage.clock.sleeps, [8000, 8000]);
});

for (const [what, behaviour] of [["hangs", hangs], ["drips", drips]] as [string, Behaviour][]) {
  Deno.test(`a change is not repeated if Dataverse ${what}, because its outcome is unknown`, async () => {
    await using stage = new Stage({}, { dataverse: 200, request: 2000 });
    stage.dataverse.otherwise = behaviour;
    const beganAt = performance.now();

    const answer = await stage.push();

    assert.deepEqual([answer.status, answer.code], [504, "outcome_unknown"]);
    assert.equal(stage.dataverse.requests.length, 1);
    assert.ok(performance.now() - beganAt < 2000);
  });
}

Deno.test("a connection that breaks after the change is an unknown outcome", async () => {
  using listener = Deno.listen({ port: 0, hostname: "127.0.0.1" });
  const received = (async () => {
    using connection = await listener.accept();
    return await connection.read(new Uint8Array(65_536));
  })();
  await using stage = new Stage({ DYNAMICS_URL: `http://127.0.0.1:${(listener.addr as Deno.NetAddr).port}` });

  const answer = await stage.push();

  assert.ok((await received)! > 0);
  assert.deepEqual([answer.status, answer.code], [504, "outcome_unknown"]);
  assert.equal(stage.clock.sleeps.length, 0);
});

Deno.test("slow services and a new token take at most the deadline", async () => {
  await using stage = new Stage({}, { entra: 900, dataverse: 5000, request: 1000 });
  const slowly = (milliseconds: number, then: Behaviour): Behaviour => async (...request) => {
    await new Promise((resolve) => setTimeout(resolve, milliseconds));
    return await then(...request);
  };
  stage.entra.otherwise = slowly(100, stage.entra.otherwise);
  stage.dataverse.then(slowly(100, says(401)));
  stage.dataverse.otherwise = hangs;
  const beganAt = performance.now();

  const answer = await stage.push();

  const took = performance.now() - beganAt;
  assert.deepEqual([answer.status, answer.code], [504, "outcome_unknown"]);
  assert.ok(took < 4000, `${took} ms`); // without a deadline it would be 5300
});

Deno.test("a Dataverse that rejects connections is unavailable", async () => {
  using nowhere = await Nowhere.find();
  await using stage = new Stage({ DYNAMICS_URL: nowhere.url });

  const answer = await stage.push();

  assert.deepEqual([answer.status, answer.code], [502, "dynamics_unavailable"]);
  assert.equal(stage.clock.sleeps.length, 3);
});

Deno.test("nothing is retried after the caller has disconnected", async () => {
  await using stage = new Stage();
  const caller = new AbortController();
  stage.dataverse.otherwise = () => {
    caller.abort();
    return new Response(null, { status: 503 });
  };

  await stage.push({ signal: caller.signal });

  assert.equal(stage.dataverse.requests.length, 1);
});

for (const status of [200, 401]) {
  Deno.test(`no call starts if the caller disconnects during the request for ${status === 200 ? "the" : "a new"} token`, async () => {
    await using stage = new Stage();
    const caller = new AbortController();
    const token = stage.entra.otherwise;
    if (status === 401) stage.entra.then(token);
    stage.dataverse.otherwise = says(status);
    stage.entra.otherwise = (...request) => {
      caller.abort();
      return token(...request);
    };

    const answer = await stage.push({ signal: caller.signal });

    assert.deepEqual([answer.status, answer.code], [408, "request_timeout"]);
    assert.equal(stage.dataverse.requests.length, status === 401 ? 1 : 0);
  });
}

Deno.test("an answer that is too long is misconfigured", async () => {
  await using stage = new Stage();
  stage.dataverse.otherwise = dataverseError(404, "0x80040217", "x".repeat(100_000));

  assert.equal((await stage.push()).code, "misconfigured");
});
