/** Valid and invalid requests. An invalid one causes no call to Entra or Dataverse. */

import assert from "node:assert/strict";
import { CONTACT, KEY, Stage, WITH_DATES } from "./fake.ts";

Deno.test("without a date column, a push has one column and the answer no day", async () => {
  await using stage = new Stage();
  const body = JSON.stringify({ contact_id: CONTACT, visible: true, visible_until: "2027-03-10" });

  const answer = await stage.push({ body, headers: { "Content-Type": "Application/JSON; charset=utf-8" } });

  assert.equal(answer.status, 200);
  assert.deepEqual(JSON.parse(answer.text), {
    contact_id: CONTACT,
    visible: true,
    visible_until: null,
    dates: false,
  });
  assert.equal(answer.headers.get("Content-Type"), "application/json");
});

Deno.test("a contact ID may be in upper case", async () => {
  await using stage = new Stage();

  await stage.push({
    body: JSON.stringify({ contact_id: CONTACT.toUpperCase(), visible: false, visible_until: null }),
  });

  assert.equal(stage.dataverse.requests[0]?.path, `/api/data/v9.2/contacts(${CONTACT})`);
});

Deno.test("a GET with the key calls neither Entra nor Dataverse", async () => {
  await using stage = new Stage();

  const answer = await stage.push({ method: "GET" });

  assert.deepEqual([answer.status, answer.text], [200, '{"ok":true,"dates":false}']);
  assert.equal(stage.entra.requests.length + stage.dataverse.requests.length, 0);
});

Deno.test("the answer to a GET has the last day of the client secret", async () => {
  await using stage = new Stage({ AZURE_CLIENT_SECRET_UNTIL: "2027-03-10" });

  const answer = JSON.parse((await stage.push({ method: "GET" })).text);

  assert.deepEqual(answer, { ok: true, dates: false, secret_until: "2027-03-10" });
});

Deno.test("the answer to a GET has whether there is a date column", async () => {
  await using stage = new Stage(WITH_DATES);

  assert.deepEqual(JSON.parse((await stage.push({ method: "GET" })).text), { ok: true, dates: true });
});

for (const method of ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"]) {
  Deno.test(`${method} is not allowed`, async () => {
    await using stage = new Stage();

    const answer = await stage.push({ method });

    assert.deepEqual([answer.status, answer.headers.get("Allow")], [405, "GET, POST"]);
  });
}

const id = JSON.stringify(CONTACT);
const until = '"visible_until": "2027-03-10"';
for (
  const body of [
    "",
    "{",
    "null",
    "[]",
    `"${CONTACT}"`,
    "{}",
    `{"contact_id": ${id}}`,
    `{"visible": true, ${until}}`,
    `{"contact_id": ${id}, "visible": "true", ${until}}`,
    `{"contact_id": ${id}, "visible": 1, ${until}}`,
    `{"contact_id": ${id}, "visible": null, ${until}}`,
    `{"contact_id": [${id}], "visible": true, ${until}}`,
    `{"contact_id": "4711", "visible": true, ${until}}`,
    `{"contact_id": "${CONTACT})/x(", "visible": true, ${until}}`,
    `{"contact_id": "${CONTACT}\\n", "visible": true, ${until}}`,
    `{"contact_id": "{${CONTACT}}", "visible": true, ${until}}`,
    `{"contact_id": ${id}, "visible": true}`,
    `{"contact_id": ${id}, "visible": true, "visible_until": null}`,
    `{"contact_id": ${id}, "visible": false}`,
    `{"contact_id": ${id}, "visible": false, ${until}}`,
    ...[
      "",
      "2027-02-29",
      "2027-13-01",
      "2027-03-00",
      "2027-3-10",
      "10.03.2027",
      "2100-01-01",
      "1999-12-31",
      "2027-03-10T00:00:00Z",
    ]
      .map((day) => `{"contact_id": ${id}, "visible": true, "visible_until": "${day}"}`),
    `{"contact_id": ${id}, "visible": true, "visible_until": 20270310}`,
    "[".repeat(5000),
  ]
) {
  Deno.test(`${body.slice(0, 110)} is an invalid request`, async () => {
    await using stage = new Stage();

    const answer = await stage.push({ body });

    assert.deepEqual([answer.status, answer.code], [400, "invalid_request"]);
    assert.equal(stage.entra.requests.length + stage.dataverse.requests.length, 0);
  });
}

for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/json-seq", ""]) {
  Deno.test(`the content type ${type || "(none)"} is an invalid request`, async () => {
    await using stage = new Stage();

    const answer = await stage.push({ headers: { "Content-Type": type } });

    assert.deepEqual([answer.status, answer.code], [400, "invalid_request"]);
  });
}

Deno.test("a body that is too long is not read to its end", async () => {
  await using stage = new Stage();
  let pieces = 0;
  const endless = new ReadableStream({
    pull: (controller) => controller.enqueue(new TextEncoder().encode(" ".repeat(1000 + 0 * ++pieces))),
  });

  const answer = await stage.push({ body: endless });

  assert.deepEqual([answer.status, answer.code], [413, "too_large"]);
  assert.ok(pieces < 20, `${pieces} pieces`);
});

Deno.test("a body may have 10,000 bytes", async () => {
  await using stage = new Stage();
  const short = JSON.stringify({ contact_id: CONTACT, visible: true, visible_until: "2027-03-10" });

  assert.equal((await stage.push({ body: short.padEnd(10_000) })).status, 200);
  assert.equal((await stage.push({ body: short.padEnd(10_001) })).status, 413);
});

Deno.test("a body that does not arrive is a timeout", async () => {
  await using stage = new Stage({}, { body: 50 });
  let isCancelled = false;
  const stuck = new ReadableStream({
    start: (controller) => controller.enqueue(new TextEncoder().encode('{"contact_id":')),
    cancel: () => void (isCancelled = true),
  });

  const answer = await stage.push({ body: stuck });

  assert.deepEqual([answer.status, answer.code, isCancelled], [408, "request_timeout", true]);
});

Deno.test("a body that breaks off is a timeout", async () => {
  await using stage = new Stage();
  const broken = new ReadableStream({ pull: (controller) => controller.error(new Error("connection lost")) });

  assert.equal((await stage.push({ body: broken })).status, 408);
});

Deno.test("invalid UTF-8 is an invalid request", async () => {
  await using stage = new Stage();
  const headers = { "Authorization": `Bearer ${KEY}`, "Content-Type": "application/json" };

  assert.equal((await stage.send({ method: "POST", headers, body: new Uint8Array([0xff, 0xfe, 0x00]) })).status, 400);
});
