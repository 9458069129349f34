/** Retry calls after temporary errors. */

import { Rejection } from "./rejection.ts";
import type { Deadline, Runtime } from "./runtime.ts";

const FIRST_WAIT_MILLISECONDS = 250;
/** With less time left, a retry would fail. */
const SHORTEST_CALL_MILLISECONDS = 500;

export interface Repeats {
  /** The largest number of retries. */
  most: number;
  deadline: Deadline;
  runtime: Runtime;
  /** Aborted when the caller disconnects. Its request may be outdated, so retries stop. */
  caller?: AbortSignal;
}

/** Make the call, and retry it after repeatable Rejections. Raises the last Rejection. */
export async function withRepeats<T>(call: () => Promise<T>, repeats: Repeats): Promise<T> {
  for (let number = 1;; number++) {
    try {
      return await call();
    } catch (error) {
      if (!(error instanceof Rejection) || !error.repeatable || number > repeats.most) throw error;
      const wait = waitMilliseconds(number, error.retryAfterSeconds);
      if (wait + SHORTEST_CALL_MILLISECONDS > repeats.deadline.left) throw error;
      await repeats.runtime.sleep(wait);
      if (repeats.caller?.aborted) throw error;
    }
  }
}

/** Return a wait that doubles each time, half of it random, and that is at least Retry-After. */
function waitMilliseconds(number: number, retryAfterSeconds: number | undefined): number {
  const half = FIRST_WAIT_MILLISECONDS * 2 ** (number - 1) / 2;
  return Math.max(half + half * Math.random(), (retryAfterSeconds ?? 0) * 1000);
}
