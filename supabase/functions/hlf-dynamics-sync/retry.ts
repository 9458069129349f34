/** Repeating a call that may succeed in a moment. */

import { Refusal } from "./refusal.ts";
import type { Deadline, Runtime } from "./runtime.ts";

const FIRST_WAIT_MILLISECONDS = 250;
/** A repeat with less time than this left would only fail. */
const SHORTEST_CALL_MILLISECONDS = 500;

export interface Repeats {
  /** Repeats, the first call not included. */
  most: number;
  deadline: Deadline;
  runtime: Runtime;
  /** Aborted when the caller has gone: what it asked for may no longer be what it wants. */
  caller?: AbortSignal;
}

/** Make the call, and again while it is refused for a reason that may pass; raise the last refusal. */
export async function withRepeats<T>(call: () => Promise<T>, repeats: Repeats): Promise<T> {
  for (let number = 1;; number++) {
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof Refusal) || !error.repeatable || number > repeats.most) throw error;
      const wait = waitMilliseconds(number, error.retryAfterSeconds);
      if (wait + SHORTEST_CALL_MILLISECONDS > repeats.deadline.left) throw error;
      await repeats.runtime.sleep(wait);
      if (repeats.caller?.aborted) throw error;
    }
  }
}

/** Half a wait that doubles, and up to as much again, so that many do not come back at once; Retry-After is a floor. */
function waitMilliseconds(number: number, retryAfterSeconds: number | undefined): number {
  const half = FIRST_WAIT_MILLISECONDS * 2 ** (number - 1) / 2;
  return Math.max(half + half * Math.random(), (retryAfterSeconds ?? 0) * 1000);
}
