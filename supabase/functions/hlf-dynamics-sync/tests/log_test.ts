/** The log and the answers have a correlation id, no secrets and no personal data. */

import assert from "node:assert/strict";
import {
  type Behaviour,
  CONTACT,
  dataverseError,
  entraError,
  hangs,
  KEY,
  says,
  SECRET,
  Stage,
  stores,
  tokens,
} from "./fake.ts";

Deno.test("each request has one line with the id of its answer", async () => {
  await using stage = new Stage();
  stage.dataverse.then(stores, dataverseError(404, "0x80040217"));

  const answers = [
    await stage.push(),
    await stage.push(),
    await stage.push({ method: "GET" }),
    await stage.push({ key: "" }),
  ];

  const lines = stage.clock.lines.map((line) => JSON.parse(line));
  const ids = answers.map((answer) => answer.headers.get("X-Correlation-Id"));
  assert.deepEqual(lines.map((line) => line.correlation_id), ids);
  assert.equal(new Set(ids).size, 4);
  assert.ok(ids.every((id) => /^[0-9a-f-]{36}$/.test(id ?? "")));
  for (const line of lines) {
    assert.ok(Number.isSafeInteger(line.milliseconds));
    delete line.milliseconds;
    delete line.correlation_id;
  }
  assert.deepEqual(lines, [
    { idempotency_key: "4711-2", method: "POST", status: 200 },
    {
      idempotency_key: "4711-2",
      method: "POST",
      status: 404,
      code: "contact_not_found",
      upstream: "dataverse 404 0x80040217",
    },
    { idempotency_key: "4711-2", method: "GET", status: 200 },
    { method: "POST", status: 401, code: "unauthorized", unauthorized: 1 },
  ]);
});

Deno.test("requests without the key have one line a minute, with their number", async () => {
  await using stage = new Stage();

  for (let minute = 0; minute < 3; minute++) {
    for (let number = 0; number < 50; number++) assert.equal((await stage.push({ key: "wrong" })).status, 401);
    stage.clock.move(61);
  }
  await stage.push({ key: "" });
  await stage.push();

  const lines = stage.clock.lines.map((line) => JSON.parse(line));
  assert.deepEqual(lines.map((line) => [line.status, line.unauthorized]), [
    [401, 1],
    [401, 50],
    [401, 50],
    [401, 50],
    [200, undefined],
  ]);
});

Deno.test("an Idempotency-Key that is not certjob's is not logged", async () => {
  await using stage = new Stage();

  for (const key of ["kari@example.org", "4711", "4711-2-x", "1".repeat(30) + "-1"]) {
    await stage.push({ headers: { "Idempotency-Key": key } });
  }

  assert.ok(stage.clock.lines.every((line) => JSON.parse(line).idempotency_key === undefined));
});

Deno.test("an unknown method is not logged", async () => {
  await using stage = new Stage();

  await stage.push({ method: "KARI.NORDMANN.+4790000000", key: "" });

  assert.deepEqual(stage.clock.lines.map((line) => JSON.parse(line).method), ["other"]);
});

Deno.test("no line or answer has a secret or personal data after any error", async () => {
  const chatty = `Kari Nordmann (kari@example.org, ${CONTACT}): Bearer planted-token-1 ${SECRET} ${KEY}`;
  const faults: [Behaviour, Behaviour][] = [
    [tokens(), stores],
    [entraError(401, "invalid_client", 7000215), stores],
    [says(500, chatty), stores],
    [says(200, chatty), stores],
    [says(429, { error: chatty, error_codes: [chatty] }), stores],
    [hangs, stores],
    ...[200, 302, 400, 401, 403, 404, 412, 429, 500, 503].flatMap((status): [Behaviour, Behaviour][] => [
      [
        tokens(),
        dataverseError(status, "0x80040265", chatty, { "X-Ms-Request-Id": "1", "Location": "http://127.0.0.1:9" }),
      ],
      [tokens(), dataverseError(status, chatty, chatty)],
      [tokens(), says(status, chatty)],
    ]),
  ];
  const texts: string[] = [];
  for (const [entra, dataverse] of faults) {
    await using stage = new Stage({}, { entra: 100, dataverse: 100 });
    stage.entra.otherwise = entra;
    stage.dataverse.otherwise = dataverse;
    const answers = [
      await stage.push(),
      await stage.push({ key: `${KEY}x` }),
      await stage.push({ body: chatty }),
      await stage.push({ headers: { "X-Correlation-Id": chatty, "Content-Type": chatty } }),
    ];
    const headers = answers.flatMap((answer) => [...answer.headers].map(([name, value]) => `${name}: ${value}`));
    texts.push(...stage.clock.lines, ...headers, ...answers.slice(1).map((answer) => answer.text));
    if (answers[0]?.status !== 200) texts.push(answers[0]?.text ?? ""); // a success contains the contact of the request
  }

  assert.ok(texts.length > 500);
  for (const secret of [KEY, SECRET, "planted-token", "planted-client", "Kari", "kari@", CONTACT]) {
    assert.deepEqual(texts.filter((text) => text.includes(secret)), []);
  }
});

Deno.test("an unexpected error is an answer, and the log has its place without its message", async () => {
  await using stage = new Stage();
  Object.defineProperty(stage.clock, "sleep", {
    value: () => {
      throw new TypeError(`planted-token-1 ${KEY}`);
    },
  });
  stage.dataverse.then(says(503));

  const answer = await stage.push();

  assert.deepEqual([answer.status, answer.code], [500, "internal_error"]);
  const [line] = stage.clock.lines;
  assert.match(JSON.parse(line ?? "").origin, /^TypeError log_test\.ts:\d+:\d+ retry\.ts:\d+:\d+/);
  assert.doesNotMatch(`${line}${answer.text}`, /planted/);
});
