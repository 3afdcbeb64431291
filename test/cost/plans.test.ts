import postgres, { type Sql } from 'postgres'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import { type PostgresServer, startPostgres } from '../servers/postgres.ts'

// The cost of claim_next_files must not grow with the backlog, with what waits for a retry, is in progress or is done.
// auto_explain shows the plan of every statement inside the function, with the rows and the buffers it really took.
// The tests run in their order: each takes the table as the one before left it.

interface PlanNode {
  'Node Type': string
  'Relation Name'?: string
  'Actual Rows': number
  'Actual Loops': number
  'Rows Removed by Filter'?: number
  'Shared Hit Blocks': number
  'Shared Read Blocks': number
  Plans?: PlanNode[]
}

interface Statement {
  'Query Text': string
  Plan: PlanNode
}

/** A session that is told the plans of what it runs. */
interface ExplainedSession {
  sql: Sql
  /** The statements that ran inside `work`, its own statement last. */
  explain(work: (sql: Sql) => Promise<unknown>): Promise<Statement[]>
}

interface Call {
  limit: number
  type?: string
  request?: string
}

const backlog = 100_000
const waiting = 100_000
const inProgress = 10_000
const done = 1_000_000

const calls: [string, Call][] = [
  ['one file', { limit: 1 }],
  ['100 files', { limit: 100 }],
  ['one file of a type', { limit: 1, type: 'csv' }],
  ['100 files of a type', { limit: 100, type: 'csv' }],
]

/** What a worker does with a file it claimed. */
const steps: [name: string, run: (sql: Sql, url: string, token: string) => Promise<unknown>][] = [
  ['checkpoint_file', (sql, url, token) => sql`select from checkpoint_file(${url}, ${token}, '1', 1)`],
  ['extend_claim', (sql, url, token) => sql`select extend_claim(${url}, ${token})`],
  ['assert_claim', (sql, url, token) => sql`select filemark.assert_claim(${url}, ${token})`],
  [
    'persist_records',
    (sql, url, token) => sql`select from persist_records(${url}, ${token}, 'events', '[{"n": 1}]', '1', 1)`,
  ],
  ['complete_file', (sql, url, token) => sql`select from complete_file(${url}, ${token})`],
  ['fail_file', (sql, url, token) => sql`select from fail_file(${url}, ${token}, 'not now')`],
  ['release_file', (sql, url, token) => sql`select release_file(${url}, ${token})`],
]

let server: PostgresServer
let database: TestDatabase
/** Has planned everything while the table was tiny, when to read all of it was the best plan. */
let veteran: ExplainedSession
/** Buffers that each of `calls` takes on the small table. */
const smallCost = new Map<string, number>()
const opened: Sql[] = []

beforeAll(async () => {
  server = await startPostgres({
    settings: {
      autovacuum: false,
      shared_buffers: '512MB',
      max_wal_size: '8GB',
      wal_level: 'minimal',
      max_wal_senders: 0,
      synchronous_commit: false,
      full_page_writes: false,
      shared_preload_libraries: 'auto_explain',
      'auto_explain.log_nested_statements': true,
      'auto_explain.log_analyze': true,
      'auto_explain.log_buffers': true,
      'auto_explain.log_timing': false,
      'auto_explain.log_format': 'json',
      'auto_explain.log_level': 'notice',
    },
  })
  database = await createDatabase({ on: server.url() })
  await database.sql`select from filemark.configure_pipeline('default', '{"max_attempts": 1000}')`
  await database.sql`create table public.events (n int)`
  await fill({ pending: 60, waiting: 1, inProgress: 1, completed: 1 }, 'tiny')
  await database.sql`vacuum analyze filemark.file_checkpoints`
  veteran = openSession()
  await settle(veteran)
  await fill({ pending: 1500, waiting: 100, inProgress: 100, completed: 1000 }, 'small')
  const session = await openWarmSession()
  for (const [what, call] of calls) smallCost.set(what, buffers(await claimNext(session, call)))
})

afterAll(async () => {
  await Promise.all(opened.map((sql) => sql.end({ timeout: 0 })))
  await database?.drop()
  await server?.[Symbol.asyncDispose]()
})

