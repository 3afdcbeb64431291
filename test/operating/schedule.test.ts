import postgres, { type Sql } from 'postgres'
import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from 'vitest'
import { call, claim, configure, only, refusal } from '../behaviour/calls.ts'
import { hasPgCron } from '../behaviour/lane.ts'
import { expireLease, fileRow } from '../behaviour/tables.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { installFilemark, runSql, sqlFiles } from '../servers/install.ts'
import { pgCronSql } from '../servers/pg-cron-fixture.ts'
import { until } from '../wait.ts'

// pg_cron itself is there in one lane, in its version 1.4 (Debian's). What 1.5 and later does differently, and what does
// not depend on jobs really running, is tried with a fixture that has the same functions.

interface Job {
  jobid: string
  jobname: string
  schedule: string
  command: string
  username: string
  active: boolean
}

const everyMinute = '* * * * *'
const commands = {
  'filemark:alerts': 'select from filemark.check_alerts()',
  'filemark:cron-log': 'select filemark.forget_cron_runs()',
  'filemark:maintenance': 'select from filemark.run_maintenance()',
}

async function jobs(sql: Sql): Promise<Job[]> {
  return [...(await sql<Job[]>`select * from cron.job order by jobname`)]
}

function schedule(sql: Sql, args: Record<string, unknown> = {}): Promise<Record<string, unknown>[]> {
  return call(sql, 'filemark.schedule_maintenance', args)
}

/** What schedule_maintenance answers when maintenance runs `every` and nothing is paused. */
function answer(every: string): Record<string, unknown>[] {
  return [
    { job: 'filemark:alerts', schedule: everyMinute, active: true },
    { job: 'filemark:cron-log', schedule: '17 * * * *', active: true },
    { job: 'filemark:maintenance', schedule: every, active: true },
  ]
}

/** What the server says besides its results while `text` runs. */
async function noticesOf(url: string, text: string): Promise<string[]> {
  const notices: string[] = []
  const sql = postgres(url, { max: 1, onnotice: ({ message }) => notices.push(message ?? '') })
  await sql.unsafe(text).simple()
  await sql.end()
  return notices
}

const chapter = () => only(sqlFiles().filter(({ name }) => name === '98_schedule.sql')).text
/** What the chapter, and an upgrade, does at the end. */
const installation = 'select filemark.schedule_at_installation()'

const kinds = [
  { name: 'pg_cron 1.4', tags: ['pg_cron' as const], seconds: false, real: true },
  { name: 'a fixture of pg_cron 1.4', tags: [], seconds: false, real: false },
  { name: 'a fixture of pg_cron 1.5 or later', tags: [], seconds: true, real: false },
]

