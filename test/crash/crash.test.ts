import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import postgres, { type Sql } from 'postgres'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { installFilemark } from '../servers/install.ts'
import { type PostgresServer, startPostgres } from '../servers/postgres.ts'
import { until } from '../wait.ts'
import { type Random, seededRandom, shuffled, wholeNumber } from './random.ts'
import type { Mode } from './worker.ts'

// Two workers load files, one by persist_records, one by transactions of its own that it passes as { tx }. Again and
// again one of them is killed with SIGKILL, or the server crashes under both (`pg_ctl stop -m immediate`, with fsync),
// at moments drawn from a seed: FILEMARK_TEST_SEED repeats a run's draws. Killed workers are started again, until every
// file is completed. Then each record of each file must be there once.

const seed = Number(process.env.FILEMARK_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31))

/** The files' lengths are drawn apart from the kills: how many files there are depends on the machine. */
const lengths = seededRandom(seed + 1)

const modes: Mode[] = ['persist', 'tx']

interface Kill {
  mode: Mode
  victim: 'worker' | 'server'
  /** `any`: whatever the worker does just then. `transaction`: it is seen to have one open that has written. */
  moment: 'any' | 'transaction'
}

const kills: Kill[] = modes.flatMap((mode) => [
  ...times<Kill>(10, { mode, victim: 'worker', moment: 'any' }),
  ...times<Kill>(8, { mode, victim: 'worker', moment: 'transaction' }),
  ...times<Kill>(5, { mode, victim: 'server', moment: 'any' }),
  ...times<Kill>(4, { mode, victim: 'server', moment: 'transaction' }),
])

function times<T>(count: number, value: T): T[] {
  return Array.from({ length: count }, () => value)
}

interface Worker {
  id: string
  child: ChildProcess
  /** Checkpoints it has told of. */
  saves: number
  /** Was it killed, or the server crashed under it? Then it may end, or find its way back. */
  mayEnd: boolean
  errors: string
}

/** A transaction that was open when the worker or the server was killed. */
interface OpenTransaction {
  pid: number
  state: string
  waitEvent: string | null
  /** It has written: Postgres gives no id to a transaction before. */
  transactionId: string
}

let server: PostgresServer
let databaseUrl: string
const workers = new Map<Mode, Worker>()
const unexpected: string[] = []
let started = 0
let files = 0

beforeAll(async () => {
  server = await startPostgres({ fsync: true })
  databaseUrl = server.url()
  await installFilemark(databaseUrl)
  await withDatabase(async (sql) => {
    // No unique key: a record that is loaded twice is there twice. The trigger waits while the test holds the gate of the
    // pipeline, in the middle of the statement that loads a batch.
    await sql.unsafe(`
      create table public.loaded (
        pipeline text, file_url text, record_number bigint, claim_token bigint, xid text default pg_current_xact_id());
      create function public.pass_gate() returns trigger language plpgsql as $$
      begin
        perform pg_advisory_xact_lock_shared(hashtext(new.pipeline));
        return new;
      end $$;
      create trigger pass_gate before insert on public.loaded for each row execute function public.pass_gate();
    `)
    for (const mode of modes) {
      await sql`
        select from filemark.configure_pipeline(
          ${mode}, '{"lease_seconds": 1, "max_attempts": 1000, "backoff_base_seconds": 0, "backoff_max_seconds": 0}')`
    }
  })
})

afterAll(async () => {
  for (const { child } of workers.values()) child.kill('SIGKILL')
  await server?.[Symbol.asyncDispose]()
})

/** A connection for as long as `work` takes: none may be in use while the server crashes. */
async function withDatabase<T>(work: (sql: Sql) => Promise<T>): Promise<T> {
  const sql = postgres(databaseUrl, { max: 1, onnotice: () => {} })
  try {
    return await work(sql)
  } finally {
    await sql.end()
  }
}

/**
 * Registers files of random lengths where there are few left, so that the load does not run dry before the last kill.
 * Called wherever a worker is waited for: a fast one is through with its files before it is struck.
 */
async function keepFed(): Promise<void> {
  await withDatabase(async (sql) => {
    for (const mode of modes) {
      const [stats] = await sql<{ pending: number }[]>`select pending::int from pipeline_stats(${mode})`
      if (stats && stats.pending >= 5) continue
      const added = Array.from({ length: 5 }, (_, index) => ({
        file_url: `file-${String(files + index).padStart(5, '0')}`,
        file_type: 'made up',
        file_timestamp: '2026-01-01T00:00:00Z',
        metadata: { records: wholeNumber(lengths, 50, 150) },
      }))
      await sql`select from register_files(${sql.json(added)}, ${mode})`
      files += added.length
    }
  })
}

