import type { Time } from './arguments.ts'
import {
  type CallOptions,
  type Connection,
  connect,
  type DatabaseClient,
  type WriteOptions,
} from './connection.ts'
import { ClaimLostError } from './errors.ts'
import {
  type CompletionOutcome,
  type CompletionStats,
  type FailedFile,
  type FailOptions,
  FileClaim,
} from './file-claim.ts'
import { type Log, type Logger, logTo } from './logger.ts'
import {
  type ClaimRefusal,
  type FileHandler,
  type ProcessedFile,
  type ProcessFileResult,
  type ProcessOptions,
  runHandler,
} from './process-file.ts'
import { checkRetryOptions, type RetryOptions } from './retry.ts'
import type { RowOf } from './rows.ts'
import { newWorkerId } from './worker-id.ts'

export interface CheckpointManagerOptions extends RetryOptions {
  /** The consumer whose files these are. Default 'default'. */
  pipeline?: string
  /** The name this worker claims under. Default `worker_<host>_<pid>_<random>`. */
  workerId?: string
  /** Of pino's shape. Default: silent. */
  logger?: Logger
}

/** A file to claim by name, known already or not. */
export interface FileToClaim {
  /** A URL, or any stable id of a unit of work. */
  url: string
  type: string
  /** When the file was last changed, as its source says. */
  timestamp: Time
  /** The content's version: another one than known makes the file be processed again. */
  etag?: string | null | undefined
}

/** A file to make known. */
export interface FileToRegister extends FileToClaim {
  sizeBytes?: number | undefined
  /** Higher comes first. Default 0. */
  priority?: number | undefined
  /** Not to be claimed by claimNextFiles before. Default: now. */
  availableAt?: Time | undefined
  /** Any JSON object for the handler. Default {}. */
  metadata?: unknown
}

export type RegisteredFiles = RowOf<'register_files'>

export type FileStatus = 'pending' | 'processing' | 'completed' | 'failed' | 'dead_letter' | 'skipped'

/** Everything known about a file. */
export type FileCheckpoint = Omit<RowOf<'get_file_checkpoint'>, 'status'> & { status: FileStatus }

/**
 * What is left of a file that maintenance purged: it was completed, and nothing else is known but its type, time,
 * generation and token. `createdAt` is null, which it is of no other file.
 */
export type PurgedFile = {
  [K in keyof FileCheckpoint]: K extends KeptOfPurged
    ? FileCheckpoint[K]
    : K extends 'status'
      ? 'completed'
      : null
}
type KeptOfPurged = 'pipeline' | 'fileUrl' | 'fileType' | 'fileTimestamp' | 'generation' | 'claimToken'

/** A pipeline in numbers. */
export type PipelineStats = Omit<RowOf<'pipeline_stats'>, NullableStats> & {
  /** How long the file that is due longest has been waiting; null when none is. */
  oldestPendingAgeSeconds: number | null
  /** Failed and dead files among all that were finished or failed; null without any. */
  failureRatio: number | null
  lastCompletedAt: Date | null
}
type NullableStats = 'oldestPendingAgeSeconds' | 'failureRatio' | 'lastCompletedAt'

export interface ListOptions extends CallOptions {
  /** Only files in this state. */
  status?: FileStatus | undefined
  /** 1 to 1,000. Default 100. */
  limit?: number | undefined
  /** The last URL of the page before. */
  after?: string | undefined
}

export interface RequeueOptions extends SkipOptions {
  /** Where to go on: the last checkpoint, the start, or a checkpoint of the history. Default 'checkpoint'. */
  from?: 'checkpoint' | 'start' | `checkpoint:${number}` | undefined
  /** Take the file even from a live holder, whose claim is lost then. Default false. */
  force?: boolean | undefined
}

export interface SkipOptions extends WriteOptions {
  /** For the audit. */
  reason?: string | undefined
  actor?: string | undefined
}

/** What register_files and pending_files take at once. */
const REGISTER_BATCH = 10_000
const PENDING_BATCH = 1_000
/** From so many claims on, those that ended in a transaction are no longer kept. */
const KEPT_CLAIMS = 1_000

/**
 * One pipeline's files: claims them, and asks about them.
 *
 * The client is a supabase-js client (with a key that may call the functions), a postgres.js `sql`, a node-postgres Pool
 * or Client, or a PGlite. All rules are in the database; this class calls its functions and repeats calls that got no
 * answer, which is safe for each of them.
 *
 * Every method throws UnavailableError when the database does not answer, InvalidArgumentError for an argument that
 * cannot be right, and FilemarkError with the SQLSTATE for whatever else the database says.
 */
export class CheckpointManager {
  readonly pipeline: string
  readonly #workerId: string
  readonly #connection: Connection
  readonly #log: Log
  /** The claims this manager holds, by URL. */
  readonly #claims = new Map<string, FileClaim>()

