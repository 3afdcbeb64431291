import { ClaimLostError, UnavailableError } from './errors.ts'
import { type CompletionStats, claimControl, type FileClaim } from './file-claim.ts'
import type { Log } from './logger.ts'

/**
 * Works on a claimed file, from `claim.cursor` on. When it returns, the file is completed (with the stats it returns, if
 * any); when it throws, the attempt has failed: PermanentError means no more attempts, RetryAfterError says when. It may
 * as well end the claim itself with complete, fail or release.
 */
export type FileHandler = (claim: FileClaim) => HandlerResult | Promise<HandlerResult>

// biome-ignore lint/suspicious/noConfusingVoidType: a handler that returns nothing is one without a return
type HandlerResult = CompletionStats | undefined | void

export interface ProcessOptions {
  /** Stops the work: `claim.signal` aborts, and when the handler has come to its end the claim is released. */
  signal?: AbortSignal | undefined
  /**
   * How long a handler may take, in milliseconds, to come to its end after `claim.signal` aborted. Then it is not waited
   * for any longer; what it still tries to save is refused. Default 2,000.
   */
  graceMs?: number | undefined
}

/** Why there is no claim. `completed`, `dead_letter` and `skipped` are for good, the others for now. */
export type ClaimRefusal = 'held' | 'completed' | 'waiting' | 'dead_letter' | 'skipped' | 'paused' | 'busy'

/** What became of a claimed file. `error` is what the handler threw. */
export type ProcessedFile = { claimed: true; claim: FileClaim } & (
  | {
      /** `superseded`: newer content was seen meanwhile, the file is pending again. */
      outcome: 'completed' | 'superseded' | 'released'
      error?: unknown
    }
  | {
      outcome: 'failed' | 'dead_letter'
      error: unknown
      attempts: number
      /** When the next attempt is due; null in the dead letter. */
      availableAt: Date | null
    }
  | { outcome: 'claim_lost'; error: ClaimLostError }
)

/** What became of a file. `claimed: false`: nothing was done, `outcome` says why. */
export type ProcessFileResult = { claimed: false; outcome: ClaimRefusal } | ProcessedFile

/** How the handler came to its end. `stopped`: it did not, and is not waited for. */
type HandlerEnd =
  | { by: 'return'; stats: CompletionStats }
  | { by: 'throw'; error: unknown }
  | { by: 'stopped' }

/**
 * Runs the handler on a claim, renews the lease meanwhile, and ends the claim as the handler ended. Throws
 * UnavailableError when the database cannot be told.
 */
export async function runHandler(
  claim: FileClaim,
  handler: FileHandler,
  { signal, graceMs = 2_000 }: ProcessOptions,
  log: Log,
): Promise<ProcessedFile> {
  const stop = () => claimControl.stop(claim, signal?.reason)
  signal?.addEventListener('abort', stop, { once: true })
  const renewal = keepRenewing(claim, log)
  let end: HandlerEnd = { by: 'stopped' }
  try {
    if (signal?.aborted) stop()
    else if (!claim.ended) end = await waitFor(handler, claim, graceMs)
  } finally {
    renewal.stop()
    signal?.removeEventListener('abort', stop)
  }
  try {
    await endClaim(claim, end, signal?.aborted === true)
  } catch (error) {
    if (!(error instanceof ClaimLostError)) throw error
  }
  return outcomeOf(claim, end)
}

async function waitFor(handler: FileHandler, claim: FileClaim, graceMs: number): Promise<HandlerEnd> {
  let timer: ReturnType<typeof setTimeout> | undefined
  let giveUp: (() => void) | undefined
  const stopped = new Promise<HandlerEnd>((resolve) => {
    giveUp = () => {
      timer = setTimeout(() => resolve({ by: 'stopped' }), graceMs)
    }
    claim.signal.addEventListener('abort', giveUp, { once: true })
  })
  const handled = Promise.resolve(claim)
    .then(handler)
    .then(
      (stats): HandlerEnd => ({ by: 'return', stats: typeof stats === 'object' ? stats : {} }),
      (error): HandlerEnd => ({ by: 'throw', error }),
    )
  try {
    return await Promise.race([handled, stopped])
  } finally {
    clearTimeout(timer)
    if (giveUp) claim.signal.removeEventListener('abort', giveUp)
  }
}

/** Ends the claim as the handler ended, unless that has done so itself. */
async function endClaim(claim: FileClaim, end: HandlerEnd, isStopped: boolean): Promise<void> {
  if (claimControl.endOf(claim)?.tx) await confirmEnd(claim, end)
  if (claim.ended) return
  if (isStopped) {
    await claim.release()
  } else if (end.by === 'return') {
    try {
      await claim.complete(end.stats)
    } catch (error) {
      if (error instanceof ClaimLostError || error instanceof UnavailableError) throw error
      await failWith(claim, error)
    }
  } else if (end.by === 'throw') {
    await failWith(claim, end.error)
  }
}

/** The handler's transaction that ended the claim may have been rolled back: then the claim is still held. */
async function confirmEnd(claim: FileClaim, end: HandlerEnd): Promise<void> {
  try {
    await claim.refresh()
  } catch (error) {
    if (error instanceof ClaimLostError) return
    throw error
  }
  const rolledBack = new Error('the transaction that ended the claim was rolled back')
  await failWith(claim, end.by === 'throw' ? end.error : rolledBack)
}

/** Whatever keeps the failure from being recorded, the handler's error is not lost. */
async function failWith(claim: FileClaim, error: unknown): Promise<void> {
  try {
    await claim.fail(error)
  } catch (failure) {
    if (!(failure instanceof UnavailableError)) throw failure
    throw new UnavailableError(`${failure.message}; what failed is the cause`, { cause: error })
  }
}

function outcomeOf(claim: FileClaim, end: HandlerEnd): ProcessedFile {
  const claimEnd = claimControl.endOf(claim)
  const common = { claimed: true, claim } as const
  if (!claimEnd) throw new Error('the claim has not ended')
  switch (claimEnd.how) {
    case 'lost':
      return { ...common, outcome: 'claim_lost', error: claimEnd.error }
    case 'failed': {
      const { error, file } = claimEnd
      if (file.status === 'pending') return { ...common, outcome: 'superseded', error }
      return {
        ...common,
        outcome: file.status,
        error,
        attempts: file.attempts,
        availableAt: file.availableAt,
      }
    }
    default:
      return { ...common, outcome: claimEnd.how, ...(end.by === 'throw' && { error: end.error }) }
  }
}

/** Renews the lease at a third of it, one renewal at a time. Does not keep the process alive. */
function keepRenewing(claim: FileClaim, log: Log): { stop(): void } {
  const stopped = new AbortController()
  let timer: ReturnType<typeof setTimeout>
  const schedule = () => {
    timer = setTimeout(renew, (claim.leaseSeconds * 1000) / 3)
    // Only Node.js has timers that can be told so.
    if (typeof timer === 'object') timer.unref()
  }
  const renew = async () => {
    try {
      await claim.extend({ signal: stopped.signal })
    } catch (error) {
      // A lost claim says so itself; anything else may be over by the next time.
      if (!stopped.signal.aborted && !(error instanceof ClaimLostError)) {
        log('warn', 'renewal_failed', { file_url: claim.fileUrl, error_message: String(error) })
      }
    }
    if (!stopped.signal.aborted && !claim.ended) schedule()
  }
  schedule()
  return {
    stop() {
      clearTimeout(timer)
      stopped.abort()
    },
  }
}
