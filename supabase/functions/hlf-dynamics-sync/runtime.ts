/** Clock, sleep and log, which tests replace, and the time limits. */

export interface Runtime {
  /** Return the milliseconds of a monotonic clock. */
  now(): number;
  /** Resolve after this many milliseconds. */
  sleep(milliseconds: number): Promise<void>;
  /** Write one line to the log. */
  log(line: string): void;
}

export const RUNTIME: Runtime = {
  now: () => performance.now(),
  sleep: (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds)),
  // deno-lint-ignore no-console -- Supabase reads a function's log from the console
  log: (line) => console.log(line),
};

/** Time limits in milliseconds. */
export interface Limits {
  /** From the arrival of a request to its answer. certjob waits 30 s; the difference is for a cold start. */
  request: number;
  /** For the request's own body to arrive. */
  body: number;
  /** For one call to Dataverse. */
  dataverse: number;
  /** For a token, with a repeat after a lost connection. */
  entra: number;
}

export const LIMITS: Limits = { request: 20_000, body: 5_000, dataverse: 8_000, entra: 6_000 };

/** The time at which a request must have its answer. */
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
