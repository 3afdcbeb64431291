/**
 * A JSON number as a JavaScript number, or as the text it was written in when a JavaScript number would change
 * it: an integer beyond 2^53 (an id, often) or a magnitude beyond 1.8e308. Postgres reads the text as the number.
 */
export function exactNumber(source: string): number | string {
  const value = Number(source)
  const kept =
    Number.isInteger(value) && /^-?\d+$/.test(source) ? Number.isSafeInteger(value) : Number.isFinite(value)
  return kept ? value : source
}

/** `JSON.parse` with {@link exactNumber}. */
export function parseJson(text: string): unknown {
  // Reviving is several times slower, so only for a text that has a run of digits (or an exponent) to look at.
  return /\d{16}|\d[eE]\+?\d{3}/.test(text) ? JSON.parse(text, reviveExactly) : JSON.parse(text)
}

// The third argument is `JSON.parse source text access`: in Node since 21, in TypeScript's library later.
function reviveExactly(_key: string, value: unknown, context?: { source?: string }): unknown {
  return typeof value === 'number' && context?.source !== undefined ? exactNumber(context.source) : value
}
