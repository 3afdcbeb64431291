import { InvalidArgumentError, UnavailableError } from './errors.ts'

/** How often and how long a call is tried. */
export interface RetryOptions {
  /** How often a call that got no answer is repeated. Default 4. */
  retries?: number
  /** How long one try may take, in milliseconds. Default 30,000. */
  timeoutMs?: number
}

/** What a transport throws when it cannot know whether the call took effect, or when a repeat may well succeed. */
export class NoAnswer extends Error {
  constructor(cause: unknown) {
    super(cause instanceof Error ? cause.message : String(cause), { cause })
  }
}

const FIRST_DELAY_MS = 100
const LONGEST_DELAY_MS = 2_000

/** The options with their defaults, checked. */
export function checkRetryOptions(options: RetryOptions): Required<RetryOptions> {
  const { retries = 4, timeoutMs = 30_000 } = options
  if (!Number.isInteger(retries) || retries < 0) {
    throw new InvalidArgumentError(`retries must be a whole number from 0, not ${retries}`)
  }
  if (!(timeoutMs > 0 && timeoutMs <= 2_147_483_647)) {
    throw new InvalidArgumentError(`timeoutMs must be a number from 1 to 2147483647, not ${timeoutMs}`)
  }
  return { retries, timeoutMs }
}

/**
 * Tries a call until it is answered, with full jitter between the tries. Throws what the call throws when that is an
 * answer, UnavailableError after the last try, and the signal's reason once it is aborted.
 */
export async function untilAnswered<T>(
  what: string,
  call: (signal: AbortSignal) => Promise<T>,
  options: Required<RetryOptions> & { signal?: AbortSignal | undefined },
): Promise<T> {
  for (let tried = 1; ; tried++) {
    try {
      return await withinTime(call, options.timeoutMs, options.signal)
    } catch (error) {
      if (!(error instanceof NoAnswer)) throw error
      if (tried > options.retries) {
        const tries = tried === 1 ? '' : ` in ${tried} tries`
        throw new UnavailableError(`${what} got no answer${tries}: ${error.message}`, { cause: error.cause })
      }
      await pause(
        Math.random() * Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** (tried - 1)),
        options.signal,
      )
    }
  }
}

/** One try: NoAnswer when it takes too long, the signal's reason when that is aborted first. */
async function withinTime<T>(
  call: (signal: AbortSignal) => Promise<T>,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<T> {
  signal?.throwIfAborted()
  const attempt = new AbortController()
  const stop = () => attempt.abort(signal?.reason)
  const timer = setTimeout(() => {
    attempt.abort(new NoAnswer(new Error(`it took longer than ${timeoutMs} ms`)))
  }, timeoutMs)
  signal?.addEventListener('abort', stop, { once: true })
  try {
    return await new Promise<T>((resolve, reject) => {
      attempt.signal.addEventListener('abort', () => reject(attempt.signal.reason), { once: true })
      call(attempt.signal).then(resolve, reject)
    })
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', stop)
  }
}

async function pause(milliseconds: number, signal: AbortSignal | undefined): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', stop)
      resolve()
    }, milliseconds)
    if (signal?.aborted) stop()
    else signal?.addEventListener('abort', stop, { once: true })
  })
}
