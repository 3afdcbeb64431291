import { randomInt } from 'node:crypto'
import { setTimeout as delay } from 'node:timers/promises'
import { CheckpointManager, type FileClaim, PermanentError, type ProcessFileResult } from '../index.ts'
import { countFiles, type FileReport, formatReports } from './file-report.ts'
import { readRecords } from './formats/read-records.ts'
import { type HandlerModule, loadHandlerModule } from './handler-module.ts'
import { type DatabaseLocation, openDatabase, type RunDatabase } from './open-database.ts'
import { openDisplay, type RunDisplay } from './run-display.ts'
import {
  type FileVersion,
  findSourceFiles,
  readFileVersion,
  type SourceFile,
  type SourceFiles,
} from './source-files.ts'
import { UsageError } from './usage-error.ts'

export interface RunOptions {
  /** Paths and glob patterns. */
  patterns: readonly string[]
  /** Path of the handler module. */
  handler: string
  database: DatabaseLocation
  pipeline: string
  /** Files worked on at a time. */
  concurrency: number
  /** Most records given to the handler at once. */
  batchSize: number
  /** Sets the pipeline's lease. */
  leaseSeconds?: number
  workerId: string
  /** Aborts when the run is to stop: the batches in work are finished and the claims released. */
  stop: AbortSignal
  output: NodeJS.WriteStream
}

/**
 * Loads files: registers them, claims them one by one beside whatever other workers do, and leaves when each is
 * completed, by whomever, or has failed, or when `stop` aborts. A file that another worker holds is waited for, since
 * that worker may die; a failed one is not, since its retry may be an hour away. Answers how each file was left.
 *
 * @throws UsageError when the options cannot be followed; whatever the database answers when it is not to be reached
 */
export async function run(options: RunOptions): Promise<FileReport[]> {
  const { output, workerId, pipeline } = options
  const handler = await loadHandlerModule(options.handler)
  const sources = await findSourceFiles(options.patterns)
  const { files, directory } = sources
  if ('dataDir' in options.database) {
    output.write(`opening the embedded database in ${options.database.dataDir}\n`)
  }
  const database = await openDatabase(options.database, { workerId, connections: options.concurrency + 1 })
  try {
    if (options.leaseSeconds !== undefined) {
      await explained('--lease-seconds', setLease(database, pipeline, options.leaseSeconds))
    }
    if (handler.setup !== undefined) await explained("the handler's setup", database.setUp(handler.setup))
    await checkTarget(database, handler.target)
    const manager = new CheckpointManager(database.client, { pipeline, workerId })
    await manager.registerFiles(registrations(files))
    output.write(`${workerId} loads ${countFiles(files.length)} of ${directory}, pipeline ${pipeline}\n`)
    const display = openDisplay(output, files.length)
    const work: Work = { ...options, manager, handler, display, reports: [] }
    try {
      reportRefused(sources, work)
      await workThrough(files, work)
    } finally {
      display.close()
      output.write(`\n${formatReports([...work.reports, ...unreported(files, work.reports)])}`)
    }
    return work.reports
  } finally {
    await database.close()
  }
}

function reportRefused({ skipped, unreadable }: SourceFiles, { display, reports }: Work): void {
  for (const { name, reason } of skipped) {
    display.event('skipped', `${name}: ${reason}`)
    reports.push(report(name, 'skipped', reason))
  }
  for (const { name, reason } of unreadable) {
    display.event('failed', `${name}: ${reason}`)
    reports.push(report(name, 'failed', reason))
  }
}

/** What a run that was stopped did not come to. */
function unreported(files: readonly SourceFile[], reports: readonly FileReport[]): FileReport[] {
  const reported = new Set(reports.map(({ name }) => name))
  return files.filter(({ name }) => !reported.has(name)).map(({ name }) => report(name, 'not done', ''))
}

interface Work extends Omit<RunOptions, 'handler'> {
  manager: CheckpointManager
  handler: HandlerModule
  display: RunDisplay
  reports: FileReport[]
}

