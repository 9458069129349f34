/** The token: shared by requests, and the error of the contract for each of Entra's answers. */

import assert from "node:assert/strict";
import { Deadline, LIMITS } from "../runtime.ts";
import { TokenSource } from "../token.ts";
import { type Behaviour, drips, entraError, hangs, Nowhere, says, SECRET, Stage, stores, tokens } from "./fake.ts";

const bearers = (stage: Stage) => stage.dataverse.requests.map((request) => request.headers.get("Authorization"));

Deno.test("the request for a token has the application's credentials", async () => {
  await using stage = new Stage();

  await stage.push();

  const [request] = stage.entra.requests;
  assert.equal(`${request?.method} ${request?.path}`, "POST /planted-tenant/oauth2/v2.0/token");
  assert.deepEqual(Object.fromEntries(new URLSearchParams(request?.body)), {
    grant_type: "client_credentials",
    client_id: "planted-client",
    client_secret: SECRET,
    scope: `${stage.dataverse.url}/.default`,
  });
  assert.deepEqual(bearers(stage), ["Bearer planted-token-1"]);
});

Deno.test("fifty requests at a cold start cause one token request", async () => {
  await using stage = new Stage();

  const answers = await Promise.all(Array.from({ length: 50 }, () => stage.push()));

  assert.deepEqual(new Set(answers.map((answer) => answer.status)), new Set([200]));
  assert.deepEqual([stage.entra.requests.length, stage.dataverse.requests.length], [1, 50]);
});

Deno.test("a token is used until five minutes before its end", async () => {
  await using stage = new Stage();

  await stage.push();
  stage.clock.move(3600 - 301);
  await stage.push();
  stage.clock.move(2);
  await Promise.all(Array.from({ length: 50 }, () => stage.push()));

  assert.equal(stage.entra.requests.length, 2);
  assert.deepEqual(bearers(stage).slice(1, 3), ["Bearer planted-token-1", "Bearer planted-token-2"]);
});

Deno.test("a token that is valid for a short time is used for half of it", async () => {
  await using stage = new Stage();
  stage.entra.otherwise = tokens("60"); // older versions of Entra send a string

  await stage.push();
  stage.clock.move(29);
  await stage.push();
  assert.equal(stage.entra.requests.length, 1);
  stage.clock.move(2);
  await stage.push();

  assert.equal(stage.entra.requests.length, 2);
});

Deno.test("a token that Dataverse rejects is replaced once", async () => {
  await using stage = new Stage();
  await stage.push();
  stage.dataverse.then(says(401));

  const answer = await stage.push();

  assert.equal(answer.status, 200);
  assert.deepEqual(bearers(stage), ["Bearer planted-token-1", "Bearer planted-token-1", "Bearer planted-token-2"]);
  assert.deepEqual(stage.clock.sleeps, []);
});

Deno.test("fifty requests with a rejected token cause one token request", async () => {
  await using stage = new Stage();
  await stage.push();
  stage.dataverse.otherwise = (request, signal) => {
    const isRejected = request.headers.get("Authorization")?.endsWith("-1");
    return isRejected ? new Response(null, { status: 401 }) : stores(request, signal);
  };

  const answers = await Promise.all(Array.from({ length: 50 }, () => stage.push()));

  assert.deepEqual(new Set(answers.map((answer) => answer.status)), new Set([200]));
  assert.equal(stage.entra.requests.length, 2);
});

Deno.test("a second rejected token is misconfigured", async () => {
  await using stage = new Stage();
  stage.dataverse.otherwise = says(401);

  const answer = await stage.push();

  assert.deepEqual([answer.status, answer.code], [500, "misconfigured"]);
  assert.deepEqual([stage.entra.requests.length, stage.dataverse.requests.length], [2, 2]);
});

Deno.test("a token is replaced only once, also across retries", async () => {
  await using stage = new Stage();
  stage.dataverse.then(says(401), says(503), says(401));

  const answer = await stage.push();

  assert.equal(answer.code, "misconfigured");
  assert.deepEqual([stage.entra.requests.length, stage.dataverse.requests.length], [2, 3]);
});

for (
  const [what, behaviour, retryAfter, calls] of [
    ["throttles", says(429, {}, { "Retry-After": "60" }), "60", 1],
    ["throttles without a time", says(429), "10", 1],
    ["throttles in its own words", entraError(400, "temporarily_unavailable", 90055), "10", 1],
    ["asks to come back later", says(503, "", { "Retry-After": "7" }), "7", 1],
    ["is broken", says(500, "<html>"), "10", 2],
    ["is down", says(503), "10", 2],
    ["does not answer", hangs, "10", 1],
    ["drips", drips, "10", 1],
  ] as [string, Behaviour, string, number][]
) {
  Deno.test(`if Entra ${what}, there is no token, and no call before its Retry-After`, async () => {
    await using stage = new Stage({}, behaviour === hangs || behaviour === drips ? { entra: 200 } : {});
    stage.entra.otherwise = behaviour;

    const answers = [await stage.push(), await stage.push()];

    assert.deepEqual(answers.map((one) => [one.status, one.code]), Array(2).fill([503, "token_unavailable"]));
    assert.equal(answers[0]?.retryAfter, retryAfter);
    assert.ok(Number(answers[1]?.retryAfter) <= Number(retryAfter));
    assert.deepEqual([stage.entra.requests.length, stage.dataverse.requests.length], [calls, 0]);

    stage.entra.otherwise = tokens();
    stage.clock.move(Number(retryAfter));
    assert.equal((await stage.push()).status, 200);
  });
}

