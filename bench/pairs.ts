// Claim + complete pairs per second, beside raw UPDATE commits of the same rows: `npm run bench:pairs`
//
//   --seconds 2           how long each measurement lasts
//   --rounds 3            rounds, interleaved; the table shows their medians and spread
//   --connections 1,8
//
// The raw side updates an identical copy of the table (columns, constraints, indexes, fillfactor) by primary key, with
// prepared statements that set the columns that a claim and a completion set, in as many statements and commits as the
// functions take. It is the limit: no search for what to claim, no check, no answer. One client process with n
// connections of postgres.js; a private server with fsync and synchronous_commit on.

import os from 'node:os'
import { parseArgs } from 'node:util'
import postgres, { type Sql } from 'postgres'
import { installFilemark } from '../test/servers/install.ts'
import { startPostgres } from '../test/servers/postgres.ts'

/** One connection's share of a measurement. Goes on until `isOver`, or until there are no files left. */
type Loop = (connection: Connection) => Promise<void>

interface Connection {
  sql: Sql
  worker: string
  isOver(): boolean
  /** The keys of the next files, for the raw side; fewer at the end. */
  nextUrls(count: number): string[]
  /** Notes so many pairs as done. */
  count(pairs: number): void
}

interface Contest {
  name: string
  /** Commits for how many pairs. */
  commits: string
  /** So many files are enough for a second, on a fast machine. */
  filesPerSecond: number
  filemark: Loop
  raw: Loop
}

interface Claim {
  file_url: string
  claim_token: string
}

const batch = 100

const claimColumns = `status = 'processing', claim_token = f.claim_token + 1, claim_ended = null, request_id = null,
  processed_by = $1, started_at = clock_timestamp(), lease_expires_at = clock_timestamp() + interval '300 s',
  lease_check_at = clock_timestamp() + interval '300 s', attempts = f.attempts + 1`
const completeColumns = `status = 'completed', claim_ended = 'completed', lease_expires_at = null, lease_check_at = null,
  etag = f.etag, records_total = 10, records_filtered = 0, records_persisted = 10,
  processing_time_ms = extract(epoch from clock_timestamp() - f.started_at) * 1000,
  accumulated_results = f.accumulated_results, error_message = null, error = null, completed_at = clock_timestamp()`
const rawClaim = `update raw.files f set ${claimColumns} where pipeline = 'default' and file_url = $2`
const rawComplete = `update raw.files f set ${completeColumns} where pipeline = 'default' and file_url = $1`
const rawClaims = `update raw.files f set ${claimColumns} where pipeline = 'default' and file_url = any ($2)`
const rawTurn = `with done as (
    update raw.files f set ${completeColumns} where pipeline = 'default' and file_url = any ($3))
  ${rawClaims}`

function prepared(sql: Sql, text: string, parameters: (string | string[])[]): Promise<unknown> {
  return sql.unsafe(text, parameters, { prepare: true })
}

const contests: Contest[] = [
  {
    name: '`claim_next_files` + `complete_file`',
    commits: '2 per pair',
    filesPerSecond: 4_000,
    async filemark({ sql, worker, isOver, count }) {
      while (!isOver()) {
        const [claim] = await sql<Claim[]>`select * from claim_next_files(${worker})`
        if (!claim) return
        await sql`select * from complete_file(${claim.file_url}, ${claim.claim_token}, 10, 0, 10)`
        count(1)
      }
    },
    async raw({ sql, worker, isOver, nextUrls, count }) {
      while (!isOver()) {
        const [url] = nextUrls(1)
        if (!url) return
        await prepared(sql, rawClaim, [worker, url])
        await prepared(sql, rawComplete, [url])
        count(1)
      }
    },
  },
  {
    name: '`complete_and_claim_next`',
    commits: '1 per pair',
    filesPerSecond: 6_000,
    filemark: turns(1),
    raw: rawTurns(1),
  },
  {
    name: '`claim_next_files` of 100 + `complete_file` each',
    commits: '101 per 100 pairs',
    filesPerSecond: 6_000,
    async filemark({ sql, worker, isOver, count }) {
      while (!isOver()) {
        const claims = await sql<Claim[]>`select * from claim_next_files(${worker}, ${batch})`
        if (claims.length === 0) return
        for (const claim of claims) {
          await sql`select * from complete_file(${claim.file_url}, ${claim.claim_token}, 10, 0, 10)`
          count(1)
          if (isOver()) return
        }
      }
    },
    async raw({ sql, worker, isOver, nextUrls, count }) {
      while (!isOver()) {
        const urls = nextUrls(batch)
        if (urls.length === 0) return
        await prepared(sql, rawClaims, [worker, urls])
        for (const url of urls) {
          await prepared(sql, rawComplete, [url])
          count(1)
          if (isOver()) return
        }
      }
    },
  },
  {
    name: '`complete_and_claim_next` of 100',
    commits: '1 per 100 pairs',
    filesPerSecond: 50_000,
    filemark: turns(batch),
    raw: rawTurns(batch),
  },
]

