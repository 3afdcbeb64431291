import { type ChildProcess, fork } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Sql } from 'postgres'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { hasPgCron } from '../behaviour/lane.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { answerOf, type Block, connectLikePsql, readBlocks, readTable } from '../guides.ts'
import { parseExposition, sampleOf } from '../monitoring/exposition.ts'
import { until, untilLocked } from '../wait.ts'
import type { Release, Told } from './night-worker.ts'

// One night. Three workers load the files of three pipelines. One of them is frozen with a file in its hands; one file
// ends every worker that comes to its twelfth record; one record of another is no number. Maintenance and alerts are
// run by pg_cron where it is there, elsewhere by a timer here, as a cron job would. Then an operator who knows nothing
// reads docs/operations.md from its beginning to its end and runs every statement in it.

const guide = readBlocks(new URL('../../docs/operations.md', import.meta.url))

/** Records of each file that nothing is wrong with. */
const records = 20

const troubled = {
  frozen: 'ledger/2026-11-20.csv',
  deadly: 'events/2026-11-20.csv',
  bad: 'orders/2026-11-20.csv',
}

const settings = {
  // Its worker's lease does not end while this is played: somebody has to take the file from it.
  ledger: { lease_seconds: 300, stale_after_seconds: 3 },
  events: { lease_seconds: 2, max_attempts: 2 },
  orders: { max_attempts: 2, backoff_base_seconds: 0 },
}

interface Worker {
  id: string
  child: ChildProcess
  told: Told[]
  errors: string
}

interface Opening {
  event: string
  alert: string
  pipeline: string
  file_url: string | null
  message: string
  at: number
}

let db: TestDatabase
let directory: string
let monitor: Sql
let operator: Sql
/** Those that may do less than a block takes, by the role. */
const others = new Map<string, Sql>()
let cronJob: { stop(): Promise<void> } | undefined
let release: Release = 1
const workers = new Map<string, Worker>()
const heard: Opening[] = []
/** When each fault was first there. */
const faults: Partial<Record<keyof typeof troubled, number>> = {}

beforeAll(async () => {
  db = await createDatabase({ supabase: 'old', cron: hasPgCron })
  await db.sql.unsafe(`
    create table public.loaded (file_url text, record_number int, amount numeric, loaded_by text);
    grant insert on public.loaded to filemark_worker`)
  monitor = await sessionAs('filemark_monitor')
  operator = await sessionAs('filemark_operator')
  for (const role of ['anon', 'authenticated', 'filemark_worker']) others.set(role, await sessionAs(role))
  await db.sql.listen('filemark_alerts', (payload) => {
    heard.push({ ...(JSON.parse(payload) as Omit<Opening, 'at'>), at: performance.now() })
  })
  directory = await mkdtemp(join(tmpdir(), 'filemark-night-'))
  for (const [pipeline, changed] of Object.entries(settings)) {
    await operator`select from filemark.configure_pipeline(${pipeline}, ${JSON.stringify(changed)}::text::jsonb)`
  }
})
afterAll(async () => {
  const running = [...workers.values()]
  // Nobody starts them again.
  workers.clear()
  for (const { child } of running) child.kill('SIGKILL')
  await cronJob?.stop()
  await Promise.all([monitor, operator, ...others.values()].map((session) => session?.end()))
  await db?.drop()
  if (directory) await rm(directory, { recursive: true })
})

async function sessionAs(role: string): Promise<Sql> {
  const session = connectLikePsql(db.url)
  await session.unsafe(`set role ${role}`)
  return session
}

/** Writes a file of amounts into the directory, some lines replaced, and registers it. */
async function deliver(fileUrl: string, replaced: Record<number, string> = {}): Promise<void> {
  await write(fileUrl, replaced)
  const [pipeline = ''] = fileUrl.split('/')
  const file = { file_url: fileUrl, file_type: 'csv', file_timestamp: '2026-11-20T06:00:00Z' }
  await operator`select from public.register_files(${JSON.stringify([file])}::text::jsonb, ${pipeline})`
}

async function write(fileUrl: string, replaced: Record<number, string>): Promise<void> {
  const lines = Array.from({ length: records }, (_, index) => replaced[index + 1] ?? `${index + 1}.50,ok`)
  await mkdir(join(directory, fileUrl, '..'), { recursive: true })
  await writeFile(join(directory, fileUrl), `${lines.join('\n')}\n`)
}

