import type { Json } from './database.types.ts'

/** A failure as fail_file takes it. */
export interface ErrorReport {
  message: string
  /** name, message, stack, code and cause of an Error; undefined for a plain text. */
  error: Json | undefined
}

/** What fail_file takes. */
const MESSAGE_BYTES = 65_536
const PART_BYTES = 16_384
const CAUSES = 4

/**
 * What a thrown value says, as text and as JSON that Postgres takes: no NUL, no half of a surrogate pair, bounded in
 * size (what is cut ends in a mark).
 */
export function reportError(thrown: unknown): ErrorReport {
  if (!(thrown instanceof Error)) return { message: clean(textOf(thrown), MESSAGE_BYTES), error: undefined }
  return { message: clean(textOf(thrown), MESSAGE_BYTES), error: describe(thrown, CAUSES) }
}

function describe(error: Error, causes: number): Json {
  const code: unknown = 'code' in error ? error.code : undefined
  const cause = error.cause
  return {
    name: clean(error.name, PART_BYTES),
    message: clean(textOf(error), PART_BYTES),
    ...(typeof error.stack === 'string' && { stack: clean(error.stack, PART_BYTES) }),
    ...((typeof code === 'string' || typeof code === 'number') && { code: clean(String(code), PART_BYTES) }),
    ...(cause !== undefined &&
      cause !== null &&
      causes > 0 && {
        cause: cause instanceof Error ? describe(cause, causes - 1) : clean(textOf(cause), PART_BYTES),
      }),
  }
}

/** The message of an error, or its name when it has none; any other value as text. Never throws, never empty. */
function textOf(thrown: unknown): string {
  try {
    return (thrown instanceof Error ? thrown.message || thrown.name : String(thrown)) || 'unknown error'
  } catch {
    return 'an error that has no text'
  }
}

function clean(text: string, limitBytes: number): string {
  const sound = text
    .slice(0, limitBytes + 1)
    .replaceAll('\0', '\uFFFD')
    .replace(/\p{Surrogate}/gu, '\uFFFD')
  const whole = new TextEncoder().encodeInto(sound, new Uint8Array(limitBytes))
  if (whole.read === sound.length) return sound
  const { read } = new TextEncoder().encodeInto(sound, new Uint8Array(limitBytes - 3))
  return `${sound.slice(0, read)}…`
}
