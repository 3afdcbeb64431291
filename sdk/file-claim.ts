import { encodeJson } from './arguments.ts'
import { ClaimPosition, positionOf, type SaveArguments } from './claim-position.ts'
import type { CallOptions, Connection, NumberWithin, Transaction, WriteOptions } from './connection.ts'
import { reportError } from './error-report.ts'
import {
  CheckpointConflictError,
  ClaimLostError,
  FilemarkError,
  PermanentError,
  RetryAfterError,
  UnavailableError,
} from './errors.ts'
import type { Log, Logger } from './logger.ts'
import type { Json, RowOf } from './rows.ts'

/** A checkpoint to save. */
export interface Checkpoint {
  /** The next position to process, as any JSON but null: 0, false and '' are fine. */
  cursor: NonNullable<unknown>
  /** Items done so far in the whole file: a total, never the size of a batch. */
  itemsProcessed: number
  /** What was worked out so far, as any JSON. `{}` clears it; left out, what is there stays. */
  accumulatedResults?: unknown
  /** How many items the file has, when that is known; left out, what is there stays. */
  itemsTotal?: number | undefined
}

export type SavedCheckpoint = RowOf<'checkpoint_file'>
export type PersistedRecords = RowOf<'persist_records'>

/** What is known of a file when it is finished. Everything is optional. */
export interface CompletionStats {
  /** Records read, those left out on purpose, and those written. Default 0 each. */
  totalRows?: number | undefined
  filteredRows?: number | undefined
  persistedRows?: number | undefined
  /** Processing time in milliseconds. Default: measured by the database from the claim on. */
  durationMs?: number | undefined
  /** The final results; left out, those of the last checkpoint stay. */
  accumulatedResults?: unknown
  /** The etag that was actually read: when it is not the claimed one, the file is processed again. */
  etag?: string | null | undefined
}

/**
 * `superseded`: a newer content of the file was seen meanwhile, it is pending again. `already_completed`: this claim
 * completed the file before.
 */
export type CompletionOutcome = 'completed' | 'already_completed' | 'superseded'

export interface FailOptions {
  /** False: no more attempts, straight to the dead letter. Default true, and false for a PermanentError. */
  retryable?: boolean | undefined
  /** When the next attempt is due, whatever the backoff says. Default: that of a RetryAfterError. */
  retryAfterSeconds?: number | undefined
}

/** What became of the file: `pending` when a newer content of it was seen meanwhile. */
export interface FailedFile {
  status: 'failed' | 'dead_letter' | 'pending'
  attempts: number
  /** When the next attempt is due; null in the dead letter. */
  availableAt: Date | null
}

/** How a claim ended, as far as this process knows. */
export type ClaimEnd = { tx?: Transaction | undefined } & (
  | { how: 'completed' | 'superseded' | 'released' }
  | { how: 'failed'; error: unknown; file: FailedFile }
  | { how: 'lost'; error: ClaimLostError }
)

/** What a claim gets from its CheckpointManager. */
export interface ClaimContext {
  connection: Connection
  log: Log
  /** Called when the claim has ended or is lost for good. */
  onEnd(claim: FileClaim): void
}

const BACK_AT_COMMITTED =
  'The claim is back at its last committed checkpoint: go on from its cursor. A save before was in a transaction that ' +
  'was rolled back, or got no answer.'

type ClaimRow = RowOf<'claim_file'>

/** What only processFile may do with a claim. */
export let claimControl: {
  /** Aborts the signal, so that whoever works on the claim stops. */
  stop(claim: FileClaim, reason: unknown): void
  endOf(claim: FileClaim): ClaimEnd | undefined
}

/**
 * The right to work on one file, until it is completed, failed or released, or lost. It follows its own saves: cursor,
 * itemsProcessed and checkpointSeq are those of the last save.
 *
 * Every method throws ClaimLostError when another worker has taken the file over or the claim has ended, and
 * UnavailableError when the database did not answer; repeating a call is always safe. Every method but `refresh` takes
 * `{ tx }` to join the caller's transaction on a direct connection.
 *
 * **When a transaction with a save in it is rolled back**, the claim cannot know. It finds out at its next save: the same
 * save again is taken as a repeat and simply saved; any other, and `complete`, throws CheckpointConflictError, and the
 * claim is back at its last committed checkpoint, from whose cursor to go on. `refresh()` finds out at once.
 */
