/** Text out of token ids that arrive one at a time, with stop strings. */

export interface TextPiece {
  /** Text that is certain to belong to the result; may be empty. */
  text: string;
  /** A stop string was completed; its text and what follows are not in any piece. */
  stopped: boolean;
}

export interface TextStream {
  push(id: number): TextPiece;
  /** What was held back, at the end of the sequence; a stop string in it counts. */
  flush(): TextPiece;
  /** All text so far, without what is held back. */
  text(): string;
}

/** Bytes of a character that is not complete yet decode to this. */
const REPLACEMENT = '\uFFFD';

/**
 * @param decode text of token ids. Only the ids since the last complete piece are decoded again, so the cost does not grow with
 *   the length of the text.
 * @param stops stop strings; text that may be the start of one is held back.
 */
export function textStream(decode: (ids: readonly number[]) => string, stops: readonly string[]): TextStream {
  // Ids from `before` on give the context that spacing may depend on; their text up to `ready` was emitted.
  const ids: number[] = [];
  let before = 0;
  let ready = 0;
  let emitted = '';
  let held = '';
  const release = (more: string, isLast: boolean): TextPiece => {
    const candidate = held + more;
    const found = stops.map((stop) => candidate.indexOf(stop)).filter((at) => at >= 0);
    const stopped = found.length > 0;
    const end = stopped ? Math.min(...found) : candidate.length - (isLast ? 0 : overlap(candidate, stops));
    held = stopped ? '' : candidate.slice(end);
    const text = candidate.slice(0, end);
    emitted += text;
    return { text, stopped };
  };
  const unread = (): string => decode(ids.slice(before)).slice(decode(ids.slice(before, ready)).length);
  return {
    push(id) {
      ids.push(id);
      const more = unread();
      if (more === '' || more.endsWith(REPLACEMENT)) return { text: '', stopped: false };
      before = ready;
      ready = ids.length;
      return release(more, false);
    },
    flush() {
      const more = unread();
      before = ready = ids.length;
      return release(more, true);
    },
    text: () => emitted,
  };
}

/** Length of the longest end of `text` that is the start of a stop string. */
function overlap(text: string, stops: readonly string[]): number {
  const longest = stops.reduce((most, stop) => Math.max(most, stop.length - 1), 0);
  for (let length = Math.min(longest, text.length); length > 0; length--) {
    const end = text.slice(-length);
    if (stops.some((stop) => stop.length > length && stop.startsWith(end))) return length;
  }
  return 0;
}
