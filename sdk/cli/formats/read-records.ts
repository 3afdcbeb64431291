import type { Readable } from 'node:stream'
import { PermanentError } from '../../errors.ts'
import { parseDelimitedText } from './delimited-text.ts'
import { parseJsonArray } from './json-array.ts'
import { parseJsonLines } from './json-lines.ts'
import { openText } from './open-text.ts'
import type { ParsedText, RecordFormat, SourceRecord } from './record-format.ts'

/** Consecutive records of a file. */
export interface RecordBatch {
  records: SourceRecord[]
  /** The number of the first of them; the file's first record is 0. */
  first: number
  /** The number of the record after the last of them: the cursor once the batch is done. */
  next: number
  /** Bytes of the file (compressed, if it is) read so far. */
  bytesRead: number
}

export interface ReadOptions {
  /** The number of the record to begin with. Default 0. */
  from?: number
  /** Most records in a batch. Default 1000. */
  batchSize?: number
  /** Ends the reading: the iteration throws its reason. */
  signal?: AbortSignal
}

/** A batch of wide records ends early: it is held in memory whole, and sent in one call. */
const MAX_BATCH_LENGTH = 4 * 1024 * 1024

/**
 * Reads a file's records in batches, whatever its size in constant memory: the next piece of the file is read
 * when the batches so far were taken. No batch is empty.
 *
 * @throws PermanentError for content that no later attempt will read differently, naming the record
 */
export async function* readRecords(
  path: string,
  format: RecordFormat,
  { from = 0, batchSize = 1000, signal }: ReadOptions = {},
): AsyncGenerator<RecordBatch, void, undefined> {
  if (!Number.isSafeInteger(from) || from < 0) {
    throw new PermanentError(
      `cannot read from record ${JSON.stringify(from)}: records are numbered 0, 1, 2, …`,
    )
  }
  const file = openText(path, format.gzip, signal)
  const parsed = parse(file.content, format, () => openText(path, format.gzip, signal).content)
  let next = 0
  let records: SourceRecord[] = []
  let batchBegan = 0
  const takeBatch = (): RecordBatch => {
    const batch = { records, first: next - records.length, next, bytesRead: file.bytesRead() }
    records = []
    batchBegan = file.lengthRead()
    return batch
  }
  try {
    for await (const record of parsed.records) {
      // Every record before `from` is parsed too: where one begins is known only from the end of the one before.
      if (next++ < from) continue
      records.push(record)
      if (records.length >= batchSize || file.lengthRead() - batchBegan >= MAX_BATCH_LENGTH) yield takeBatch()
    }
  } catch (error) {
    signal?.throwIfAborted()
    if (!(error instanceof Error) || error instanceof PermanentError || isFailedRead(error)) throw error
    throw new PermanentError(explainDamage(error) ?? (await parsed.explain(error)), { cause: error })
  } finally {
    file.content.destroy()
  }
  if (next < from) {
    throw new PermanentError(`cannot continue at record ${from}: the file has only ${next} records`)
  }
  if (records.length > 0) yield takeBatch()
}

function parse(text: Readable, { fileType }: RecordFormat, reopen: () => Readable): ParsedText {
  switch (fileType) {
    case 'csv':
      return parseDelimitedText(text, ',')
    case 'tsv':
      return parseDelimitedText(text, '\t')
    case 'json':
      return parseJsonArray(text, reopen)
    case 'ndjson':
      return parseJsonLines(text)
  }
}

// The disk's or the file system's trouble, not the content's: it may be gone at the next attempt.
function isFailedRead(error: Error): boolean {
  return 'syscall' in error
}

function explainDamage({ code, message }: NodeJS.ErrnoException): string | null {
  if (code === 'Z_BUF_ERROR') return 'the gzip data ends early: the file is not complete'
  return code?.startsWith('Z_') ? `the gzip data is damaged: ${message}` : null
}
