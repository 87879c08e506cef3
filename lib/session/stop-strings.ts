/** Finds the first of several strings in text that comes in pieces, and gives out only what cannot be part of one. */
export interface StopScanner {
  /** Text that has become certain; `stopped` when a stop string is complete: the text then ends before it. */
  push(piece: string): { readonly text: string; readonly stopped: boolean };
  /** What was held back because it might have become a stop string. */
  end(): string;
}

/** Errors: an empty stop string. */
export function stopStrings(stops: readonly string[]): StopScanner {
  if (stops.includes('')) throw new RangeError('stopStrings: a stop string must have at least one character, got an empty one');
  let held = '';
  return {
    push(piece) {
      held += piece;
      const found = stops.map((stop) => held.indexOf(stop)).filter((at) => at >= 0);
      if (found.length > 0) {
        const text = held.slice(0, Math.min(...found));
        held = '';
        return { text, stopped: true };
      }
      const keep = Math.max(0, ...stops.map((stop) => overlap(held, stop)));
      const text = held.slice(0, held.length - keep);
      held = held.slice(held.length - keep);
      return { text, stopped: false };
    },
    end() {
      const rest = held;
      held = '';
      return rest;
    },
  };
}

/** Length of the longest end of `text` that begins `stop`. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
