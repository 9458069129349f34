/** The key, which is checked first. */

import assert from "node:assert/strict";
import { KEY, Stage } from "./fake.ts";

const OLD = "planted-old-".padEnd(32, "o");
const NEW = "planted-new-".padEnd(32, "n");

Deno.test("a request with the right key is accepted", async () => {
  await using stage = new Stage();

  assert.equal((await stage.push()).status, 200);
  assert.equal((await stage.push({ headers: { Authorization: `bearer ${KEY}` } })).status, 200);
});

Deno.test("two keys are valid during a change of keys", async () => {
  await using stage = new Stage({ HLF_SYNC_KEY: `${OLD}, ${NEW}` });

  const answers = await Promise.all([OLD, NEW, KEY].map((key) => stage.push({ key })));

  assert.deepEqual(answers.map((answer) => answer.status), [200, 200, 401]);
});

const SHORT = NEW.slice(1);
for (const [keys, used] of [["k", "k"], [`${OLD},${SHORT}`, OLD], [`${OLD},${SHORT}`, SHORT]] as const) {
  Deno.test(`a short key is misconfigured (${keys})`, async () => {
    await using stage = new Stage({ HLF_SYNC_KEY: keys });

    const answers = [await stage.push({ key: used }), await stage.push({ key: used, method: "GET" })];

    assert.deepEqual(answers.map((answer) => [answer.status, answer.code]), Array(2).fill([500, "misconfigured"]));
    assert.equal(answers[0]?.message, "HLF_SYNC_KEY has fewer than 32 characters");
    assert.deepEqual(JSON.parse(stage.clock.lines[0] ?? ""), { problems: [answers[0]?.message] });
    assert.equal((await stage.push({ key: "x" })).status, 401);
    assert.equal(stage.entra.requests.length + stage.dataverse.requests.length, 0);
  });
}

for (
  const [what, authorization] of [
    ["no key", ""],
    ["a wrong key", `Bearer ${KEY.slice(0, -1)}z`],
    ["the beginning of the key", `Bearer ${KEY.slice(0, -1)}`],
    ["the key and more", `Bearer ${KEY}x`],
    ["both keys at once", `Bearer ${KEY},${KEY}`],
    ["no scheme", KEY],
    ["another scheme", `Basic ${KEY}`],
    ["an empty bearer", "Bearer "],
  ] as const
) {
  Deno.test(`${what} is unauthorized`, async () => {
    await using stage = new Stage();

    const answer = await stage.push({ headers: { Authorization: authorization } });

    assert.deepEqual([answer.status, answer.code], [401, "unauthorized"]);
    assert.equal(answer.headers.get("WWW-Authenticate"), "Bearer");
    assert.equal(stage.entra.requests.length + stage.dataverse.requests.length, 0);
  });
}

for (const keys of ["", " ", ",", " , ,"]) {
  Deno.test(`without configured keys every request is unauthorized (${JSON.stringify(keys)})`, async () => {
    await using stage = new Stage({ HLF_SYNC_KEY: keys });

    for (const key of ["", " ", ",", KEY]) assert.equal((await stage.push({ key })).status, 401);
  });
}

for (const method of ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"]) {
  Deno.test(`the key is checked before the method ${method}`, async () => {
    await using stage = new Stage();

    assert.equal((await stage.push({ method, key: "wrong" })).status, 401);
  });
}

Deno.test("the key is checked before the settings and the body", async () => {
  await using stage = new Stage({ DYNAMICS_URL: "" });

  const answer = await stage.push({ key: "wrong", body: "{", headers: { "Content-Type": "text/plain" } });

  assert.equal(answer.status, 401);
  assert.doesNotMatch(answer.text, /DYNAMICS/);
});