/** The worker of that mode, started if there is none. */
function worker(mode: Mode): Worker {
  const present = workers.get(mode)
  if (present && isRunning(present)) return present
  if (present && !present.mayEnd) {
    unexpected.push(`${present.id} ended by itself: ${present.errors.slice(-2000)}`)
  }
  started++
  const id = `${mode}-${started}`
  const child = fork(fileURLToPath(new URL('worker.ts', import.meta.url)), [databaseUrl, mode, id], {
    execArgv: [],
    stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
  })
  const created: Worker = { id, child, saves: 0, mayEnd: false, errors: '' }
  child.on('message', () => {
    created.saves++
  })
  child.stderr?.on('data', (data: Buffer) => {
    created.errors += data
  })
  workers.set(mode, created)
  return created
}

function isRunning({ child }: Worker): boolean {
  return child.exitCode === null && child.signalCode === null
}

/** The worker of that mode, when it has saved `saves` checkpoints from now on. */
async function untilSaved(mode: Mode, saves: number): Promise<Worker> {
  let watched = worker(mode)
  let before = watched.saves
  return until(
    async () => {
      await keepFed()
      const current = worker(mode)
      if (current !== watched) {
        watched = current
        before = 0
      }
      return current.saves >= before + saves ? current : undefined
    },
    { timeoutMs: 30_000, what: `the ${mode} worker to save ${saves} checkpoints` },
  )
}

/** Lets a random time pass: it decides what the kill hits, nothing waits for it. */
function randomMoment(random: Random): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, wholeNumber(random, 0, 40)))
}

/** The transaction of a worker that has written; not that of a heartbeat, which may wait for the one that loads. */
async function lookAt(
  sql: Sql,
  { id }: Worker,
): Promise<(OpenTransaction & { changed: string }) | undefined> {
  const [row] = await sql<(OpenTransaction & { changed: string })[]>`
    select pid, state, wait_event as "waitEvent", backend_xid::text as "transactionId", state_change::text as changed
      from pg_stat_activity
     where application_name = ${id} and xact_start is not null and backend_xid is not null
       and query not like '%extend_claim%'`
  return row
}

/**
 * Stops a worker's process at random moments until one finds it inside of a transaction of its own: the backend waits for
 * a next statement that does not come. The worker stays stopped.
 */
async function stopInTransaction(sql: Sql, random: Random): Promise<[Worker, OpenTransaction]> {
  for (;;) {
    const victim = await untilSaved('tx', wholeNumber(random, 1, 5))
    await randomMoment(random)
    victim.child.kill('SIGSTOP')
    // What it had sent before may still be running: the answer counts when it is the same at a second look.
    let last: string | undefined
    const settled = await until(
      async () => {
        const seen = await lookAt(sql, victim)
        const now = seen?.state === 'active' ? undefined : (seen?.changed ?? 'none')
        const same = now !== undefined && now === last
        last = now
        return same ? { seen } : undefined
      },
      { what: 'the stopped worker to have nothing running' },
    )
    if (settled.seen?.state === 'idle in transaction') return [victim, settled.seen]
    victim.child.kill('SIGCONT')
  }
}

/**
 * Closes the gate in the trigger of the target, at a random moment: the worker's persist_records has locked the file and
 * begun to insert, and waits there. The gate opens when `gate` is closed.
 */
async function catchAtGate(gate: Sql, sql: Sql, random: Random): Promise<[Worker, OpenTransaction]> {
  await untilSaved('persist', wholeNumber(random, 1, 5))
  await randomMoment(random)
  await gate`select pg_advisory_lock(hashtext('persist'))`
  return until(
    async (): Promise<[Worker, OpenTransaction] | undefined> => {
      await keepFed()
      const victim = worker('persist')
      const seen = await lookAt(sql, victim)
      return seen?.waitEvent === 'advisory' ? [victim, seen] : undefined
    },
    { timeoutMs: 30_000, what: 'persist_records to wait at the gate' },
  )
}

async function killWorker(victim: Worker): Promise<void> {
  victim.mayEnd = true
  victim.child.kill('SIGKILL')
  await until(() => !isRunning(victim), { what: `${victim.id} to be gone` })
}

async function crashServer(): Promise<void> {
  for (const present of workers.values()) present.mayEnd = true
  await server.stop('immediate')
  await server.start()
}

/** Kills as drawn. Answers the transaction that was seen open, if one had to be. */
async function strike({ mode, victim, moment }: Kill, random: Random): Promise<OpenTransaction | undefined> {
  if (moment === 'any') {
    const hit = await untilSaved(mode, wholeNumber(random, 1, 10))
    await randomMoment(random)
    await (victim === 'worker' ? killWorker(hit) : crashServer())
    return undefined
  }
  const [gate, sql] = [1, 2].map(() => postgres(databaseUrl, { max: 1, onnotice: () => {} })) as [Sql, Sql]
  const [hit, open] = await (mode === 'tx' ? stopInTransaction(sql, random) : catchAtGate(gate, sql, random))
  await sql.end()
  if (victim === 'worker') {
    await killWorker(hit)
    await gate.end()
  } else {
    // The gate's session stays until the server takes it down: closing it would let the transaction commit.
    await crashServer()
    await gate.end({ timeout: 0 })
    hit.child.kill('SIGCONT')
  }
  return open
}