export class FileClaim {
  readonly pipeline: string
  readonly fileUrl: string
  readonly fileType: string
  readonly fileTimestamp: Date
  readonly etag: string | null
  readonly sizeBytes: number | null
  readonly metadata: Json
  /** 1 for the first content seen at that URL, one more with every new etag. */
  readonly generation: number
  /** The fencing token: grows by one at every claim of the file. */
  readonly claimToken: number
  /** Claims counted against the retry budget, this one included, and how many there may be. */
  readonly attempts: number
  readonly maxAttempts: number
  /** How long the claim lasts without a renewal; every save renews it. */
  readonly leaseSeconds: number

  readonly #context: ClaimContext
  readonly #abort = new AbortController()
  #leaseExpiresAt: Date
  readonly #position: ClaimPosition
  #end: ClaimEnd | undefined
  #endsUnderWay = 0
  /** Saves run one after the other, in the order in which they were called. */
  #turn: Promise<unknown> = Promise.resolve()

  static {
    claimControl = {
      stop: (claim, reason) => claim.#abort.abort(reason),
      endOf: (claim) => claim.#end,
    }
  }

  /** Made by CheckpointManager. */
  constructor(context: ClaimContext, row: ClaimRow) {
    this.#context = context
    this.pipeline = row.pipeline
    this.fileUrl = row.fileUrl
    this.fileType = row.fileType
    this.fileTimestamp = row.fileTimestamp
    this.etag = row.etag
    this.sizeBytes = row.sizeBytes
    this.metadata = row.metadata
    this.generation = row.generation
    this.claimToken = row.claimToken
    this.attempts = row.attempts
    this.maxAttempts = row.maxAttempts
    this.leaseSeconds = row.leaseSeconds
    this.#leaseExpiresAt = row.leaseExpiresAt as Date
    this.#position = new ClaimPosition(positionOf(row))
  }

  /** The next position to process; null: from the beginning. */
  get cursor(): Json {
    return this.#position.current.cursor
  }

  /** Is there a checkpoint to go on from? */
  get hasCheckpoint(): boolean {
    return this.checkpointSeq > 0
  }

  /** Items done so far in the whole file. */
  get itemsProcessed(): number {
    return this.#position.current.itemsProcessed
  }

  get itemsTotal(): number | null {
    return this.#position.current.itemsTotal
  }

  get accumulatedResults(): Json {
    return this.#position.current.accumulatedResults
  }

  /** The number of the last checkpoint; 0: none. */
  get checkpointSeq(): number {
    return this.#position.current.checkpointSeq
  }

  /** The end of the lease by the database's clock, as of the last renewal. */
  get leaseExpiresAt(): Date {
    return this.#leaseExpiresAt
  }

  /**
   * Aborts when the claim is found to be lost, with the ClaimLostError as its reason; inside processFile also when its
   * `signal` aborts. Give it to whatever the work waits for.
   */
  get signal(): AbortSignal {
    return this.#abort.signal
  }

  /** How the claim ended, as far as this process knows; undefined while it is held. */
  get ended(): ClaimEnd['how'] | undefined {
    return this.#end?.how
  }

