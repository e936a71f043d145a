/**
 * The first key that an object of a JSON text holds twice. `JSON.parse` keeps the last of them in silence, so that two readers of
 * one file could see two different files.
 *
 * @param text valid JSON: it has been through `JSON.parse`.
 */
export function duplicateKey(text: string): string | undefined {
  const open: (Set<string> | null)[] = [];  // keys of each open object; null for an array
  for (let at = 0; at < text.length; at++) {
    const letter = text[at];
    if (letter === '{') open.push(new Set());
    else if (letter === '[') open.push(null);
    else if (letter === '}' || letter === ']') open.pop();
    else if (letter === '"') {
      const end = closingQuote(text, at);
      const keys = open.at(-1);
      if (keys && isKey(text, end + 1)) {
        const key = JSON.parse(text.slice(at, end + 1)) as string;
        if (keys.has(key)) return key;
        keys.add(key);
      }
      at = end;
    }
  }
  return undefined;
}

/** A loop, not a pattern: V8's pattern matcher runs out of stack on strings of many MB. */
function closingQuote(text: string, opening: number): number {
  for (let end = text.indexOf('"', opening + 1); ; end = text.indexOf('"', end + 1)) {
    let before = end - 1;
    while (text[before] === '\\') before--;
    if ((end - before) % 2 === 1) return end;
  }
}

/** Whether a colon follows, after white space. */
function isKey(text: string, at: number): boolean {
  while (text[at] === ' ' || text[at] === '\n' || text[at] === '\r' || text[at] === '\t') at++;
  return text[at] === ':';
}