test('rule 6.1: no record is lost or repeated by SIGKILL of workers and crashes of the server', async () => {
  console.log(`FILEMARK_TEST_SEED=${seed}`)
  const random = seededRandom(seed)
  const struck: (Kill & { open: OpenTransaction | undefined })[] = []
  for (const kill of shuffled(random, kills)) {
    await keepFed()
    struck.push({ ...kill, open: await strike(kill, random) })
    // The next one begins to work while the other is struck.
    for (const mode of modes) worker(mode)
  }

  // Everything is finished by workers that are no longer disturbed.
  await withDatabase((sql) =>
    until(
      async () => {
        for (const mode of modes) worker(mode)
        const [row] = await sql`select count(*) from filemark.file_checkpoints where status <> 'completed'`
        return row?.count === '0'
      },
      { timeoutMs: 60_000, what: 'all files to be completed' },
    ),
  )
  for (const { child } of workers.values()) child.kill('SIGKILL')

  expect(unexpected).toEqual([])
  expect(struck.length).toBeGreaterThanOrEqual(50)
  const inTransaction = struck.filter(({ open }) => open)
  expect(inTransaction.length).toBeGreaterThanOrEqual(10)
  expect(inTransaction.every(({ open }) => Number(open?.transactionId) > 0)).toBe(true)

  await withDatabase(async (sql) => {
    const [totals] = await sql<{ files: number; records: number; takeovers: number }[]>`
      select count(*)::int as files, sum((metadata ->> 'records')::int)::int as records,
             (select count(*)::int from filemark.file_events where event = 'lease_expired') as takeovers
        from filemark.file_checkpoints`
    expect(totals?.files).toBe(files)
    expect(totals?.takeovers).toBeGreaterThan(0)

    // Each record of each file once, and none that no file has.
    const [loaded] = await sql`
      select count(*)::int as records, count(distinct (pipeline, file_url, record_number))::int as different
        from public.loaded`
    expect(loaded).toEqual({ records: totals?.records, different: totals?.records })
    expect(
      await sql`
        select f.pipeline, f.file_url, n as record_number, count(l.file_url) as times
          from filemark.file_checkpoints f
         cross join lateral generate_series(0, (f.metadata ->> 'records')::int - 1) n
          left join public.loaded l
            on l.pipeline = f.pipeline and l.file_url = f.file_url and l.record_number = n
         group by 1, 2, 3 having count(l.file_url) <> 1`,
    ).toHaveLength(0)

    // The counters of each file say the same.
    expect(
      await sql`
        select f.* from filemark.file_checkpoints f,
               lateral (select (f.metadata ->> 'records')::bigint as total) m,
               lateral (select count(*) as length, sum(h.records_persisted) as persisted, max(h.items_processed) as items,
                               max(h.checkpoint_seq) as seq
                          from filemark.checkpoint_history h
                         where h.pipeline = f.pipeline and h.file_url = f.file_url) h
         where (f.items_processed, f.records_total, f.records_persisted, h.items, f.cursor)
               is distinct from (total, total, total, total, to_jsonb(total))
            or (f.checkpoint_seq, f.history_length, h.seq) is distinct from (h.length, h.length, h.length)
            or h.persisted <> case f.pipeline when 'persist' then total else 0 end`,
    ).toHaveLength(0)

    // Records and checkpoint are of one transaction: each was loaded under the claim that saved the checkpoint over it.
    expect(
      await sql`
        select l.* from public.loaded l
          join lateral (
            select h.claim_token from filemark.checkpoint_history h
             where h.pipeline = l.pipeline and h.file_url = l.file_url and h.items_processed > l.record_number
             order by h.items_processed limit 1) h on true
         where h.claim_token <> l.claim_token`,
    ).toHaveLength(0)

    const count = (wanted: Partial<Kill>) =>
      struck.filter((kill) =>
        Object.entries(wanted).every(([key, value]) => kill[key as keyof Kill] === value),
      ).length
    console.log(
      `${struck.length} kills (${count({ victim: 'worker' })} of a worker, ${count({ victim: 'server' })} of the server), ` +
        `${inTransaction.length} in an open transaction; ${started} workers, ${totals?.files} files, ` +
        `${totals?.records} records, ${totals?.takeovers} takeovers`,
    )
  })
}, 180_000)