function openSession(): ExplainedSession {
  const messages: string[] = []
  const sql = postgres(database.url, { max: 1, onnotice: ({ message }) => messages.push(message ?? '') })
  opened.push(sql)
  return {
    sql,
    async explain(work) {
      await sql`set auto_explain.log_min_duration = 0`
      messages.length = 0
      await work(sql)
      const plans = messages.filter((message) => message.includes('plan:'))
      await sql`set auto_explain.log_min_duration = -1`
      return plans.map((message) => JSON.parse(message.slice(message.indexOf('{'))) as Statement)
    },
  }
}

/** A new session that has looked up once what it needs of the catalog. */
async function openWarmSession(): Promise<ExplainedSession> {
  const session = openSession()
  for (const type of [null, 'csv']) {
    await session.sql`select from claim_next_files('worker', 1, p_file_type => ${type}, p_request_id => ${crypto.randomUUID()})`
  }
  return session
}

function claimNext(session: ExplainedSession, { limit, type, request }: Call): Promise<Statement[]> {
  return session.explain(
    (sql) => sql`
      select * from claim_next_files('worker', ${limit}, p_file_type => ${type ?? null}, p_request_id => ${request ?? null})`,
  )
}

/** Calls everything often enough for the session to have cached a plan of each statement, also that of a takeover. */
async function settle({ sql }: ExplainedSession): Promise<void> {
  for (let round = 0; round < 8; round++) {
    for (const type of [null, 'csv']) {
      const claims = await sql<{ file_url: string }[]>`
        select file_url from claim_next_files('settling', 2, p_file_type => ${type})`
      const urls = claims.map(({ file_url }) => file_url)
      await expire(sql, urls)
      await sql`select from claim_next_files('settling', 2, p_file_type => ${type})`
    }
    for (const [name, run] of steps) {
      const url = `settled/${crypto.randomUUID()}/${name}`
      await run(sql, url, await claimByName(sql, url))
    }
  }
}

async function claimByName(sql: Sql, url: string): Promise<string> {
  const [row] = await sql<{ claim_token: string }[]>`
    select claim_token from claim_file(${url}, 'csv', '2026-01-01', 'worker')`
  if (!row?.claim_token) throw new Error(`${url} was not claimed`)
  return row.claim_token
}

/** Lets the leases of these files end, a day ago. */
async function expire(sql: Sql, urls: string[]): Promise<void> {
  await sql`
    update filemark.file_checkpoints
       set lease_expires_at = now() - interval '1 day', lease_check_at = now() - interval '1 day'
     where pipeline = 'default' and status = 'processing' and file_url = any (${urls})`
}

interface Fill {
  pending: number
  waiting: number
  inProgress: number
  completed: number
}

/** Files as a long life leaves them: of two types, in three priorities, those that wait for a retry in five. */
async function fill(counts: Fill, name: string): Promise<void> {
  const { sql } = database
  await sql`
    insert into filemark.file_checkpoints (
      pipeline, file_url, file_type, file_timestamp, available_at, status, priority, claim_token, claim_ended, attempts,
      processed_by, started_at, lease_expires_at, lease_check_at, error_message, completed_at)
    select 'default', format('%s/%s/%s', state.status, ${name}::text, lpad(i::text, 8, '0')),
           case i % 4 when 0 then 'json' else 'csv' end, '2026-01-01',
           -- What waits for a retry is due next year; the rest has been for long.
           case state.status when 'failed' then now() + interval '1 year' else timestamptz '2026-01-01' end
             + i * interval '1 second',
           state.status, i % state.priorities, state.token, state.ended, state.token, state.worker, state.begun,
           state.lease, state.lease, state.error, state.completed
      from (values
        ('completed',  ${counts.completed}::int, 1, 1, 'completed', 'worker', now(), null, null, now()),
        ('failed',     ${counts.waiting}::int, 5, 1, 'failed', 'worker', now(), null, 'not now', null),
        ('pending',    ${counts.pending}::int, 3, 0, null, null, null, null, null, null),
        ('processing', ${counts.inProgress}::int, 1, 1, null, 'worker', now(), now() + interval '1 day', null, null)
      ) as state (status, count, priorities, token, ended, worker, begun, lease, error, completed)
     cross join lateral generate_series(1, state.count) i`
}