async function workThrough(files: readonly SourceFile[], work: Work): Promise<void> {
  const queue = [...files]
  /** Files that other workers hold, by URL. */
  const held = new Map<string, SourceFile>()
  const broken = new AbortController()
  const stop = AbortSignal.any([work.stop, broken.signal])
  const current: Work = { ...work, stop }
  const look = lookAfter(held, queue, current)
  let settled = 0

  const slot = async () => {
    while (!stop.aborted) {
      const file = queue.shift()
      if (file) {
        const left = await attempt(file, current)
        if (left === 'again') {
          queue.push(file)
        } else if (left === 'held') {
          held.set(file.url, file)
        } else if (left === 'busy') {
          queue.unshift(file)
          await pause(1000, stop)
        } else {
          work.reports.push(left)
          work.display.settled(++settled)
        }
      } else if (held.size > 0) {
        await look()
      } else {
        // What is left is in work in other slots; one that loses its file waits for it itself.
        return
      }
    }
  }
  const slots = Array.from({ length: work.concurrency }, () =>
    slot().catch((error) => {
      broken.abort(error)
      throw error
    }),
  )
  const failed = (await Promise.allSettled(slots)).find((result) => result.status === 'rejected')
  if (failed) throw failed.reason
}

/** How many of the files that are held are tried again after each pause, whatever is known of them. */
const TRIED_AGAIN = 16

/**
 * Pauses, then moves from `held` to `queue` what can be claimed by now, and a few of the others in turn: one that is
 * done in other hands cannot be claimed either, and only a claim by name finds that its lease is over with its budget
 * spent. Calls while it does so share its one look.
 */
function lookAfter(held: Map<string, SourceFile>, queue: SourceFile[], { manager, display, stop }: Work) {
  let milliseconds = 100
  let announced = false
  const look = async () => {
    await pause(milliseconds, stop)
    if (stop.aborted) return
    const free = await manager.pendingFiles(held.keys())
    milliseconds = free.length > 0 ? 100 : Math.min(milliseconds * 2, 1000)
    if (!announced && free.length === 0 && milliseconds === 1000) {
      announced = true
      display.event('waiting', `for ${countFiles(held.size)} of other workers: ${await describeHolders()}`)
    }
    for (const url of new Set([...free, ...[...held.keys()].slice(0, TRIED_AGAIN)])) {
      const file = held.get(url)
      held.delete(url)
      if (file) queue.push(file)
    }
  }
  const describeHolders = async () => {
    const [first, ...more] = held.values()
    const state = first && (await manager.getFile(first.url))
    if (!first || !state?.processedBy) return ''
    const until = state.leaseExpiresAt ? ` until ${formatTime(state.leaseExpiresAt)} unless it goes on` : ''
    return `${first.name} is held by ${state.processedBy}${until}${more.length > 0 ? ', …' : ''}`
  }
  let looking: Promise<void> | undefined
  return () => {
    looking ??= look().finally(() => {
      looking = undefined
    })
    return looking
  }
}