  constructor(client: DatabaseClient, options: CheckpointManagerOptions = {}) {
    this.pipeline = options.pipeline ?? 'default'
    this.#workerId = options.workerId ?? newWorkerId()
    this.#connection = connect(client, checkRetryOptions(options))
    this.#log = logTo(options.logger, { pipeline: this.pipeline, worker_id: this.#workerId })
  }

  /** The name this worker claims under. */
  getWorkerId(): string {
    return this.#workerId
  }

  /**
   * Makes files known, so that claimNextFiles finds them. A new etag makes a known file be processed again. Any iterable,
   * also an asynchronous one, is sent in batches of 10,000; the counts are summed. A repeat changes nothing.
   */
  async registerFiles(
    files: Iterable<FileToRegister> | AsyncIterable<FileToRegister>,
    options: WriteOptions = {},
  ): Promise<RegisteredFiles> {
    const sum = { registered: 0, newGenerations: 0, unchanged: 0 }
    for await (const batch of inBatches(files, REGISTER_BATCH)) {
      const p_files = batch.map((file) => ({
        file_url: file.url,
        file_type: file.type,
        file_timestamp: file.timestamp,
        etag: file.etag,
        size_bytes: file.sizeBytes,
        priority: file.priority,
        available_at: file.availableAt,
        metadata: file.metadata,
      }))
      const rows = await this.#connection.call(
        'register_files',
        { p_files, p_pipeline: this.pipeline },
        options,
      )
      for (const row of rows) {
        sum.registered += row.registered
        sum.newGenerations += row.newGenerations
        sum.unchanged += row.unchanged
      }
    }
    return sum
  }

  /** Claims one file by name, known or not; null when someone else has it, or it is done, or may not be claimed now. */
  async claimFile(file: FileToClaim, options: WriteOptions = {}): Promise<FileClaim | null> {
    const { claim } = await this.#claim(file, options)
    return claim ?? null
  }

  /**
   * Claims the next files that are due, highest priority first: none to `limit` (1 to 100, default 1), of one `type` or
   * of all. Each lease runs from now on, so claim no more than can be started soon.
   */
  async claimNextFiles(
    options: { limit?: number | undefined; type?: string | undefined } & WriteOptions = {},
  ): Promise<FileClaim[]> {
    const rows = await this.#connection.call(
      'claim_next_files',
      {
        p_worker_id: this.#workerId,
        p_limit: options.limit,
        p_pipeline: this.pipeline,
        p_file_type: options.type,
        p_request_id: crypto.randomUUID(),
      },
      options,
    )
    return rows.map((row) => this.#hold(row))
  }

  /**
   * Claims a file by name, runs the handler on it and ends the claim as the handler ends: completed when it returns,
   * failed when it throws, released when `signal` aborts. The lease is renewed meanwhile. What became of the file is in
   * the result; only a database that cannot be reached throws (UnavailableError).
   */
  async processFile(
    file: FileToClaim,
    handler: FileHandler,
    options: ProcessOptions = {},
  ): Promise<ProcessFileResult> {
    options.signal?.throwIfAborted()
    // Without the signal: a claim whose answer nobody waits for would stand until its lease is over.
    const { outcome, claim } = await this.#claim(file, {})
    if (!claim) return { claimed: false, outcome: outcome as ClaimRefusal }
    return await this.processClaim(claim, handler, options)
  }

  /** As processFile, for a claim of claimFile or claimNextFiles. */
  async processClaim(
    claim: FileClaim,
    handler: FileHandler,
    options: ProcessOptions = {},
  ): Promise<ProcessedFile> {
    return await runHandler(claim, handler, options, this.#log)
  }

  /** Finishes the file this manager has claimed under that URL. Throws ClaimLostError when it holds no claim on it. */
  async completeFile(
    url: string,
    stats: CompletionStats = {},
    options: WriteOptions = {},
  ): Promise<{ outcome: CompletionOutcome }> {
    return await this.#held(url).complete(stats, options)
  }

  /**
   * Says that the attempt on the file this manager has claimed under that URL failed, with an Error or a text. Throws
   * ClaimLostError when it holds no claim on it.
   */
  async failFile(url: string, error: unknown, options: FailOptions & WriteOptions = {}): Promise<FailedFile> {
    return await this.#held(url).fail(error, options)
  }

  /** Is the file completed? */
  async isProcessed(url: string, options: CallOptions = {}): Promise<boolean> {
    const file = await this.getFile(url, options)
    return file?.status === 'completed'
  }

  /** Everything known about the file, which is little of a purged one; null when it is unknown. */
  async getFile(url: string, options: CallOptions = {}): Promise<FileCheckpoint | PurgedFile | null> {
    const args = { p_file_url: url, p_pipeline: this.pipeline }
    const [row] = await this.#connection.call('get_file_checkpoint', args, { signal: options.signal })
    return (row as FileCheckpoint | PurgedFile | undefined) ?? null
  }

  /** Known files by URL, a page at a time: give the last URL of a page as `after` for the next. */
  async listFiles(options: ListOptions = {}): Promise<FileCheckpoint[]> {
    const rows = await this.#connection.call(
      'list_file_checkpoints',
      { p_status: options.status, p_limit: options.limit, p_after: options.after, p_pipeline: this.pipeline },
      { signal: options.signal },
    )
    return rows as FileCheckpoint[]
  }

  /** Of the given URLs, known or not, those that claimFile would get now, in the order given. */
  async pendingFiles(
    urls: Iterable<string> | AsyncIterable<string>,
    options: CallOptions = {},
  ): Promise<string[]> {
    const pending: string[] = []
    for await (const p_file_urls of inBatches(urls, PENDING_BATCH)) {
      const args = { p_file_urls, p_pipeline: this.pipeline }
      const rows = await this.#connection.call('pending_files', args, { signal: options.signal })
      for (const row of rows) pending.push(row.fileUrl)
    }
    return pending
  }

  /** The pipeline in numbers; null before its first use. */
  async stats(options: CallOptions = {}): Promise<PipelineStats | null> {
    const args = { p_pipeline: this.pipeline }
    const [row] = await this.#connection.call('pipeline_stats', args, { signal: options.signal })
    return row ?? null
  }

  /**
   * Makes a file pending again, with a full retry budget; audited. Throws UnknownFileError, and InvalidStateError for a
   * file that is being processed unless `force` is set.
   */
  async requeueFile(
    url: string,
    options: RequeueOptions = {},
  ): Promise<{ status: FileStatus; checkpointSeq: number }> {
    const [row] = await this.#connection.call(
      'requeue_file',
      {
        p_file_url: url,
        p_from: options.from,
        p_force: options.force,
        p_reason: options.reason,
        p_actor: options.actor,
        p_pipeline: this.pipeline,
      },
      options,
    )
    return row as { status: FileStatus; checkpointSeq: number }
  }

  /**
   * Takes a file out of the queue until it is requeued or its content changes; audited. Throws UnknownFileError, and
   * InvalidStateError for a file that is being processed.
   */
  async skipFile(url: string, options: SkipOptions = {}): Promise<void> {
    await this.#connection.call(
      'skip_file',
      { p_file_url: url, p_reason: options.reason, p_actor: options.actor, p_pipeline: this.pipeline },
      options,
    )
  }

  async #claim(file: FileToClaim, options: WriteOptions): Promise<{ outcome: string; claim?: FileClaim }> {
    const [row] = await this.#connection.call(
      'claim_file',
      {
        p_file_url: file.url,
        p_file_type: file.type,
        p_file_timestamp: file.timestamp,
        p_worker_id: this.#workerId,
        p_pipeline: this.pipeline,
        p_etag: file.etag,
        p_request_id: crypto.randomUUID(),
      },
      options,
    )
    const { outcome } = row as RowOf<'claim_file'>
    if (row && outcome === 'claimed') return { outcome, claim: this.#hold(row) }
    this.#log('debug', 'claim_refused', { file_url: file.url, outcome })
    return { outcome }
  }

  #hold(row: RowOf<'claim_file'>): FileClaim {
    const claim = new FileClaim(
      {
        connection: this.#connection,
        log: this.#log,
        onEnd: (ended) => {
          if (this.#claims.get(ended.fileUrl) === ended) this.#claims.delete(ended.fileUrl)
        },
      },
      row,
    )
    if (this.#claims.size >= KEPT_CLAIMS) {
      for (const [url, { ended }] of this.#claims) if (ended) this.#claims.delete(url)
    }
    this.#claims.set(claim.fileUrl, claim)
    this.#log('info', 'file_claimed', {
      file_url: claim.fileUrl,
      claim_token: claim.claimToken,
      generation: claim.generation,
      attempts: claim.attempts,
      cursor: claim.cursor,
      items_processed: claim.itemsProcessed,
    })
    return claim
  }

  #held(url: string): FileClaim {
    const claim = this.#claims.get(url)
    if (claim) return claim
    throw new ClaimLostError(
      `this CheckpointManager holds no claim on file "${url}" of pipeline "${this.pipeline}"`,
    )
  }
}

async function* inBatches<T>(items: Iterable<T> | AsyncIterable<T>, size: number): AsyncGenerator<T[]> {
  let batch: T[] = []
  for await (const item of items) {
    batch.push(item)
    if (batch.length === size) {
      yield batch
      batch = []
    }
  }
  if (batch.length > 0) yield batch
}