Deno.test("a date in Retry-After is compared with Entra's clock", async () => {
  await using stage = new Stage();
  const headers = { "Date": "Tue, 10 Mar 2026 02:00:00 GMT", "Retry-After": "Tue, 10 Mar 2026 02:01:30 GMT" };
  stage.entra.otherwise = says(429, {}, headers);

  assert.equal((await stage.push()).retryAfter, "90");
});

for (
  const [text, seconds] of [["soon", "10"], ["-5", "10"], ["0", "1"], ["2.5", "3"], ["1e9", "10"], ["999999", "86400"]]
) {
  Deno.test(`Retry-After: ${text} becomes ${seconds} s`, async () => {
    await using stage = new Stage();
    stage.entra.otherwise = says(429, {}, { "Retry-After": text ?? "" });

    assert.equal((await stage.push()).retryAfter, seconds);
  });
}

Deno.test("a connection that Entra closed is retried at once", async () => {
  await using stage = new Stage();
  stage.entra.then(says(502));

  assert.equal((await stage.push()).status, 200);
  assert.equal(stage.clock.sleeps.length, 1);
});

Deno.test("an Entra that rejects connections is token_unavailable", async () => {
  using nowhere = await Nowhere.find();
  await using stage = new Stage({ AZURE_AUTHORITY: nowhere.url });

  const answer = await stage.push();

  assert.deepEqual([answer.status, answer.code, answer.retryAfter], [503, "token_unavailable", "10"]);
});

for (
  const [what, behaviour, message] of [
    ["a wrong secret", entraError(401, "invalid_client", 7000215), /401 AADSTS7000215.*secret's value/],
    ["an expired secret", entraError(401, "invalid_client", 7000222), /AADSTS7000222.*expired/],
    ["an unknown application", entraError(400, "unauthorized_client", 700016), /AADSTS700016.*AZURE_CLIENT_ID/],
    ["an unknown tenant", entraError(400, "invalid_request", 900023), /AZURE_TENANT_ID/],
    ["another Dynamics", entraError(400, "invalid_resource", 500011), /DYNAMICS_URL/],
    ["an unknown error", entraError(400, "invalid_scope", 1), /AADSTS1\).*check AZURE_TENANT_ID/],
    ["a page instead of an error", says(404, "<html>"), /\(404\); check/],
    ["a redirect", says(302, "", { Location: "http://127.0.0.1:9/" }), /\(302\)/],
    ["a page instead of a token", says(200, "<html>"), /\(200\)/],
    ["a token that is none", says(200, { access_token: "a\nb", expires_in: 3600 }), /\(200\)/],
    ["a token without a life", says(200, { access_token: "abc" }), /\(200\)/],
  ] as [string, Behaviour, RegExp][]
) {
  Deno.test(`${what} from Entra is misconfigured`, async () => {
    await using stage = new Stage();
    stage.entra.otherwise = behaviour;

    const answer = await stage.push();

    assert.deepEqual([answer.status, answer.code, answer.retryAfter], [500, "misconfigured", null]);
    assert.match(answer.message ?? "", message);
    assert.equal(stage.entra.requests.length, 1);
  });
}

for (
  const [what, behaviour, code, calls] of [
    ["rejects", entraError(401, "invalid_client", 7000222), "misconfigured", 1],
    ["throttles", says(429, {}, { "Retry-After": "60" }), "token_unavailable", 1],
    ["is down", says(503), "token_unavailable", 2],
  ] as [string, Behaviour, string, number][]
) {
  Deno.test(`fifty waiting requests share one answer if Entra ${what}, and the next one is not delayed`, async () => {
    await using stage = new Stage();
    stage.entra.otherwise = behaviour;
    const source = new TokenSource(stage.config.services!, stage.clock, LIMITS);
    const ask = () => source.get(new Deadline(stage.clock, 20_000));

    const answers = await Promise.allSettled(Array.from({ length: 50 }, ask));

    const reasons = answers.map((answer) => answer.status === "rejected" && answer.reason.code);
    assert.deepEqual(new Set(reasons), new Set([code]));
    assert.equal(stage.entra.requests.length, calls);
    stage.entra.otherwise = tokens();
    stage.clock.move(60);
    assert.equal(await ask(), "planted-token-1");
  });
}

Deno.test("a rejected token is not used while Entra throttles", async () => {
  await using stage = new Stage();
  await stage.push();
  stage.entra.otherwise = says(429, {}, { "Retry-After": "60" });
  stage.dataverse.otherwise = says(401);

  const answers = [await stage.push(), await stage.push()];

  assert.deepEqual(answers.map((answer) => [answer.status, answer.retryAfter]), [[503, "60"], [503, "60"]]);
  assert.equal(stage.entra.requests.length, 2);
});

for (const life of [0, -1, "", "soon", null, true, [3600], {}, "Infinity", "1e999"]) {
  Deno.test(`a token with expires_in ${JSON.stringify(life)} is invalid`, async () => {
    await using stage = new Stage();
    stage.entra.otherwise = says(200, { access_token: "abc", expires_in: life });

    assert.equal((await stage.push()).code, "misconfigured");
  });
}

Deno.test("a corrected secret works at once", async () => {
  await using stage = new Stage();
  stage.entra.then(entraError(401, "invalid_client", 7000222));

  assert.deepEqual([(await stage.push()).status, (await stage.push()).status], [500, 200]);
});

Deno.test("a request waits for a token only until its own deadline", async () => {
  await using stage = new Stage({}, { request: 100 });
  let release = () => {};
  stage.entra.otherwise = async () => {
    await new Promise<void>((resolve) => release = resolve);
    return tokens()({} as never, {} as never);
  };

  const beganAt = performance.now();

  const answer = await stage.push();
  const took = performance.now() - beganAt;
  release();

  assert.deepEqual([answer.status, answer.code, answer.retryAfter], [503, "token_unavailable", "10"]);
  assert.ok(took < 3000, `it took ${took} ms`);
});