/** Tries to claim a file and to load it: how that left it, or what is to be done about it next. */
async function attempt(file: SourceFile, work: Work): Promise<FileReport | 'again' | 'held' | 'busy'> {
  const { manager, display, stop } = work
  const before = await readVersion(file)
  if (before === null) return report(file.name, 'failed', 'the file is gone')
  const progress: Progress = { first: 0, records: 0, persisted: 0, filtered: 0 }
  const result = await manager.processFile(
    { url: file.url, type: file.format.fileType, timestamp: before.timestamp, etag: before.etag },
    (claim) => load(claim, file, progress, work),
  )
  display.end(file.name)
  if (!result.claimed) return refused(file, result.outcome, work)

  const { name } = file
  const at = `at record ${format(progress.records)}`
  switch (result.outcome) {
    case 'completed': {
      const resumed = progress.first > 0 ? `resumed at record ${format(progress.first)}` : ''
      display.event(
        'completed',
        `${name}: ${format(progress.records)} records, ${format(progress.persisted)} persisted`,
      )
      return {
        ...report(name, 'completed', resumed),
        records: progress.records,
        persisted: progress.persisted,
      }
    }
    case 'superseded':
      display.event('changed', `${name} changed while it was read: once more from the start`)
      return 'again'
    case 'claim_lost':
      display.event('lost', `${name} ${at}: ${result.error.message}`)
      return 'held'
    case 'released':
      display.event('released', `${name} ${at}`)
      return { ...report(name, 'released', `${at}; a second run continues there`), records: null }
    case 'failed':
    case 'dead_letter': {
      // A file that was written to while it was read looks damaged; its new content is a new generation.
      if (!stop.aborted && (await readVersion(file))?.etag !== before.etag) return 'again'
      const reason = messageOf(result.error)
      const next = result.outcome === 'failed' ? `retry at ${formatTime(result.availableAt)}` : 'dead letter'
      display.event('failed', `${name} ${at}: ${reason} (attempt ${result.attempts}, ${next})`)
      return result.outcome === 'failed'
        ? report(name, 'failed', `${reason} (${next})`)
        : report(name, 'dead letter', reason)
    }
  }
}

interface Progress {
  /** Where this worker began. */
  first: number
  /** Records of the file that are done, by whomever. */
  records: number
  /** Rows of the file that are in the target, by whomever. */
  persisted: number
  /** Records of the file for which the handler gave no row. */
  filtered: number
}

/** What the checkpoints of a file keep beside the cursor. */
interface Results {
  filtered: number
}

/** Loads a claimed file from its cursor on, or as far as it gets until the run is stopped. */
async function load(claim: FileClaim, file: SourceFile, progress: Progress, work: Work) {
  const { manager, handler, display, stop, batchSize } = work
  const from = claim.cursor ?? 0
  if (typeof from !== 'number') {
    throw new PermanentError(
      `the cursor ${JSON.stringify(from)} is no record number: not saved by filemark run`,
    )
  }
  Object.assign(progress, { first: from, records: from })
  progress.filtered = (claim.accumulatedResults as Results | null)?.filtered ?? 0
  if (claim.hasCheckpoint) progress.persisted = (await manager.getFile(file.url))?.recordsPersisted ?? 0
  display.event(
    from > 0 ? 'resumed' : 'claimed',
    from > 0 ? `${file.name} at record ${format(from)}` : file.name,
  )
  display.begin(file.name, file.sizeBytes)

  const signal = AbortSignal.any([claim.signal, stop])
  try {
    for await (const batch of readRecords(file.path, file.format, { from, batchSize, signal })) {
      const rows = await handler.handle(batch.records, {
        fileUrl: file.url,
        fileType: file.format.fileType,
        firstRecord: batch.first,
        signal: claim.signal,
        claim,
      })
      checkRows(rows)
      const filtered = progress.filtered + Math.max(batch.records.length - rows.length, 0)
      const results: Results = { filtered }
      const saved = await claim.persistRecords(handler.target, rows, {
        cursor: batch.next,
        itemsProcessed: batch.next,
        ...(filtered > 0 && { accumulatedResults: results }),
      })
      progress.records = batch.next
      progress.filtered = filtered
      progress.persisted += saved.recordsPersisted
      display.progress(file.name, batch.bytesRead, batch.next)
      if (stop.aborted) break
    }
  } catch (error) {
    if (error !== stop.reason) throw error
  }
  if (stop.aborted) {
    await claim.release()
    return
  }
  // The etag of what is there now: when it is not the claimed one, the file changed under the reader.
  const after = await readVersion(file)
  return {
    totalRows: progress.records,
    filteredRows: progress.filtered,
    persistedRows: progress.persisted,
    ...(after && { etag: after.etag }),
  }
}