describe.each(kinds)('with $name', ({ tags, seconds, real }) => {
  let db: TestDatabase
  const inSeconds = (every: string) => (seconds ? every : everyMinute)

  beforeAll(async () => {
    if (real && !hasPgCron) return
    db = await createDatabase(real ? { cron: true } : {})
    if (!real) await runSql(db.url, [{ name: 'pg-cron-fixture.ts', text: pgCronSql({ seconds }) }])
    await db.sql.unsafe(`create role night_shift_${db.name} login in role filemark_operator`)
  })
  beforeEach(async () => {
    if (real && !hasPgCron) return
    await db.sql`select cron.unschedule(jobid) from cron.job`
  })
  afterAll(async () => {
    if (real && !hasPgCron) return
    await db.sql.unsafe(`drop role night_shift_${db.name}`)
    await db.drop()
  })

  test('three jobs are scheduled, and a repeat changes nothing', { tags }, async () => {
    expect(await schedule(db.sql)).toEqual(answer(inSeconds('30 seconds')))
    const scheduled = await jobs(db.sql)
    expect(Object.fromEntries(scheduled.map(({ jobname, command }) => [jobname, command]))).toEqual(commands)
    expect(await schedule(db.sql)).toEqual(answer(inSeconds('30 seconds')))
    expect(await jobs(db.sql)).toEqual(scheduled)
  })

  test.each(Object.entries(commands))(
    'the job %s is a statement that runs',
    { tags },
    async (_job, command) => {
      await db.sql.unsafe(command)
    },
  )

  test.each([
    ['10 seconds', seconds ? '10 seconds' : everyMinute],
    ['1 second', seconds ? '1 second' : everyMinute],
    ['59  seconds', seconds ? '59  seconds' : everyMinute],
    ['*/5 * * * *', '*/5 * * * *'],
    ['0 3 1,15 * *', '0 3 1,15 * *'],
    ['@hourly', '@hourly'],
  ])(
    'p_every %s is how often maintenance runs, and stays so until another is given',
    { tags },
    async (every, is) => {
      expect(await schedule(db.sql, { every })).toEqual(answer(is))
      expect(await schedule(db.sql)).toEqual(answer(is))
      expect(await schedule(db.sql, { every: '7 7 * * *' })).toEqual(answer('7 7 * * *'))
      expect(await jobs(db.sql)).toHaveLength(3)
    },
  )

  test.each([
    '',
    ' ',
    '0 seconds',
    '60 seconds',
    '99999999999999999999 seconds',
    '-1 seconds',
    '1.5 seconds',
    '5 minutes',
  ])('p_every "%s" is refused by name, and changes nothing', { tags }, async (every) => {
    await schedule(db.sql, { every: '5 * * * *' })
    const before = await jobs(db.sql)
    expect(await refusal(schedule(db.sql, { every }))).toMatchObject({
      code: 'PT400',
      message: expect.stringMatching(/^p_every must be .*, not "/),
    })
    expect(await jobs(db.sql)).toEqual(before)
  })

  test.each(['* * * *', '* * * * * *', 'x * * * *', '@often', `${'1,'.repeat(60)}1 * * * *`])(
    'p_every "%s" is refused, whoever finds it wrong',
    { tags },
    async (every) => {
      expect(await refusal(schedule(db.sql, { every }))).toMatchObject({ code: 'PT400' })
      expect(await jobs(db.sql)).toEqual([])
    },
  )

  test('a job that was paused stays paused', { tags }, async () => {
    await schedule(db.sql)
    await db.sql`update cron.job set active = false where jobname = 'filemark:maintenance'`
    const paused = answer('2 * * * *').map((row) => ({ ...row, active: row.job !== 'filemark:maintenance' }))
    expect(await schedule(db.sql, { every: '2 * * * *' })).toEqual(paused)
    await db.sql.unsafe(installation)
    expect(await schedule(db.sql)).toEqual(paused)
  })

  test('unschedule_maintenance takes away these jobs and no others, and may be repeated', {
    tags,
  }, async () => {
    await db.sql`select cron.schedule('filemark:mine', '0 0 1 1 *', 'select 1')`
    await schedule(db.sql)
    expect(await call(db.sql, 'filemark.unschedule_maintenance')).toEqual(
      Object.keys(commands).map((job) => ({ job })),
    )
    expect(await jobs(db.sql)).toMatchObject([{ jobname: 'filemark:mine' }])
    expect(await call(db.sql, 'filemark.unschedule_maintenance')).toEqual([])
  })

  test('an operator schedules jobs that run as the owner of filemark, and ends them', { tags }, async () => {
    const { sql } = await db.connect(`night_shift_${db.name}`)
    expect(await schedule(sql)).toEqual(answer(inSeconds('30 seconds')))
    await schedule(db.sql)
    expect((await jobs(db.sql)).map(({ username }) => username)).toEqual(['postgres', 'postgres', 'postgres'])
    expect(await call(sql, 'filemark.unschedule_maintenance')).toHaveLength(3)
    expect(await jobs(db.sql)).toEqual([])
    await sql.end()
  })

  test.each(['filemark_worker', 'filemark_monitor'])('%s may do neither', { tags }, async (role) => {
    const { sql } = await db.connect()
    await sql.unsafe(`set role ${role}`)
    expect(await refusal(schedule(sql))).toMatchObject({ code: '42501' })
    expect(await refusal(call(sql, 'filemark.unschedule_maintenance'))).toMatchObject({ code: '42501' })
    await sql.end()
  })

  test('the log forgets runs of these jobs only: good ones after a day, others after a week', {
    tags,
  }, async () => {
    await db.sql`truncate cron.job_run_details`
    const run = (command: string, status: string, days: number | null) => db.sql`
      insert into cron.job_run_details (jobid, runid, database, username, command, status, start_time, end_time)
      values (1, (select coalesce(max(runid), 1000) + 1 from cron.job_run_details), current_database(), current_user,
              ${command}, ${status}, now() - make_interval(days => ${days}), now() - make_interval(days => ${days}))`
    const ours = commands['filemark:maintenance']
    await run('select 1', 'succeeded', 30)
    await run(ours, 'failed', null)
    await run(ours, 'failed', 8)
    await run(ours, 'failed', null)
    await run(ours, 'failed', 6)
    await run(ours, 'succeeded', 2)
    await run(commands['filemark:alerts'], 'succeeded', 2)
    await run(ours, 'succeeded', 0)
    await db.sql.unsafe(commands['filemark:cron-log'])
    const left = await db.sql`select runid::int from cron.job_run_details where runid > 1000 order by 1`
    expect(left.map(({ runid }) => runid)).toEqual([1001, 1004, 1005, 1008])
  })

  test('an installation schedules them', { tags }, async () => {
    const notices = await noticesOf(db.url, installation)
    expect(notices).toEqual([])
    expect((await jobs(db.sql)).map(({ jobname }) => jobname)).toEqual(Object.keys(commands))
  })

  test('an installation that pg_cron refuses goes on, and says what to run', { tags }, async () => {
    await db.sql`create function public.refuse() returns trigger language plpgsql as 'begin raise exception ''cron is broken''; end'`
    await db.sql`create trigger refuse before insert on cron.job execute function public.refuse()`
    expect(await noticesOf(db.url, installation)).toEqual([
      'filemark: maintenance could not be scheduled: cron is broken. When that is mended, run: ' +
        'select * from filemark.schedule_maintenance();',
    ])
    expect(await refusal(schedule(db.sql))).toMatchObject({ message: 'cron is broken' })
    await db.sql`drop function public.refuse cascade`
    expect(await jobs(db.sql)).toEqual([])
  })
})

describe('filemark that belongs to somebody who is no superuser', () => {
  test.each([
    ['may use pg_cron, schedules its jobs as that role', true],
    ['may not use pg_cron, is installed all the same, and says what to run', false],
  ])('and %s', async (_what, allowed) => {
    await using db = await createDatabase({ filemark: false })
    const owner = `owner_${db.name}`
    await db.sql.unsafe(`
      create role ${owner} login createrole;
      grant filemark_worker, filemark_monitor, filemark_operator to ${owner};
      grant create on database ${db.name} to ${owner};
      grant create on schema public to ${owner};
      ${pgCronSql({ seconds: true })};
      ${allowed ? `grant usage on schema cron to ${owner}` : ''}`)
    const notices: string[] = []
    const sql = postgres(db.urlAs(owner), { max: 1, onnotice: ({ message }) => notices.push(message ?? '') })
    for (const { text } of sqlFiles()) await sql.unsafe(text).simple()
    const told = notices.filter((notice) => notice.startsWith('filemark: '))

    if (allowed) {
      expect(told).toEqual([])
      expect(await schedule(sql)).toEqual(answer('30 seconds'))
      expect((await jobs(db.sql)).map(({ username }) => username)).toEqual([owner, owner, owner])
    } else {
      expect(told).toEqual([
        `filemark: maintenance could not be scheduled: ${owner}, who owns filemark, may not use pg_cron. When that is ` +
          'mended, run: select * from filemark.schedule_maintenance();',
      ])
      const refused = await schedule(sql).catch((error: unknown) => error)
      expect(refused).toMatchObject({
        code: '42501',
        hint: expect.stringContaining('grant usage on schema cron to'),
      })
      await db.sql.unsafe(
        String((refused as { hint: string }).hint).replace('Have an administrator run: ', ''),
      )
      expect(await schedule(sql)).toEqual(answer('30 seconds'))
    }
    await sql.end()
    await db.sql.unsafe(
      `drop schema filemark, cron cascade; drop owned by ${owner} cascade; drop role ${owner}`,
    )
  })
})

describe('without pg_cron', () => {
  let db: TestDatabase
  beforeAll(async () => {
    db = await createDatabase()
  })
  afterAll(() => db.drop())

  test('filemark is installed, and says what to run instead', async () => {
    await using fresh = await createDatabase({ filemark: false })
    await installFilemark(fresh.url)
    const notices = await noticesOf(fresh.url, chapter().slice(chapter().indexOf('do $schedule$')))
    expect(notices).toEqual([
      expect.stringMatching(/^filemark: nothing runs maintenance here yet\. .*run_maintenance/),
    ])
    const statements =
      /select from filemark\.run_maintenance\(\); select from filemark\.check_alerts\(\);/.exec(only(notices))
    await fresh.sql.unsafe(String(statements?.[0]))
  })

  test('schedule_maintenance is refused, and its hint says what to run', async () => {
    const refused = await schedule(db.sql).catch((error: unknown) => error)
    expect(refused).toMatchObject({
      code: 'PT422',
      message: 'pg_cron is not in this database',
      hint: expect.stringContaining('select from filemark.run_maintenance();'),
    })
    expect(await refusal(schedule(db.sql, { every: '61 seconds' }))).toMatchObject({ code: 'PT400' })
  })

  test('unschedule_maintenance does nothing', async () => {
    expect(await call(db.sql, 'filemark.unschedule_maintenance')).toEqual([])
  })

  test('a schema named cron that is not that of pg_cron is left alone', async () => {
    await using other = await createDatabase({ filemark: false })
    await other.sql.unsafe('create schema cron; create table cron.job (id int)')
    await installFilemark(other.url)
    expect(await refusal(schedule(other.sql))).toMatchObject({ code: 'PT422' })
  })
})

describe('in the database that pg_cron works in', { tags: 'pg_cron', timeout: 240_000 }, () => {
  test('an installation is all it takes: a lost claim is reclaimed, and the run is recorded', async () => {
    await using db = await createDatabase({ cron: true })
    expect((await jobs(db.sql)).map(({ jobname }) => jobname)).toEqual(Object.keys(commands))
    await claim(db.sql, 'a')
    await expireLease(db.sql)
    await until(async () => (await fileRow(db.sql, 'a')).status === 'pending', {
      timeoutMs: 150_000,
      what: 'pg_cron to have the lost claim reclaimed',
    })
    expect(await fileRow(db.sql, 'a')).toMatchObject({ claim_ended: 'lost', lease_expires_at: null })
    expect(
      only(await db.sql`select pipeline, affected from filemark.maintenance_runs order by run_id limit 1`),
    ).toMatchObject({ pipeline: 'default', affected: { reclaim_stale_claims: 1 } })
    const ran = await until(
      async () => {
        const runs = await db.sql`
          select command, status, username, return_message from cron.job_run_details where end_time is not null`
        return new Set(runs.map(({ command }) => command)).size >= 2 ? [...runs] : undefined
      },
      { timeoutMs: 90_000, what: 'both jobs in the log of pg_cron' },
    )
    for (const { status, username } of ran)
      expect({ status, username }).toEqual({ status: 'succeeded', username: 'postgres' })
    expect(await call(db.sql, 'filemark.unschedule_maintenance')).toHaveLength(3)
  })
})

describe('where pg_cron works in another database', { tags: 'pg_cron', timeout: 240_000 }, () => {
  test('filemark says what to run there, and that runs maintenance here', async () => {
    await using home = await createDatabase({ cron: true })
    await using db = await createDatabase()
    const refused = await schedule(db.sql).catch((error: unknown) => error)
    const { hint } = refused as { hint: string }
    expect(refused).toMatchObject({ code: 'PT422' })
    expect(hint).toMatch(
      new RegExp(`^pg_cron works in database ${inject('cronDatabase')}\\. Run there: select cron`),
    )
    expect(only(await noticesOf(db.url, installation))).toContain(hint)

    await home.sql.unsafe(hint.slice(hint.indexOf('select')))
    expect((await jobs(home.sql)).map(({ jobname }) => jobname)).toEqual([
      ...Object.keys(commands),
      `filemark@${db.name}`,
    ])
    await configure(db.sql, {})
    await until(async () => (await db.sql`select from filemark.maintenance_runs`).length > 0, {
      timeoutMs: 150_000,
      what: 'pg_cron to run maintenance in the other database',
    })
    // Before the database goes, or its job would fail every minute.
    await home.sql`select cron.unschedule(${`filemark@${db.name}`})`
  })
})