/** Finishes `size` files and claims as many in each call. */
function turns(size: number): Loop {
  return async ({ sql, worker, isOver, count }) => {
    let claims: Claim[] = []
    do {
      const completions = claims.map(({ file_url, claim_token }) => ({
        file_url,
        claim_token: Number(claim_token),
        records_total: 10,
        records_persisted: 10,
      }))
      claims = await sql<Claim[]>`
        select * from complete_and_claim_next(${worker}, ${sql.json(completions)}, ${size})`
      count(completions.length)
    } while (claims.length > 0 && !isOver())
  }
}

function rawTurns(size: number): Loop {
  return async ({ sql, worker, isOver, nextUrls, count }) => {
    let claimed: string[] = []
    do {
      const urls = nextUrls(size)
      await prepared(sql, rawTurn, [worker, urls, claimed])
      count(claimed.length)
      claimed = urls
    } while (claimed.length > 0 && !isOver())
  }
}

const { values: options } = parseArgs({
  options: {
    seconds: { type: 'string', default: '2' },
    rounds: { type: 'string', default: '3' },
    connections: { type: 'string', default: '1,8' },
  },
})
const seconds = Number(options.seconds)
const rounds = Number(options.rounds)
const connectionCounts = options.connections.split(',').map(Number)

const settings = [
  'fsync',
  'synchronous_commit',
  'wal_sync_method',
  'full_page_writes',
  'wal_level',
  'shared_buffers',
  'max_wal_size',
  'autovacuum',
]

/** Pairs per second of each round. */
interface Result {
  contest: Contest
  connections: number
  filemark: number[]
  raw: number[]
}