/** All buffers that the call took, those of the statements inside it included. */
function buffers(statements: Statement[]): number {
  const plan = statements.at(-1)?.Plan
  if (!plan) throw new Error('no plan was reported')
  return plan['Shared Hit Blocks'] + plan['Shared Read Blocks']
}

function* nodes(plan: PlanNode): Generator<PlanNode> {
  yield plan
  for (const child of plan.Plans ?? []) yield* nodes(child)
}

/** What a plan must not contain: a scan of the whole table, or a node that handles more rows than `most`. */
function excesses(statements: Statement[], most: number): string[] {
  return statements.flatMap((statement) =>
    [...nodes(statement.Plan)]
      .map((node) => {
        const rows = (node['Actual Rows'] + (node['Rows Removed by Filter'] ?? 0)) * node['Actual Loops']
        return { name: `${node['Node Type']} of ${node['Relation Name'] ?? '-'}, ${rows} rows`, node, rows }
      })
      .filter(
        ({ node, rows }) =>
          rows > most || (node['Node Type'] === 'Seq Scan' && node['Relation Name'] === 'file_checkpoints'),
      )
      .map(({ name }) => `${name}, in: ${statement['Query Text'].trim()}`),
  )
}

function sorts(statements: Statement[]): string[] {
  return statements
    .filter((statement) => [...nodes(statement.Plan)].some((node) => node['Node Type'].includes('Sort')))
    .map((statement) => statement['Query Text'].trim())
}

/** The claims that the outermost statement answered. */
function answered(statements: Statement[]): number | undefined {
  return statements.at(-1)?.Plan['Actual Rows']
}

/**
 * A constant factor of the cost on the small table: indexes have become deeper by a level or two, and the first to come
 * after others have claimed meets the entries they left behind. The whole table would be 100 times as much.
 */
function allowed(what: string): number {
  const small = smallCost.get(what)
  if (!small) throw new Error(`${what} was not measured on the small table`)
  return 2 * small + 250
}

function expectCheap(statements: Statement[], what: string, limit: number): void {
  expect(excesses(statements, 2 * limit + 20)).toEqual([])
  expect(buffers(statements)).toBeLessThanOrEqual(allowed(what))
}

describe('rule 6.8: the plan of claim_next_files, with 100,000 files pending, 100,000 waiting and 1,000,000 completed', () => {
  beforeAll(() =>
    fill({ pending: backlog, waiting, inProgress, completed: done }, 'large').then(async () => {
      const rows = await database.sql<{ status: string; files: number }[]>`
        select status, count(*)::int as files from filemark.file_checkpoints group by status`
      const files = Object.fromEntries(rows.map((row) => [row.status, row.files]))
      expect(files.pending).toBeGreaterThanOrEqual(backlog)
      expect(files.failed).toBeGreaterThanOrEqual(waiting)
      expect(files.processing).toBeGreaterThanOrEqual(inProgress)
      expect(files.completed).toBeGreaterThanOrEqual(done)
    }),
  )

  const situations: [string, () => Promise<ExplainedSession>][] = [
    ['in a session that knew the table when it was tiny, no new statistics', async () => veteran],
    ['in a new session, no statistics', openWarmSession],
    [
      'in a new session, with statistics',
      async () => {
        await database.sql`vacuum analyze filemark.file_checkpoints`
        return openWarmSession()
      },
    ],
    [
      'in a session that has called it often, with statistics',
      async () => {
        await settle(veteran)
        return veteran
      },
    ],
  ]

  describe.each(situations)('%s', (_situation, open) => {
    let session: ExplainedSession
    beforeAll(async () => {
      session = await open()
    })

    test.each(calls)('sorts nothing and reads little to claim %s', async (what, call) => {
      const statements = await claimNext(session, call)
      expect(answered(statements)).toBe(call.limit)
      expect(sorts(statements)).toEqual([])
      expectCheap(statements, what, call.limit)
    })

    test('reads little to find that there is no file of a type', async () => {
      const statements = await claimNext(session, { limit: 100, type: 'parquet' })
      expect(answered(statements)).toBe(0)
      expect(sorts(statements)).toEqual([])
      expectCheap(statements, 'one file', 1)
    })

    test.each(steps)('finds the one row of %s by its key', async (name, run) => {
      const claimed = async () => {
        const url = `known/${crypto.randomUUID()}/${name}`
        return [url, await claimByName(session.sql, url)] as const
      }
      await run(session.sql, ...(await claimed()))
      const file = await claimed()
      const statements = await session.explain((sql) => run(sql, ...file))
      expect(excesses(statements, 10)).toEqual([])
      expect(buffers(statements)).toBeLessThan(500)
    })

    test('finds a file to claim by its key', async () => {
      const statements = await session.explain((sql) => claimByName(sql, `known/${crypto.randomUUID()}`))
      expect(excesses(statements, 10)).toEqual([])
      expect(buffers(statements)).toBeLessThan(500)
    })

    test('reads little to answer a repeated request', async () => {
      const call = { limit: 100, request: crypto.randomUUID() }
      expect(answered(await claimNext(session, call))).toBe(100)
      const statements = await claimNext(session, call)
      expect(answered(statements)).toBe(100)
      expectCheap(statements, '100 files', 100)
    })
  })
})

