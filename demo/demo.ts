// The main job on real files: three workers load a folder, one is killed in the middle of the largest file, another
// takes over and goes on from its cursor, and every record is in the target exactly once. `npm run demo`.

import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { isDeepStrictEqual } from 'node:util'
import postgres, { type Sql } from 'postgres'
import { formatTable } from '../sdk/cli/table.ts'
import { runSql } from '../test/servers/install.ts'
import { startPostgres } from '../test/servers/postgres.ts'
import { until } from '../test/wait.ts'
import { readSources } from './read-sources.ts'
import { startWorker, type Worker } from './worker.ts'

const PIPELINE = 'demo'
const LEASE_SECONDS = 3
const DATA = fileURLToPath(new URL('../node_modules/vega-datasets/data', import.meta.url))
const MIGRATIONS = fileURLToPath(new URL('../supabase/migrations', import.meta.url))
const HANDLER = fileURLToPath(new URL('./handler.ts', import.meta.url))

const began = performance.now()

say('Counting the records of the CSV, TSV and JSON files of vega-datasets, each read whole')
const sources = readSources(DATA)
const [largest, largestRecords] = [...sources].reduce((a, b) => (b[1].length > a[1].length ? b : a))
const sourceRecords = sum([...sources.values()].map((records) => records.length))
say(
  `  ${sources.size} lists of ${format(sourceRecords)} records; the largest is ${largest}, ${format(largestRecords.length)}`,
)

say('Starting Postgres and applying the migration')
await using server = await startPostgres()
const url = server.url()
await runSql(url, await readMigrations())
const sql = postgres(url, { max: 2, onnotice: () => {} })
// No unique key yet: a record that is loaded twice will be there twice.
await sql`
  create table public.vega_records (file_url text not null, record_number bigint not null, record jsonb not null)`
await sql`select from filemark.configure_pipeline(${PIPELINE}, ${sql.json({ lease_seconds: LEASE_SECONDS })})`
say(`  Postgres ${server.version}, pipeline ${PIPELINE}, a lease of ${LEASE_SECONDS} s`)

say('Starting three workers')
const workers = [1, 2, 3].map((n) =>
  startWorker(`worker-${n}`, [
    `${DATA}/*.{csv,tsv,json}`,
    ...['--handler', HANDLER, '--database', url, '--pipeline', PIPELINE],
    ...['--concurrency', '2', '--batch-size', '500'],
  ]),
)
for (const { id, pid } of workers) say(`  ${id} is pid ${pid}`)

const kill = await killHolder(sql, workers, urlOf(largest), largestRecords.length)
const takeover = await awaitTakeover(sql, kill)
say('Waiting for the other workers to finish')
const ends = await Promise.all(workers.map(async ({ id, ended }) => ({ id, end: await ended })))

const loaded = await sql<LoadedFile[]>`
  select f.file_url, f.status, f.processed_by, f.claim_token::int as claims, f.records_total::int as records,
         e.holders, e.items as resumed_from
    from filemark.file_checkpoints f
    left join lateral (
      select array_agg(detail ->> 'processed_by' order by event_id) as holders,
             max((detail ->> 'items_processed')::int) as items
        from filemark.file_events e
       where e.pipeline = f.pipeline and e.file_url = f.file_url and e.event = 'lease_expired') e on true
   where f.pipeline = ${PIPELINE}
   order by f.records_total desc, f.file_url`
printFiles(loaded)
const passed = await prove()
await sql.end()
say(
  `\n${passed ? 'All of it holds' : 'SOMETHING DOES NOT HOLD'}, after ${seconds(performance.now() - began)}.`,
)
if (!passed) {
  for (const { id, lines } of workers) say(`\n${id} printed:\n  ${lines.join('\n  ')}`)
  process.exitCode = 1
}

interface LoadedFile {
  file_url: string
  status: string
  processed_by: string
  claims: number
  records: number
  /** Workers that lost the file before. */
  holders: string[] | null
  resumed_from: number | null
}

interface Kill {
  fileUrl: string
  victim: Worker
  /** How the process ended: the signal's name. */
  end: string
  /** The file as the database had it when the process and its connections were gone. */
  cursor: number
  claimToken: number
  at: number
}

/** Waits until a file is well begun and far from done, and kills the process that works on it. */
async function killHolder(
  sql: Sql,
  workers: readonly Worker[],
  fileUrl: string,
  records: number,
): Promise<Kill> {
  say(`Waiting until ${nameOf(fileUrl)} is between 40 % and 70 % done`)
  const over = Promise.race(
    workers.map(async ({ id, ended, lines }) => {
      throw new Error(`${id} ended too early, with ${await ended}:\n${lines.join('\n')}`)
    }),
  )
  const middle = until(
    async () => {
      const [file] = await sql`
        select processed_by, items_processed::int as items from filemark.file_checkpoints
         where pipeline = ${PIPELINE} and file_url = ${fileUrl} and status = 'processing'`
      return file && file.items > records * 0.4 && file.items < records * 0.7 ? file : null
    },
    { timeoutMs: 60_000, what: `${nameOf(fileUrl)} to be in the middle` },
  )
  const { processed_by } = await Promise.race([middle, over])
  const victim = workers.find(({ id }) => id === processed_by)
  if (!victim) throw new Error(`${processed_by} is none of the workers`)
  victim.kill('SIGKILL')
  const at = performance.now()
  const end = await victim.ended

  // A call that was under way commits or not; with the connections gone, it has.
  await until(async () => {
    const [left] = await sql`select from pg_stat_activity where application_name = ${victim.id}`
    return !left
  })
  const [file] = await sql`
    select cursor::int, claim_token::int, lease_expires_at from filemark.file_checkpoints
     where pipeline = ${PIPELINE} and file_url = ${fileUrl}`
  if (!file) throw new Error(`${fileUrl} is gone`)
  say(`  killed ${victim.id}, pid ${victim.pid}, by ${end}; the cursor it left is ${format(file.cursor)}`)
  return { fileUrl, victim, end, cursor: file.cursor, claimToken: file.claim_token, at }
}