/** Starts a worker, again and again should it be killed, as a supervisor does. */
function start(id: string): Worker {
  const child = fork(
    fileURLToPath(new URL('night-worker.ts', import.meta.url)),
    [db.url, directory, id, String(release)],
    { execArgv: [], stdio: ['ignore', 'ignore', 'pipe', 'ipc'] },
  )
  const worker: Worker = { id, child, told: [], errors: '' }
  child.stderr?.on('data', (data: Buffer) => {
    worker.errors += data
  })
  child.on('message', (told: Told) => {
    worker.told.push(told)
    if ('outcome' in told && told.fileUrl === troubled.bad && told.outcome !== 'completed') {
      faults.bad ??= performance.now()
    }
    if (!('saved' in told)) return
    if (told.saved === troubled.frozen && faults.frozen === undefined) {
      child.kill('SIGSTOP')
      faults.frozen = performance.now()
    } else {
      child.send('go on')
    }
  })
  child.on('exit', (_code, signal) => {
    if (workers.get(id) !== worker || signal !== 'SIGKILL') return
    faults.deadly ??= performance.now()
    start(id)
  })
  workers.set(id, worker)
  return worker
}

/** Has the workers that run end between two files, and starts those of the new release. */
async function deploy(): Promise<void> {
  release = 2
  for (const { id, child, errors } of [...workers.values()]) {
    child.send('stop')
    await until(() => child.exitCode !== null, { timeoutMs: 30_000, what: `${id} to stop: ${errors}` })
    expect([id, child.exitCode, errors]).toEqual([id, 0, ''])
    start(id)
  }
}

/** What pg_cron's jobs run, every second. */
function startCronJob(): { stop(): Promise<void> } {
  let isStopped = false
  async function run(): Promise<void> {
    const session = await sessionAs('filemark_operator')
    while (!isStopped) {
      await session`select from filemark.run_maintenance()`
      await session`select from filemark.check_alerts()`
      await new Promise((resolve) => setTimeout(resolve, 1_000))
    }
    await session.end()
  }
  const running = run()
  return {
    stop() {
      isStopped = true
      return running
    },
  }
}

function opened(alert: string, pipeline: string): Opening | undefined {
  return heard.find((told) => told.event === 'opened' && told.alert === alert && told.pipeline === pipeline)
}

async function untilOpened(alert: string, pipeline: string): Promise<Opening> {
  const timeoutMs = hasPgCron ? 180_000 : 60_000
  return until(() => opened(alert, pipeline), { timeoutMs, what: `${alert} of ${pipeline}` })
}

async function untilCompleted(condition: string): Promise<void> {
  await until(
    async () =>
      (
        await db.sql.unsafe(
          `select from filemark.file_checkpoints where status <> 'completed' and ${condition}`,
        )
      ).length === 0,
    { timeoutMs: 60_000, what: `the files with ${condition} to be completed` },
  )
}

/** What happens in the world when the operator comes to a section, and when they have done what it says. */
const before: Record<string, () => Promise<void>> = {
  'A file crashes its workers': deploy,
  'One bad record': () => write(troubled.bad, { 8: '8.50,corrected' }),
  'When it is over': () => untilCompleted('true'),
}
const after: Record<string, () => Promise<void>> = {
  'A hung worker holds a file': async () => {
    await untilCompleted(`file_url = '${troubled.frozen}'`)
    // It wakes up, and goes on where it was.
    const { child, told } = workers.get('loader-2') as Worker
    child.kill('SIGCONT')
    child.send('go on')
    const last = await until(() => told.find((one) => 'outcome' in one && one.fileUrl === troubled.frozen), {
      what: 'loader-2 to find that it has lost the file',
    })
    expect(last).toEqual({ outcome: 'claim_lost', fileUrl: troubled.frozen })
  },
}

