/** What the function needs from the world besides HTTP, so that a test can hold the clock; and its time limits. */

export interface Runtime {
  /** Milliseconds that only grow. */
  now(): number;
  /** Resolve after this many milliseconds. */
  sleep(milliseconds: number): Promise<void>;
  /** Write one line to the log. */
  log(line: string): void;
}

export const RUNTIME: Runtime = {
  now: () => performance.now(),
  sleep: (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds)),
  // deno-lint-ignore no-console -- the console is where Supabase reads a function's log
  log: (line) => console.log(line),
};

/** All in milliseconds. */
export interface Limits {
  /** From the arrival of a request to its answer. certjob gives a call 30 s; the rest is for a cold start. */
  request: number;
  /** For the request's own body to arrive. */
  body: number;
  /** For one call to Dataverse. */
  dataverse: number;
  /** For a token, a repeat after a lost connection included. */
  entra: number;
}

export const LIMITS: Limits = { request: 20_000, body: 5_000, dataverse: 8_000, entra: 6_000 };

/** A moment that nothing may outlast. */
export class Deadline {
  readonly #endsAt: number;

  constructor(private readonly runtime: Runtime, milliseconds: number) {
    this.#endsAt = runtime.now() + milliseconds;
  }

  /** Milliseconds left, never less than 0. */
  get left(): number {
    return Math.max(0, this.#endsAt - this.runtime.now());
  }
}
