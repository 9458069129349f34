// Serve the page, start Chromium, and pass lines between stdin, stdout and Chromium's DevTools protocol.
import { serve } from "./stand_in.ts";

async function* lines(stream: ReadableStream<Uint8Array>) {
  let rest = "";
  for await (const piece of stream.pipeThrough(new TextDecoderStream())) {
    const found = (rest + piece).split("\n");
    rest = found.pop()!;
    yield* found;
  }
}

async function devTools(stderr: ReadableStream<Uint8Array>): Promise<string> {
  for await (const line of lines(stderr)) {
    const found = line.match(/DevTools listening on (\S+)/);
    if (found) return found[1];
  }
  throw new Error("Chromium did not start");
}

const [, , , chromium, profile] = Deno.args;
const options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", "--no-first-run"];
const args = [...options, `--user-data-dir=${profile}`, "about:blank"];
const browser = new Deno.Command(chromium, { args, stdout: "null", stderr: "piped" }).spawn();
const [first, second] = browser.stderr.tee();
const socket = new WebSocket(await devTools(first));
second.pipeTo(new WritableStream()); // a full pipe would stop the browser
socket.onmessage = ({ data }) => console.log(data);
await new Promise((resolve) => socket.onopen = resolve);
console.log(JSON.stringify({ url: await serve() }));
for await (const line of lines(Deno.stdin.readable)) socket.send(line);
browser.kill();
await browser.status;
Deno.exit(0);
