import type { Sql } from 'postgres'
import { call, only } from './calls.ts'

/** A row of get_file_checkpoint. bigint comes as text. */
export interface FileRow {
  file_url: string
  file_type: string
  size_bytes: string | null
  etag: string | null
  generation: string
  superseded_by: Record<string, unknown> | null
  metadata: Record<string, unknown>
  status: string
  priority: number
  available_at: Date
  claim_token: string
  claim_ended: string | null
  processed_by: string | null
  started_at: Date | null
  lease_expires_at: Date | null
  lease_check_at: Date | null
  attempts: number
  cursor: unknown
  items_processed: string
  items_total: string | null
  accumulated_results: unknown
  checkpoint_seq: string
  checkpointed_at: Date | null
  history_length: string
  records_total: string
  records_filtered: string
  records_persisted: string
  records_rejected: string
  processing_time_ms: string | null
  error_message: string | null
  error: unknown
  completed_at: Date | null
}

export interface EventRow {
  file_url: string | null
  event: string
  actor: string
  reason: string | null
  detail: Record<string, unknown>
}

/** What is known of one file. */
export async function fileRow(sql: Sql, url: string): Promise<FileRow> {
  return only(await call<FileRow>(sql, 'get_file_checkpoint', { file_url: url }))
}

/** The audit of one file, in the order it was written. */
export async function events(sql: Sql, url: string): Promise<EventRow[]> {
  return [
    ...(await sql<EventRow[]>`
      select file_url, event, actor, reason, detail from filemark.file_events
       where file_url = ${url} order by event_id`),
  ]
}

/** The names of the events of one file. */
export async function eventNames(sql: Sql, url: string): Promise<string[]> {
  return (await events(sql, url)).map(({ event }) => event)
}

/** The sequence numbers of the checkpoints that are kept of a file. */
export async function historyOf(sql: Sql, url: string): Promise<number[]> {
  const rows = await sql<{ seq: string }[]>`
    select checkpoint_seq as seq from filemark.checkpoint_history where file_url = ${url} order by 1`
  return rows.map(({ seq }) => Number(seq))
}

/** Makes the lease of a file, or of all files, end a second ago, as if time had passed. */
export async function expireLease(sql: Sql, url: string | null = null): Promise<void> {
  await sql`
    update filemark.file_checkpoints
       set lease_expires_at = clock_timestamp() - interval '1 second',
           lease_check_at = clock_timestamp() - interval '1 second'
     where status = 'processing' and (${url}::text is null or file_url = ${url})`
}

/** Makes the timer of a claim fire, without ending its lease: as when the lease was renewed since the claim. */
export async function fireTimer(sql: Sql, url: string): Promise<void> {
  await sql`
    update filemark.file_checkpoints set lease_check_at = clock_timestamp() - interval '1 second'
     where status = 'processing' and file_url = ${url}`
}

/** Makes the retry of a failed file due now. */
export async function makeDue(sql: Sql, url: string): Promise<void> {
  await sql`
    update filemark.file_checkpoints set available_at = clock_timestamp() - interval '1 second'
     where file_url = ${url}`
}

/** Every row of every table (filemark's and those in public) with the transaction that last wrote it. */
export async function contents(sql: Sql): Promise<string[]> {
  const tables = await sql<{ name: string }[]>`
    select format('%I.%I', schemaname, tablename) as name from pg_tables
     where schemaname in ('filemark', 'public') order by 1`
  const rows = await sql.unsafe<{ row: string }[]>(
    tables
      .map(({ name }) => `select '${name}' || ' xmin ' || t.xmin || ' ' || t::text as row from ${name} t`)
      .join(' union all ')
      .concat(' order by 1'),
  )
  return rows.map(({ row }) => row)
}

/** Empties every table, for the next test. */
export async function empty(sql: Sql): Promise<void> {
  const tables = await sql<{ names: string }[]>`
    select string_agg(format('%I.%I', schemaname, tablename), ', ') as names from pg_tables
     where schemaname in ('filemark', 'public')`
  await sql.unsafe(`truncate ${only(tables).names}`)
}