  /**
   * Saves the position and renews the lease. Throws CheckpointConflictError when the checkpoint does not follow the last
   * one, TooLargeError when the cursor or the results are.
   */
  async saveCheckpoint(checkpoint: Checkpoint, options: WriteOptions = {}): Promise<SavedCheckpoint> {
    const args = saveArguments(checkpoint)
    return await this.#inTurn(async () => {
      const saved = await this.#save(args, options, (numbered, within) =>
        this.#context.connection.save('checkpoint_file', numbered, options, within),
      )
      this.#logSaved({ history_length: saved.historyLength })
      return saved
    })
  }

  /**
   * Inserts the records into a table (`schema.table`, or `table` in public) and saves the checkpoint, in one
   * transaction: over plain HTTP too, each record is loaded exactly once. Conflicts with a unique key are skipped and
   * not counted. Throws as saveCheckpoint, and InvalidArgumentError for a column the table does not have.
   */
  async persistRecords(
    target: string,
    records: readonly object[],
    checkpoint: Omit<Checkpoint, 'itemsTotal'>,
    options: WriteOptions = {},
  ): Promise<PersistedRecords> {
    const { p_items_total: _, ...position } = saveArguments(checkpoint)
    const args = { ...position, p_target: target, p_records: records }
    return await this.#inTurn(async () => {
      const persisted = await this.#save(args, options, (numbered, within) =>
        this.#context.connection.save('persist_records', numbered, options, within),
      )
      this.#logSaved({ records_persisted: persisted.recordsPersisted })
      return persisted
    })
  }

  /** Renews the lease; answers its new end. processFile does so by itself. */
  async extend(options: WriteOptions = {}): Promise<Date> {
    // Not in turn: it may wait for a transaction that holds the row, and whose next save would then wait for it.
    try {
      this.#leaseExpiresAt = await this.#context.connection.call('extend_claim', this.#key(), options)
      return this.#leaseExpiresAt
    } catch (error) {
      // One that crosses the claim's end on its way finds it ended.
      if (this.#endsUnderWay === 0) this.#noteLoss(error)
      throw error
    }
  }

  /**
   * Finishes the file. Throws CheckpointConflictError when the transaction of the last save was rolled back: then what
   * that was to save is still to be done.
   */
  async complete(
    stats: CompletionStats = {},
    options: WriteOptions = {},
  ): Promise<{ outcome: CompletionOutcome }> {
    return await this.#finish(async () => {
      if (this.#position.isUncommitted) await this.#checkPosition(options)
      const [row] = await this.#context.connection.call(
        'complete_file',
        {
          ...this.#key(),
          p_records_total: stats.totalRows,
          p_records_filtered: stats.filteredRows,
          p_records_persisted: stats.persistedRows,
          p_processing_time_ms: stats.durationMs,
          p_accumulated_results: stats.accumulatedResults,
          p_etag: stats.etag,
        },
        options,
      )
      const outcome = row?.outcome as CompletionOutcome
      this.#endAs({ how: outcome === 'superseded' ? outcome : 'completed', tx: options.tx })
      this.#log('info', 'file_completed', { outcome, items_processed: this.itemsProcessed })
      return { outcome }
    })
  }

  /**
   * Says that this attempt failed, with an Error or a text: the file is retried with backoff, or goes to the dead letter.
   */
  async fail(error: unknown, options: FailOptions & WriteOptions = {}): Promise<FailedFile> {
    const report = reportError(error)
    const seconds =
      options.retryAfterSeconds ?? (error instanceof RetryAfterError ? Math.ceil(error.seconds) : undefined)
    return await this.#finish(async () => {
      const [row] = await this.#context.connection.call(
        'fail_file',
        {
          ...this.#key(),
          p_error_message: report.message,
          p_retryable: options.retryable ?? !(error instanceof PermanentError),
          p_error: report.error,
          p_retry_after_seconds: seconds,
        },
        options,
      )
      const file = row as FailedFile
      this.#endAs({ how: 'failed', tx: options.tx, error, file })
      this.#log(file.status === 'dead_letter' ? 'error' : 'warn', 'file_failed', {
        status: file.status,
        attempts: file.attempts,
        available_at: file.availableAt,
        error_message: report.message,
      })
      return file
    })
  }

  /** Gives the file back at once, with its checkpoint, and does not count the attempt: for a shutdown. */
  async release(options: WriteOptions = {}): Promise<void> {
    await this.#finish(async () => {
      await this.#context.connection.call('release_file', this.#key(), options)
      this.#endAs({ how: 'released', tx: options.tx })
      this.#log('info', 'file_released', { items_processed: this.itemsProcessed })
    })
  }

  /**
   * Reads the checkpoint as the database has it. Call it after a transaction with a save in it was rolled back, before
   * going on from `cursor`.
   */
  async refresh(options: CallOptions = {}): Promise<void> {
    await this.#inTurn(() => this.#read(options))
  }

  #key(): FileKey {
    return { p_file_url: this.fileUrl, p_claim_token: this.claimToken, p_pipeline: this.pipeline }
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const turn = this.#turn.then(work)
    this.#turn = turn.catch(() => {})
    try {
      return await turn
    } catch (error) {
      this.#noteLoss(error)
      throw error
    }
  }

  async #save<Args extends SaveArguments, Row extends { checkpointSeq: number; leaseExpiresAt: Date }>(
    args: Args,
    { tx, signal }: WriteOptions,
    send: (
      numbered: Args & FileKey & { p_checkpoint_seq: number },
      within: NumberWithin | undefined,
    ) => Promise<{ rows: Row[]; transaction: string | undefined }>,
  ): Promise<Row> {
    if (this.#position.isInDoubt(args, tx)) await this.#checkPosition({ tx, signal })
    const save = this.#position.plan(args, tx)
    try {
      const numbered = { ...this.#key(), ...args, p_checkpoint_seq: save.checkpointSeq }
      const { rows, transaction } = await send(numbered, save.within)
      const row = rows[0] as Row
      this.#position.noteSaved(save, row.checkpointSeq, transaction)
      this.#leaseExpiresAt = row.leaseExpiresAt
      // A claim that ended in a transaction and can save again has not ended.
      this.#end = undefined
      return row
    } catch (error) {
      if (error instanceof CheckpointConflictError) throw await this.#fallBack(error, tx)
      if (!(error instanceof FilemarkError) || error instanceof UnavailableError) {
        this.#position.noteUnanswered(save)
      }
      throw error
    }
  }

  /** Back to the last committed checkpoint after a refused one. */
  async #fallBack(
    error: CheckpointConflictError,
    tx: Transaction | undefined,
  ): Promise<CheckpointConflictError> {
    this.#position.fallBack()
    // Not while a transaction is open: it may hold the only connection, and is lost anyway.
    if (!tx) await this.#read({}).catch(() => {})
    return new CheckpointConflictError(error.message, {
      cause: error.cause,
      detail: error.detail,
      hint: error.hint ?? BACK_AT_COMMITTED,
    })
  }

  /** Refuses to go on when the database is not where the claim, and so whoever works on it, believes it is. */
  async #checkPosition(options: WriteOptions): Promise<void> {
    const believed = this.checkpointSeq
    try {
      await this.#read(options)
    } catch (error) {
      // The call itself will say it, and better: a claim that has ended may be told so again.
      if (error instanceof ClaimLostError) return
      throw error
    }
    if (this.checkpointSeq !== believed) {
      throw new CheckpointConflictError(
        `the last checkpoint of file "${this.fileUrl}" is ${this.checkpointSeq}, not ${believed}`,
        { hint: BACK_AT_COMMITTED },
      )
    }
  }

  async #read(options: WriteOptions): Promise<void> {
    const [row] = await this.#context.connection.call(
      'get_file_checkpoint',
      { p_file_url: this.fileUrl, p_pipeline: this.pipeline },
      options,
    )
    if (row?.claimToken !== this.claimToken || row.status !== 'processing') {
      throw new ClaimLostError(`claim ${this.claimToken} on file "${this.fileUrl}" is lost`, {
        detail: row
          ? `The file is now ${row.status}; the last claim is ${row.claimToken}.`
          : 'The file is gone.',
      })
    }
    this.#position.noteRead(positionOf(row))
    this.#leaseExpiresAt = row.leaseExpiresAt ?? this.#leaseExpiresAt
    this.#end = undefined
  }

  async #finish<T>(work: () => Promise<T>): Promise<T> {
    this.#endsUnderWay++
    try {
      return await this.#inTurn(work)
    } finally {
      this.#endsUnderWay--
    }
  }

  /** An end in a transaction may be rolled back: the manager keeps such a claim. */
  #endAs(end: ClaimEnd): void {
    this.#end = end
    if (!end.tx) this.#context.onEnd(this)
  }

  #noteLoss(error: unknown): void {
    if (!(error instanceof ClaimLostError) || this.#end) return
    this.#end = { how: 'lost', error }
    this.#context.onEnd(this)
    this.#log('warn', 'claim_lost', { detail: error.detail ?? error.message })
    this.#abort.abort(error)
  }

  #logSaved(fields: Record<string, unknown>): void {
    this.#log('debug', 'checkpoint_saved', {
      cursor: this.cursor,
      items_processed: this.itemsProcessed,
      checkpoint_seq: this.checkpointSeq,
      ...fields,
    })
  }

  #log(level: keyof Logger, event: string, fields: Record<string, unknown>): void {
    this.#context.log(level, event, { file_url: this.fileUrl, claim_token: this.claimToken, ...fields })
  }
}

interface FileKey {
  p_file_url: string
  p_claim_token: number
  p_pipeline: string
}

/** A copy: what the caller does to its objects later is no part of the checkpoint. */
function saveArguments(checkpoint: Checkpoint): SaveArguments {
  const copy = (name: string, value: unknown) => structuredClone(encodeJson(name, value))
  const { cursor, itemsProcessed, accumulatedResults, itemsTotal } = checkpoint
  return {
    p_cursor: copy('p_cursor', cursor ?? null),
    p_items_processed: itemsProcessed,
    p_accumulated_results:
      accumulatedResults === undefined ? undefined : copy('p_accumulated_results', accumulatedResults),
    p_items_total: itemsTotal,
  }
}