describe('rule 6.8: the plan of claim_next_files, with claims in progress whose leases ended', () => {
  beforeAll(async () => {
    await veteran.sql`
      update filemark.file_checkpoints
         set lease_expires_at = now() - interval '1 day', lease_check_at = now() - interval '1 day'
       where status = 'processing'`
    await database.sql`vacuum analyze filemark.file_checkpoints`
    await veteran.sql`select from claim_next_files('worker')`
  })

  test.each(calls)('handles no more rows than it may claim, and a few, to claim %s', async (what, call) => {
    const statements = await claimNext(veteran, call)
    expect(answered(statements)).toBe(call.limit)
    // Due files and lost ones are brought into one order: at most p_limit of each, and a few.
    expect(excesses(statements, 2 * call.limit + 20)).toEqual([])
    expect(buffers(statements)).toBeLessThanOrEqual(2 * allowed(what))
  })
})

describe('rule 6.8: the plan of claim_next_files, with claims in progress whose leases were renewed', () => {
  beforeAll(async () => {
    await veteran.sql`
      update filemark.file_checkpoints
         set lease_expires_at = now() + interval '1 day', lease_check_at = now() - interval '1 day'
       where status = 'processing'`
    await database.sql`vacuum analyze filemark.file_checkpoints`
    await veteran.sql`select from claim_next_files('worker')`
  })

  test.each(calls)('moves on only a few timers to claim %s', async (what, call) => {
    const statements = await claimNext(veteran, call)
    expect(answered(statements)).toBe(call.limit)
    expect(excesses(statements, 2 * call.limit + 20)).toEqual([])
    // Each timer moved on is an update of a row, as a claim is.
    expect(buffers(statements)).toBeLessThanOrEqual(2 * allowed(what))
  })
})

describe('rule 6.8: the plan of claim_next_files, at the head of a queue that was worked off', () => {
  test('does not read again and again what 5,000 claims left behind, without a vacuum', async () => {
    for (let round = 0; round < 50; round++) {
      await veteran.sql`
        select from complete_and_claim_next('worker', (
          select coalesce(jsonb_agg(jsonb_build_object('file_url', file_url, 'claim_token', claim_token)), '[]')
            from claim_next_files('worker', 100)), 1)`
    }
    await claimNext(veteran, { limit: 1 })
    const statements = await claimNext(veteran, { limit: 1 })
    expect(answered(statements)).toBe(1)
    // Their entries are still in the index, a hundred to a page; the rows behind them are not looked at again.
    expect(excesses(statements, 22)).toEqual([])
    expect(buffers(statements)).toBeLessThanOrEqual(allowed('one file') + 500)
  })
})
