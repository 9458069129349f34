/** Read a body that may be too long, too slow or missing. */

/** Return at most `limits.bytes` as text, and whether it was cut. Rejects if the connection or the signal ends. */
export async function readText(
  body: ReadableStream<Uint8Array> | null,
  limits: { bytes: number; signal?: AbortSignal },
): Promise<{ text: string; isCut: boolean }> {
  const decoder = new TextDecoder();
  const reader = body?.getReader();
  // It ends the wait below, which also reports a broken stream.
  const stop = () => void reader?.cancel().catch(() => {});
  limits.signal?.addEventListener("abort", stop);
  let text = "";
  let length = 0;
  try {
    for (;;) {
      const piece = await reader?.read();
      limits.signal?.throwIfAborted();
      if (piece?.value === undefined) return { text: text + decoder.decode(), isCut: false };
      length += piece.value.length;
      if (length > limits.bytes) {
        stop();
        return { text, isCut: true };
      }
      text += decoder.decode(piece.value, { stream: true });
    }
  } finally {
    limits.signal?.removeEventListener("abort", stop);
  }
}
