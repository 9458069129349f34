/** The settings: missing ones are named, and addresses that would leak a secret are rejected. */

import assert from "node:assert/strict";
import { readConfig } from "../config.ts";
import { KEY, SECRET, Stage, WITH_DATES } from "./fake.ts";

const COMPLETE: Record<string, string> = {
  HLF_SYNC_KEY: KEY,
  AZURE_TENANT_ID: "hlf.onmicrosoft.example",
  AZURE_CLIENT_ID: "planted-client",
  AZURE_CLIENT_SECRET: SECRET,
  DYNAMICS_URL: "https://hlf.crm4.dynamics.example/",
  DYNAMICS_VISIBILITY_FIELD: "hlf_visibleonportal",
};

function configOf(changes: Record<string, string> = {}): ReturnType<typeof readConfig> {
  return readConfig((name) => ({ ...COMPLETE, ...changes })[name]);
}

Deno.test("the default authority is Microsoft's", () => {
  const usual = "https://login.microsoftonline.com/hlf.onmicrosoft.example/oauth2/v2.0/token";

  assert.equal(configOf().services?.tokenUrl, usual);
  assert.equal(configOf({ AZURE_AUTHORITY: " " }).services?.tokenUrl, usual);
  assert.equal(
    configOf({ AZURE_AUTHORITY: "https://login.example/" }).services?.tokenUrl,
    "https://login.example/hlf.onmicrosoft.example/oauth2/v2.0/token",
  );
});

Deno.test("a slash at the end of a URL is ignored", () => {
  assert.equal(configOf().services?.dynamicsUrl, "https://hlf.crm4.dynamics.example");
});

for (
  const [name, values] of Object.entries({
    AZURE_TENANT_ID: ["", "a/b", "a b", "?"],
    AZURE_CLIENT_ID: [""],
    AZURE_CLIENT_SECRET: ["", " "],
    AZURE_AUTHORITY: [
      "http://login.example",
      "login.example",
      "https://login.example?x=1",
      "https://u:p@login.example",
    ],
    DYNAMICS_URL: ["", "http://hlf.example", "ftp://127.0.0.1", "hlf.example", "https://hlf.example/main.aspx"],
    DYNAMICS_VISIBILITY_FIELD: ["", "a.b", "a@odata.bind", "1st", "a b"],
    DYNAMICS_VISIBLE_UNTIL_FIELD: ["a_b.c", "birthdate", "1_st", "hlf_"],
  })
) {
  for (const value of values) {
    Deno.test(`${name} must not be ${JSON.stringify(value)}`, () => {
      const { services, problems } = configOf({ [name]: value });

      assert.equal(services, null);
      assert.deepEqual(problems, [value.trim() === "" ? `${name} is not set` : `${name} is not usable`]);
    });
  }
}

Deno.test("the column for the last visible day is optional", () => {
  assert.equal(configOf().services?.visibleUntilField, null);
  assert.equal(configOf({ DYNAMICS_VISIBLE_UNTIL_FIELD: " " }).services?.visibleUntilField, null);
  assert.equal(configOf(WITH_DATES).services?.visibleUntilField, "hlf_visibleuntil");
});

for (const value of ["soon", "2027-02-30", "10.3.2027", "2027-03-10T00:00Z"]) {
  Deno.test(`a last day of the secret that is ${JSON.stringify(value)} stops no push, and is not shown`, async () => {
    await using stage = new Stage({ AZURE_CLIENT_SECRET_UNTIL: value });

    assert.equal((await stage.push()).status, 200);
    const answer = JSON.parse((await stage.push({ method: "GET" })).text);
    assert.deepEqual(answer, { ok: true, dates: false, secret_until: "unusable" });
  });
}

Deno.test("the last day of the secret is optional", () => {
  assert.equal(configOf().services?.secretUntil, null);
  assert.equal(configOf({ AZURE_CLIENT_SECRET_UNTIL: " " }).services?.secretUntil, null);
});

for (const keys of ["", " , "]) {
  Deno.test(`without a valid key (${JSON.stringify(keys)}) the log has the reason once, the answer does not`, async () => {
    await using stage = new Stage({ HLF_SYNC_KEY: keys, AZURE_CLIENT_SECRET: "" });

    const answer = await stage.push();

    assert.equal(answer.status, 401);
    assert.doesNotMatch(answer.text, /HLF_SYNC_KEY/);
    const [first, second] = stage.clock.lines.map((line) => JSON.parse(line));
    assert.deepEqual(first, { problems: ["HLF_SYNC_KEY is not set", "AZURE_CLIENT_SECRET is not set"] });
    assert.equal(second.status, 401);
  });
}

Deno.test("an invalid key is reported unless another one is valid", () => {
  assert.deepEqual(configOf({ HLF_SYNC_KEY: "two words, nøkkel" }).problems, ["HLF_SYNC_KEY is not usable"]);
  assert.deepEqual(configOf({ HLF_SYNC_KEY: `two words,${KEY}` }).keys, [KEY]);
  assert.deepEqual(configOf({ HLF_SYNC_KEY: `two words,${KEY}` }).problems, []);
});

for (const method of ["GET", "POST"]) {
  Deno.test(`missing settings are reported to callers with the key (${method})`, async () => {
    await using stage = new Stage({ AZURE_CLIENT_ID: "", DYNAMICS_URL: "nowhere", AZURE_TENANT_ID: "planted/tenant" });

    const answer = await stage.push({ method });

    assert.deepEqual([answer.status, answer.code], [500, "misconfigured"]);
    assert.equal(
      answer.message,
      "AZURE_TENANT_ID is not usable; AZURE_CLIENT_ID is not set; DYNAMICS_URL is not usable",
    );
  });
}
