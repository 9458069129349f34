/** Who may call, and that nothing is looked at before the key. */

import assert from "node:assert/strict";
import { KEY, Stage } from "./fake.ts";

Deno.test("the right key lets a caller in", async () => {
  await using stage = new Stage();

  assert.equal((await stage.push()).status, 200);
  assert.equal((await stage.push({ headers: { Authorization: `bearer ${KEY}` } })).status, 200);
});

Deno.test("while keys are changed the old and the new one both let a caller in", async () => {
  await using stage = new Stage({ HLF_SYNC_KEY: "planted-old, planted-new" });

  const answers = await Promise.all(["planted-old", "planted-new", KEY].map((key) => stage.push({ key })));

  assert.deepEqual(answers.map((answer) => answer.status), [200, 200, 401]);
});

for (
  const [what, authorization] of [
    ["no key", ""],
    ["a wrong key", "Bearer planted-sync-kez"],
    ["the beginning of the key", "Bearer planted-sync"],
    ["the key and more", `Bearer ${KEY}x`],
    ["both keys at once", `Bearer ${KEY},${KEY}`],
    ["no scheme", KEY],
    ["another scheme", `Basic ${KEY}`],
    ["an empty bearer", "Bearer "],
  ] as const
) {
  Deno.test(`${what} is refused`, async () => {
    await using stage = new Stage();

    const answer = await stage.push({ headers: { Authorization: authorization } });

    assert.deepEqual([answer.status, answer.code], [401, "unauthorized"]);
    assert.equal(answer.headers.get("WWW-Authenticate"), "Bearer");
    assert.equal(stage.entra.requests.length + stage.dataverse.requests.length, 0);
  });
}

for (const keys of ["", " ", ",", " , ,"]) {
  Deno.test(`without a key nobody gets in (${JSON.stringify(keys)})`, async () => {
    await using stage = new Stage({ HLF_SYNC_KEY: keys });

    for (const key of ["", " ", ",", KEY]) assert.equal((await stage.push({ key })).status, 401);
  });
}

for (const method of ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"]) {
  Deno.test(`the key comes before the method ${method}`, async () => {
    await using stage = new Stage();

    assert.equal((await stage.push({ method, key: "wrong" })).status, 401);
  });
}

Deno.test("the key comes before the settings and the body, which may be a secret to strangers", async () => {
  await using stage = new Stage({ DYNAMICS_URL: "" });

  const answer = await stage.push({ key: "wrong", body: "{", headers: { "Content-Type": "text/plain" } });

  assert.equal(answer.status, 401);
  assert.doesNotMatch(answer.text, /DYNAMICS/);
});
