import postgres, { type Sql } from 'postgres'
import { RefusedByApi, rpcOf } from './rpc.ts'

/** One row of claim_file, claim_next_files or complete_and_claim_next. bigint comes as text. */
export interface ClaimRow {
  outcome: string
  pipeline: string
  file_url: string
  file_type: string | null
  file_timestamp: Date | null
  etag: string | null
  size_bytes: string | null
  metadata: unknown
  generation: string | null
  claim_token: string | null
  attempts: number | null
  max_attempts: number | null
  lease_seconds: number | null
  lease_expires_at: Date | null
  cursor: unknown
  items_processed: string | null
  items_total: string | null
  accumulated_results: unknown
  checkpoint_seq: string | null
}

/** A claim that was got: its token is there. */
export type Claim = ClaimRow & { outcome: 'claimed'; claim_token: string; lease_expires_at: Date }

type Arguments = Record<string, unknown>

/**
 * Calls a function of the database with named arguments, given without their `p_`. In the PostgREST lane a public
 * function is called over HTTP when `sql` is that of a test database; the rows are the same.
 */
export async function call<Row extends object = Arguments>(
  sql: Sql,
  name: string,
  args: Arguments = {},
): Promise<Row[]> {
  const rpc = name.includes('.') ? undefined : rpcOf(sql)
  if (rpc) return (await rpc(name, args)) as Row[]
  const list = Object.keys(args).map((key, index) => `p_${key} => $${index + 1}`)
  const rows = await sql.unsafe<Row[]>(
    `select * from ${name}(${list.join(', ')})`,
    // Of what is neither a text nor an array of texts, the server says what type it is.
    Object.values(args) as never[],
  )
  return [...rows]
}

/** The only element of `rows`. */
export function only<Row>(rows: readonly Row[]): Row {
  const [row] = rows
  if (row === undefined || rows.length > 1) throw new Error(`expected one row, got ${rows.length}`)
  return row
}

export async function configure(sql: Sql, settings: Arguments, pipeline = 'default'): Promise<void> {
  await call(sql, 'filemark.configure_pipeline', { pipeline, settings })
}

/** Registers files; what is not said of them is a CSV of the first of January. */
export async function register(sql: Sql, ...files: (Arguments & { file_url: string })[]): Promise<Arguments> {
  return only(
    await call(sql, 'register_files', {
      files: files.map((file) => ({ file_type: 'csv', file_timestamp: '2026-01-01T00:00:00Z', ...file })),
    }),
  )
}

/** Calls claim_file, as worker w1 if not said otherwise. */
export async function tryClaim(sql: Sql, url: string, args: Arguments = {}): Promise<ClaimRow> {
  const named = { file_type: 'csv', file_timestamp: '2026-01-01T00:00:00Z', worker_id: 'w1' }
  return only(await call<ClaimRow>(sql, 'claim_file', { file_url: url, ...named, ...args }))
}

/** Calls claim_file and insists on getting the claim. */
export async function claim(sql: Sql, url: string, args: Arguments = {}): Promise<Claim> {
  return claimed(await tryClaim(sql, url, args))
}

/** Calls claim_next_files, as worker w1 if not said otherwise. */
export async function claimNext(sql: Sql, limit = 1, args: Arguments = {}): Promise<Claim[]> {
  const rows = await call<ClaimRow>(sql, 'claim_next_files', { worker_id: 'w1', limit, ...args })
  return rows.map(claimed)
}

export async function checkpoint(
  sql: Sql,
  url: string,
  token: string,
  items: number,
  args: Arguments = {},
): Promise<Arguments> {
  const progress = { cursor: { next: items }, items_processed: items }
  return only(await call(sql, 'checkpoint_file', { file_url: url, claim_token: token, ...progress, ...args }))
}

export async function fail(
  sql: Sql,
  url: string,
  token: string,
  args: Arguments = {},
): Promise<{ status: string; attempts: number; available_at: Date | null }> {
  return only(
    await call(sql, 'fail_file', { file_url: url, claim_token: token, error_message: 'it broke', ...args }),
  )
}

export async function complete(sql: Sql, url: string, token: string, args: Arguments = {}): Promise<string> {
  return only(
    await call<{ outcome: string }>(sql, 'complete_file', { file_url: url, claim_token: token, ...args }),
  ).outcome
}

export async function release(sql: Sql, url: string, token: string): Promise<void> {
  await call(sql, 'release_file', { file_url: url, claim_token: token })
}

/** The entry of a table of cases by its name. */
export function pick<Entry>(entries: Record<string, Entry>, name: string): Entry {
  const entry = entries[name]
  if (entry === undefined) throw new Error(`there is no ${name} among ${Object.keys(entries).join(', ')}`)
  return entry
}

/** Lets a call that will be awaited later fail before that, without Node taking its error for a forgotten one. */
export function started<T>(answer: Promise<T>): Promise<T> {
  answer.catch(() => {})
  return answer
}

/** What a call was refused with, or undefined when it succeeded. Never rejects, so it may be awaited late. */
export function refusal(answer: Promise<unknown>): Promise<{ code: string; message: string } | undefined> {
  return answer.then(
    () => undefined,
    (error: unknown) => {
      if (!(error instanceof postgres.PostgresError || error instanceof RefusedByApi)) throw error
      return { code: error.code, message: error.message }
    },
  )
}

function claimed(row: ClaimRow): Claim {
  const { outcome, claim_token, lease_expires_at } = row
  if (outcome !== 'claimed' || claim_token === null || lease_expires_at === null) {
    throw new Error(`${row.file_url} was not claimed: ${outcome}`)
  }
  return { ...row, outcome, claim_token, lease_expires_at }
}
