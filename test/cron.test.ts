import postgres from 'postgres'
import { describe, expect, inject, test } from 'vitest'
import { createDatabase } from './database.ts'
import { until } from './wait.ts'

describe('the database that pg_cron works in', { tags: 'pg_cron' }, () => {
  test('has filemark and the extension in it, and is the only one that may have it', async () => {
    await using cron = await createDatabase({ cron: true })
    const [found] = await cron.sql`
      select to_regclass('filemark.file_checkpoints') is not null as filemark,
             exists (select from pg_extension where extname = 'pg_cron') as extension,
             current_setting('cron.database_name') = current_database() as "worksHere"`
    expect(found).toEqual({ filemark: true, extension: true, worksHere: true })
    await using other = await createDatabase()
    await expect(other.sql`create extension pg_cron`).rejects.toThrow(
      `can only create extension in database ${cron.name}`,
    )
  })

  // pg_cron 1.4 knows no shorter time than a minute.
  test('runs a job that is scheduled there', { timeout: 180_000 }, async () => {
    await using cron = await createDatabase({ cron: true })
    await cron.sql`create table runs (who text, wherein text)`
    await cron.sql`
      select cron.schedule('note', '* * * * *', 'insert into public.runs values (current_user, current_database())')`
    const run = await until(async () => (await cron.sql`select * from runs`)[0], {
      timeoutMs: 150_000,
      what: 'a job that runs every minute',
    })
    expect(run).toEqual({ who: 'postgres', wherein: cron.name })
    await until(async () => (await cron.sql`select from cron.job_run_details where status = 'succeeded'`)[0])
  })

  test('is given to one at a time, with nothing left of what was done to it before', async () => {
    const first = await createDatabase({ cron: true })
    await first.sql`select cron.schedule('left over', '0 0 1 1 *', 'select 1')`
    await first.sql`create table public.left_over ()`
    await first.sql`select from filemark.configure_pipeline('left over', '{}')`
    let given = false
    const waiting = createDatabase({ cron: true }).finally(() => {
      given = true
    })
    const watcher = postgres(inject('postgresUrl'), { max: 1, onnotice: () => {} })
    await until(
      async () => (await watcher`select from pg_locks where locktype = 'advisory' and not granted`)[0],
      { what: 'the second to wait for the database' },
    )
    await watcher.end()
    expect(given).toBe(false)
    await first.drop()
    await using second = await waiting
    // Installing filemark schedules its own.
    expect(await second.sql`select jobname from cron.job where jobname not like 'filemark:%'`).toEqual([])
    expect(
      await second.sql`
        select to_regclass('public.left_over') as table, (select count(*)::int from filemark.pipelines) as pipelines`,
    ).toEqual([{ table: null, pipelines: 0 }])
  })
})