/** What is to be said of a file that could not be claimed, or that it is to be tried again. */
async function refused(
  { name, url }: SourceFile,
  outcome: Extract<ProcessFileResult, { claimed: false }>['outcome'],
  { manager, display }: Work,
): Promise<FileReport | 'held' | 'busy'> {
  if (outcome === 'held' || outcome === 'busy') return outcome
  const state = await manager.getFile(url)
  const tell = (result: FileReport) => {
    display.event(result.outcome === 'skipped' ? 'skipped' : 'failed', `${name}: ${result.detail}`)
    return result
  }
  switch (outcome) {
    case 'completed': {
      const detail = state === null ? '' : `by ${state.processedBy} at ${formatTime(state.completedAt)}`
      display.event('done', `${name}: completed ${detail}`)
      const counts = { records: state?.recordsTotal ?? null, persisted: state?.recordsPersisted ?? null }
      return { ...report(name, 'already completed', detail), ...counts }
    }
    case 'waiting':
      return tell(
        report(
          name,
          'failed',
          `waits until ${formatTime(state?.availableAt)} (${state?.errorMessage ?? 'not yet available'})`,
        ),
      )
    case 'dead_letter':
      return tell(report(name, 'dead letter', state?.errorMessage ?? 'no more automatic attempts'))
    case 'skipped':
      return tell(report(name, 'skipped', 'skipped by an operator'))
    case 'paused':
      return tell(report(name, 'paused', 'the pipeline is paused'))
  }
}

async function setLease(database: RunDatabase, pipeline: string, seconds: number): Promise<void> {
  const settings = JSON.stringify({ lease_seconds: seconds })
  await database.query('select from filemark.configure_pipeline($1, $2::text::jsonb)', [pipeline, settings])
}

/** Says what it was that failed. */
async function explained(what: string, done: Promise<void>): Promise<void> {
  try {
    await done
  } catch (error) {
    throw new UsageError(`${what} failed: ${messageOf(error)}`, { cause: error })
  }
}

/** Says so before every file fails on it. */
async function checkTarget(database: RunDatabase, target: string): Promise<void> {
  const [row] = await database.query(
    `select to_regclass(case when $1::text like '%.%' then $1 else 'public.' || $1 end) is not null as is_there`,
    [target],
  )
  if (row?.is_there !== true) {
    throw new UsageError(
      `there is no table ${target}: create it, or let the handler module's setup create it`,
    )
  }
}

async function* registrations(files: readonly SourceFile[]) {
  for (const file of files) {
    const version = await readVersion(file)
    if (version) yield { url: file.url, type: file.format.fileType, ...version }
  }
}

/** Null when the file is gone; what else keeps it from being read will be said when it is read. */
async function readVersion(file: SourceFile): Promise<FileVersion | null> {
  try {
    return await readFileVersion(file.path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw error
  }
}

function checkRows(rows: unknown): asserts rows is object[] {
  if (!Array.isArray(rows))
    throw new TypeError(`the handler's handle() must return an array of rows, not ${typeof rows}`)
  const index = rows.findIndex((row) => typeof row !== 'object' || row === null || Array.isArray(row))
  if (index >= 0)
    throw new TypeError(
      `the handler's handle() returned ${JSON.stringify(rows[index])} as row ${index}, not an object`,
    )
}

function report(name: string, outcome: FileReport['outcome'], detail: string): FileReport {
  return { name, outcome, records: null, persisted: null, detail }
}

/** Waits up to that long, at random so that workers do not move in step; an abort ends it early. */
async function pause(milliseconds: number, signal: AbortSignal): Promise<void> {
  await delay(randomInt(Math.ceil(milliseconds / 2), milliseconds + 1), undefined, { signal }).catch(() => {})
}

function format(count: number): string {
  return count.toLocaleString('en-US')
}

function formatTime(time: Date | null | undefined): string {
  return time ? time.toISOString().replace(/\.\d+Z$/, 'Z') : 'an unknown time'
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