async function main(): Promise<void> {
  await using server = await startPostgres({
    fsync: true,
    settings: { synchronous_commit: 'on', shared_buffers: '512MB' },
  })
  await installFilemark(server.url())
  const admin = postgres(server.url(), { max: 1, onnotice: () => {} })
  await admin.unsafe(`
    create schema raw;
    create table raw.files (like filemark.file_checkpoints including all);
    create table raw.filling (like filemark.file_checkpoints including defaults);
    select filemark.configure_pipeline('default', '{}');
    select from register_files((
      select jsonb_agg(jsonb_build_object('file_url', format('s3://bucket/incoming/2026/%s.csv', lpad(i::text, 9, '0')),
                                          'file_type', 'csv', 'file_timestamp', '2026-01-01T00:00:00Z'))
        from generate_series(1, 1) i));
  `)
  const [stored] = await admin<{ options: string }[]>`
    select array_to_string(reloptions, ', ') as options from pg_class
     where oid = 'filemark.file_checkpoints'::regclass`
  await admin.unsafe(`alter table raw.files set (${stored?.options ?? ''})`)
  const most = Math.ceil(seconds * Math.max(...contests.map(({ filesPerSecond }) => filesPerSecond)))
  // What register_files makes of a file, many times over.
  await admin.unsafe(`
    insert into raw.filling
    select (jsonb_populate_record(f, jsonb_build_object(
             'file_url', format('s3://bucket/incoming/2026/%s.csv', lpad(i::text, 9, '0'))))).*
      from filemark.file_checkpoints f, generate_series(1, ${most}) i`)

  const results: Result[] = contests.flatMap((contest) =>
    connectionCounts.map((connections) => ({ contest, connections, filemark: [], raw: [] })),
  )
  for (let round = 0; round < rounds; round++) {
    for (const { contest, connections, ...sides } of results) {
      const files = Math.ceil(contest.filesPerSecond * seconds)
      for (const side of round % 2 === 0 ? (['filemark', 'raw'] as const) : (['raw', 'filemark'] as const)) {
        await fill(admin, side === 'raw' ? 'raw.files' : 'filemark.file_checkpoints', files)
        sides[side].push(await measure(server.url(), contest[side], connections, files))
      }
    }
  }

  const cpus = os.cpus()
  const shown = await Promise.all(
    settings.map(async (name) => `${name} ${(await admin.unsafe(`show ${name}`))[0]?.[name]}`),
  )
  await admin.end()
  console.log(`Postgres ${server.version}: ${shown.join(', ')}`)
  console.log(
    `${cpus.length} × ${cpus[0]?.model}, ${Math.round(os.totalmem() / 2 ** 30)} GiB, ${os.type()} ${os.release()}, ` +
      `Node ${process.versions.node}, load ${os.loadavg()[0]?.toFixed(1)}`,
  )
  console.log(
    `One client process, n connections of postgres.js, prepared statements. Median of ${rounds} interleaved rounds of ` +
      `${seconds} s (lowest to highest); pairs of a claim and a completion per second.\n`,
  )
  console.log('| | commits | connections | filemark | raw UPDATEs | ratio |')
  console.log('| --- | --- | ---: | ---: | ---: | ---: |')
  for (const { contest, connections, filemark, raw } of results) {
    const ratio = median(filemark) / median(raw)
    console.log(
      `| ${contest.name} | ${contest.commits} | ${connections} | ${spread(filemark)} | ${spread(raw)} | ${ratio.toFixed(2)} |`,
    )
  }
}

/** Fills a table anew with files that are due, and leaves nothing of it to be done later. */
async function fill(admin: Sql, table: string, files: number): Promise<void> {
  await admin.unsafe(`truncate ${table}`)
  await admin.unsafe(`insert into ${table} select * from raw.filling order by file_url limit ${files}`)
  await admin.unsafe(`vacuum analyze ${table}`)
  await admin.unsafe('checkpoint')
}

/** Pairs per second of so many connections at once. */
async function measure(url: string, loop: Loop, connections: number, files: number): Promise<number> {
  const opened = await Promise.all(
    Array.from({ length: connections }, async () => {
      const sql = postgres(url, { max: 1, onnotice: () => {} })
      await sql`select 1`
      return sql
    }),
  )
  let pairs = 0
  let given = 0
  const nextUrls = (count: number): string[] => {
    const first = given + 1
    given = Math.min(given + count, files)
    return Array.from(
      { length: given - first + 1 },
      (_, index) => `s3://bucket/incoming/2026/${String(first + index).padStart(9, '0')}.csv`,
    )
  }
  const begin = performance.now()
  const isOver = (): boolean => performance.now() - begin > seconds * 1000
  const count = (done: number): void => {
    pairs += done
  }
  await Promise.all(
    opened.map((sql, index) => loop({ sql, worker: `worker-${index}`, isOver, nextUrls, count })),
  )
  const taken = (performance.now() - begin) / 1000
  await Promise.all(opened.map((sql) => sql.end()))
  if (taken < seconds / 2)
    throw new Error(`${files} files lasted only ${taken.toFixed(2)} s: give the contest more`)
  return pairs / taken
}

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = sorted.length / 2
  return ((sorted[Math.ceil(middle) - 1] ?? Number.NaN) + (sorted[Math.floor(middle)] ?? Number.NaN)) / 2
}

function spread(values: number[]): string {
  const show = (value: number): string => Math.round(value).toLocaleString('en-US')
  return `${show(median(values))} (${show(Math.min(...values))} to ${show(Math.max(...values))})`
}

await main()