/** Runs a block as the role that the guide says. Nobody may who may do less. */
async function follow({ line, sql, asOperator, answer }: Block): Promise<void> {
  const where = `docs/operations.md:${line}`
  const refused = asOperator
    ? [...others, ['filemark_monitor', monitor] as const]
    : // Workers may read how many files there are; anybody may listen.
      [...others].filter(([role]) => role !== 'filemark_worker' && /\bfilemark\.|\bpublic\.\w+\(/.test(sql))
  for (const [role, session] of refused) {
    await expect(answerOf(session, sql), `${where} as ${role}`).rejects.toMatchObject({ code: '42501' })
  }
  const answering = answerOf(asOperator ? operator : monitor, sql)
  if (sql.includes('schedule_maintenance') && !hasPgCron) {
    await expect(answering, where).rejects.toMatchObject({ code: 'PT422' })
  } else if (answer === undefined) {
    await expect(answering, where).resolves.toEqual(expect.any(Array))
  } else {
    await expect(answering, where).resolves.toEqual(readTable(answer))
  }
}

test('the guide tells an operator what is wrong in the night, and its statements put it right', {
  timeout: 600_000,
}, async () => {
  await deliver(troubled.frozen)
  if (!hasPgCron) cronJob = startCronJob()
  start('loader-2')
  await until(() => faults.frozen, { timeoutMs: 30_000, what: 'loader-2 to have the file of the ledger' })
  await deliver(troubled.deadly, { 12: `12.50,${'x'.repeat(2_000)}` })
  await deliver(troubled.bad, { 8: 'n/a,ok' })
  for (const pipeline of Object.keys(settings)) {
    for (const day of [17, 18, 19]) await deliver(`${pipeline}/2026-11-${day}.csv`)
  }
  for (const id of ['loader-1', 'loader-3']) start(id)

  // Word comes of each, by name.
  const alerts = {
    frozen: await untilOpened('stale_checkpoint', 'ledger'),
    deadly: await untilOpened('dead_letters', 'events'),
    bad: await untilOpened('dead_letters', 'orders'),
  }
  expect(alerts.frozen.message).toContain(troubled.frozen)
  expect(alerts.frozen.message).toContain('loader-2 has it')
  expect(alerts.deadly.message).toContain(troubled.deadly)
  expect(alerts.bad.message).toContain(troubled.bad)
  expect(alerts.bad.message).toContain('n/a')
  for (const [fault, { at }] of Object.entries(alerts)) {
    const seconds = (at - (faults[fault as keyof typeof faults] ?? Number.NaN)) / 1000
    console.log(`${fault}: ${seconds.toFixed(1)} s from the fault to its alert`)
    expect(seconds).toBeGreaterThan(0)
  }

  // Everything else goes on.
  const quoted = Object.values(troubled).map((fileUrl) => `'${fileUrl}'`)
  await untilCompleted(`file_url not in (${quoted})`)

  const [metrics] = await monitor<{ text: string }[]>`select public.filemark_metrics()::text as text`
  const shown = parseExposition(metrics?.text ?? '')
  expect(sampleOf(shown, 'filemark_checkpoint_age_seconds', { pipeline: 'ledger' })).toBeGreaterThan(3)
  for (const [pipeline, alert] of [
    ['ledger', 'stale_checkpoint'],
    ['events', 'dead_letters'],
    ['orders', 'dead_letters'],
  ] as const) {
    expect([pipeline, sampleOf(shown, 'filemark_alerts', { pipeline, alert })]).toEqual([pipeline, 1])
  }
  expect(sampleOf(shown, 'filemark_dead_letters', { pipeline: 'events', reason: 'lease_expired' })).toBe(1)
  expect(sampleOf(shown, 'filemark_lost_leases_total', { pipeline: 'events' })).toBe(2)
  expect(
    sampleOf(shown, 'filemark_dead_letters', { pipeline: 'orders', reason: 'max_attempts_exceeded' }),
  ).toBe(1)
  expect(sampleOf(shown, 'filemark_failures_total', { pipeline: 'orders' })).toBe(2)

  for (const [index, block] of guide.entries()) {
    if (guide[index - 1]?.section !== block.section) await before[block.section]?.()
    await follow(block)
    if (guide[index + 1]?.section !== block.section) await after[block.section]?.()
  }
  const sections = new Set(guide.map(({ section }) => section))
  expect([...sections]).toEqual(expect.arrayContaining([...Object.keys(before), ...Object.keys(after)]))

  expect(await db.sql`select filemark.alert_count()::int as alerts`).toEqual([{ alerts: 0 }])
  // check_alerts waits for five minutes before it says so by itself.
  await operator`select from filemark.check_alerts(0)`
  for (const { alert, pipeline } of Object.values(alerts)) {
    await until(
      () =>
        heard.some((told) => told.event === 'resolved' && told.alert === alert && told.pipeline === pipeline),
      {
        what: `${alert} of ${pipeline} to be resolved`,
      },
    )
  }
  if (hasPgCron) {
    const jobs =
      await db.sql`select distinct command from cron.job_run_details where status = 'succeeded' order by command`
    expect(jobs.map(({ command }) => command)).toEqual(
      expect.arrayContaining([
        'select from filemark.check_alerts()',
        'select from filemark.run_maintenance()',
      ]),
    )
  }
  // Each record of each file is there once, whoever died over it.
  expect(
    await db.sql`
      select count(*)::int as records, count(distinct (file_url, record_number))::int as different,
             count(distinct file_url)::int as files
        from public.loaded`,
  ).toEqual([{ records: 12 * records, different: 12 * records, files: 12 }])
  const [frozen] =
    await db.sql`select count(*)::int as records from public.loaded where loaded_by = 'loader-2' and file_url = ${troubled.frozen}`
  expect(frozen).toEqual({ records: 5 })
})

test('the session of a hung worker that keeps its file locked is found as the guide says, and may be ended', async () => {
  // In a pipeline that the workers of the night do not look at.
  await deliver('archive/locked.csv')
  const [claim] = await operator<{ claim_token: string }[]>`
    select claim_token from public.claim_next_files('loader-2', p_pipeline => 'archive')`
  const hung = await db.connect()
  await hung.sql`begin`
  await hung.sql`select filemark.assert_claim('archive/locked.csv', ${claim?.claim_token ?? null}, 'archive')`
  const [backend] = await operator<{ pid: number }[]>`select pg_backend_pid() as pid`
  const [force, find] = guide.filter(
    ({ section, sql }) => section === 'A hung worker holds a file' && /requeue_file|held_snapshots/.test(sql),
  )
  const requeued = answerOf(operator, force?.sql ?? '')
  await untilLocked(db.sql, backend?.pid ?? 0)
  const [, ...holders] = await answerOf(monitor, find?.sql ?? '')
  expect(holders.map(([kind, name]) => [kind, name])).toContainEqual(['session', String(hung.pid)])
  await db.sql`select pg_terminate_backend(${hung.pid})`
  expect(await requeued).toContainEqual(['archive/locked.csv', 'pending', '0'])
})

test('the guide names what there is, all of it, and its links lead somewhere', async () => {
  const text = readFileSync(new URL('../../docs/operations.md', import.meta.url), 'utf8')
  const [metrics] = await monitor<{ text: string }[]>`select public.filemark_metrics()::text as text`
  const shown = parseExposition(metrics?.text ?? '')
  const named = new Set(text.match(/\bfilemark_\w+/g))
  const others = [
    'filemark_monitor',
    'filemark_operator',
    'filemark_worker',
    'filemark_alerts',
    'filemark_metrics',
  ]
  expect([...named].filter((name) => !shown.has(name) && !others.includes(name))).toEqual([])

  const alerts = new Set(shown.get('filemark_alerts')?.samples.map(({ labels }) => labels.alert))
  expect([...alerts].filter((alert) => !text.includes(`| \`${alert}\` |`))).toEqual([])

  // What other views are made of is not for operators.
  const views = await monitor<{ name: string }[]>`
    select relname as name from pg_class
     where relnamespace = 'filemark'::regnamespace and relkind = 'v'
       and relname not in ('watched_histories', 'recent_activity')`
  expect(views.filter(({ name }) => !text.includes(`filemark.${name}`))).toEqual([])

  const anchors = new Set([...text.matchAll(/^#+ (.+)$/gm)].map(([, heading = '']) => anchorOf(heading)))
  for (const [, path = '', anchor = ''] of text.matchAll(/\]\(([^)#]*)#?([^)]*)\)/g)) {
    if (path)
      expect([path, existsSync(new URL(path, new URL('../../docs/', import.meta.url)))]).toEqual([path, true])
    else expect([anchor, anchors.has(anchor)]).toEqual([anchor, true])
  }
})

/** As GitHub makes it of a heading. */
function anchorOf(heading: string): string {
  return heading
    .toLowerCase()
    .replaceAll(/[^\w\s-]/g, '')
    .replaceAll(' ', '-')
}