interface Takeover {
  worker: string
  /** Where the next claim found the file. */
  foundAt: number
  /** The first record that the next claim loaded, and how many records its first checkpoint says it loaded. */
  firstRecord: number
}

/** Waits until another worker has claimed the file and saved a first checkpoint. */
async function awaitTakeover(sql: Sql, { fileUrl, claimToken, at }: Kill): Promise<Takeover> {
  const takeover = await until(
    async () => {
      const [row] = await sql<{ worker: string; found_at: number; first_record: number }[]>`
        select e.actor as worker, (e.detail ->> 'items_processed')::int as found_at,
               (h.items_processed - h.records_persisted)::int as first_record
          from filemark.file_events e
          join filemark.checkpoint_history h using (pipeline, file_url)
         where e.pipeline = ${PIPELINE} and e.file_url = ${fileUrl} and e.event = 'lease_expired'
           and (e.detail ->> 'claim_token')::int = ${claimToken} and h.claim_token = ${claimToken + 1}
         order by h.checkpoint_seq
         limit 1`
      return row
    },
    { timeoutMs: 60_000, what: `${nameOf(fileUrl)} to be taken over` },
  )
  const { worker, found_at: foundAt, first_record: firstRecord } = takeover
  say(
    `  ${worker} took the file over ${seconds(performance.now() - at)} later, at record ${format(firstRecord)}`,
  )
  return { worker, foundAt, firstRecord }
}

function printFiles(files: readonly LoadedFile[]): void {
  const rows = files.map(({ file_url, status, processed_by, claims, records, holders, resumed_from }) => [
    nameOf(file_url),
    status,
    records,
    [...(holders ?? []), processed_by].join(', then '),
    claims,
    resumed_from ?? '',
  ])
  say(`\n${formatTable(['file', 'status', 'records', 'worker', 'claims', 'resumed at'], rows)}`)

  const skipped = workers.flatMap(({ lines }) => lines).filter((line) => line.startsWith('skipped  '))
  const reasons = [...new Set(skipped)].map((line) => line.replace(/^skipped +/, '').split(': '))
  say(
    `\n${formatTable(
      ['skipped', 'because it is'],
      reasons.map(([path = '', reason = '']) => [path.replace(/.*\//, ''), reason]),
    )}`,
  )
}

/** Compares what is in the database with what was counted, prints each finding, and answers whether all hold. */
async function prove(): Promise<boolean> {
  say('\nProof')
  const results: boolean[] = []
  const check = (holds: boolean, finding: string) => {
    results.push(holds)
    say(`  ${holds ? 'yes' : 'NO '}  ${finding}`)
  }
  const { victim, end, cursor } = kill
  check(end === 'SIGKILL', `${victim.id}, pid ${victim.pid}, was ended by ${end} in the middle of ${largest}`)
  check(
    takeover.worker !== victim.id && takeover.foundAt === cursor && takeover.firstRecord === cursor,
    `the cursor in the database was ${format(cursor)} after that; ${takeover.worker} found ${format(takeover.foundAt)} and began at record ${format(takeover.firstRecord)}`,
  )
  const survivors = ends.filter(({ id }) => id !== victim.id)
  check(
    survivors.every((worker) => worker.end === 'exit 0'),
    `the other workers ended with ${survivors.map((worker) => `${worker.end} (${worker.id})`).join(', ')}`,
  )
  const completed = loaded.filter(({ status }) => status === 'completed')
  check(
    completed.length === sources.size && loaded.length === sources.size,
    `${completed.length} of ${sources.size} files are completed`,
  )

  const [total] = await sql`select count(*)::int as records from public.vega_records`
  check(
    total?.records === sourceRecords,
    `records in the source ${format(sourceRecords)} = records in the target ${format(total?.records)}`,
  )
  const repeated = await sql`
    select from public.vega_records group by file_url, record_number having count(*) > 1`
  check(
    repeated.length === 0,
    `repeated records = ${repeated.length} (counted in a table without a unique key)`,
  )

  let equal = 0
  for (const [name, records] of sources) {
    const rows = await sql<{ record: unknown }[]>`
      select record from public.vega_records where file_url = ${urlOf(name)} order by record_number`
    if (
      isDeepStrictEqual(
        rows.map(({ record }) => record),
        records,
      )
    )
      equal++
  }
  check(equal === sources.size, `${equal} of ${sources.size} files have the same records in the same order`)

  const keyed = await sql`alter table public.vega_records add primary key (file_url, record_number)`.then(
    () => true,
    () => false,
  )
  check(keyed, 'the target now takes the primary key (file_url, record_number)')
  return results.every((holds) => holds)
}

async function readMigrations(): Promise<{ name: string; text: string }[]> {
  const names = (await readdir(MIGRATIONS)).filter((name) => name.endsWith('.sql')).sort()
  return Promise.all(
    names.map(async (name) => ({ name, text: await readFile(join(MIGRATIONS, name), 'utf8') })),
  )
}

function urlOf(name: string): string {
  return pathToFileURL(join(DATA, name)).href
}

function nameOf(fileUrl: string): string {
  return fileUrl.replace(/.*\//, '')
}

function sum(counts: readonly number[]): number {
  return counts.reduce((a, b) => a + b, 0)
}

function format(count: number): string {
  return count.toLocaleString('en-US')
}

function seconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(1)} s`
}

function say(text: string): void {
  console.log(text)
}
