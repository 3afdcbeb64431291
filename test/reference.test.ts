import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { referenceFile, referenceText } from '../scripts/generate-reference.ts'
import { type Reference, readReference } from '../scripts/read-reference.ts'
import { reachedFrom } from './call-graph.ts'
import { createDatabase, type TestDatabase } from './database.ts'

let database: TestDatabase
let reference: Reference
/** The body of each function, by its name with the schema. */
let sources: Map<string, string>

beforeAll(async () => {
  database = await createDatabase({ supabase: 'new' })
  reference = await readReference(database.sql)
  const rows = await database.sql<{ name: string; source: string }[]>`
    select pronamespace::regnamespace || '.' || proname as name, prosrc as source from pg_proc
     where pronamespace in ('filemark'::regnamespace, 'public'::regnamespace)`
  sources = new Map(rows.map(({ name, source }) => [name, source]))
})
afterAll(() => database?.drop())

test('docs/reference.md is what the database says; if not: npm run build:reference', () => {
  expect(readFileSync(referenceFile, 'utf8')).toBe(referenceText(reference))
})

test('only what persist_records is made of is granted and left out', async () => {
  const internal = await database.sql<{ name: string }[]>`
    select pronamespace::regnamespace || '.' || proname as name from pg_proc
     where obj_description(oid, 'pg_proc') like 'Internal:%'`
  expect(internal.length).toBeGreaterThan(0)
  const ofPersistRecords = [...reachedFrom('public.persist_records', sources)]
  expect(ofPersistRecords).toEqual(expect.arrayContaining(internal.map(({ name }) => name)))
  expect(reference.functions.length).toBeGreaterThan(15)
})

describe('the reference cannot be made', () => {
  const extendClaim = 'comment on function public.extend_claim(text, bigint, text) is'
  test.each([
    [
      'a function without a comment',
      `${extendClaim} null`,
      'public.extend_claim: the comment does not begin',
    ],
    [
      'a new function that is granted and has no comment',
      `create function filemark.added() returns void language plpgsql as 'begin end';
       revoke all on function filemark.added from public;
       grant execute on function filemark.added to filemark_monitor`,
      'filemark.added: the comment does not begin',
    ],
    [
      'a parameter without a meaning',
      `${extendClaim} e'Renews.\n\np_file_url: the file.\np_claim_token: the token.\nReturns: its end.'`,
      'public.extend_claim: does not say what p_pipeline is',
    ],
    [
      'a parameter that is not there',
      `${extendClaim} e'Renews.\n\np_file_url: a.\np_claim_token: b.\np_pipeline: c.\np_other: d.\nReturns: its end.'`,
      'public.extend_claim: says what p_other is',
    ],
    [
      'parameters in another order',
      `${extendClaim} e'Renews.\n\np_claim_token: b.\np_file_url: a.\np_pipeline: c.\nReturns: its end.'`,
      'are out of order',
    ],
    [
      'a result without a meaning',
      `${extendClaim} e'Renews.\n\np_file_url: a.\np_claim_token: b.\np_pipeline: c.'`,
      'public.extend_claim: does not say what it returns',
    ],
    [
      'a returned column without a meaning',
      `comment on function public.pending_files(text[], text) is
         e'Of the given.\n\np_file_urls: a.\np_pipeline: b.\nReturns: rows.'`,
      'public.pending_files: does not say what the column file_url is',
    ],
    [
      'a returned column that the named table does not have',
      `comment on function public.register_files(jsonb, text) is
         e'Makes.\n\np_files: a.\np_pipeline: b.\nReturns: a row of filemark.claim.'`,
      'public.register_files: does not say what the column registered is',
    ],
    [
      'an error that is none',
      `${extendClaim} e'Renews.\n\np_file_url: a.\np_claim_token: b.\np_pipeline: c.\nReturns: d.\nErrors: PT418 teapot.'`,
      'PT418 is not among the errors',
    ],
    [
      'a column without a comment',
      'alter table filemark.pipelines add added int',
      'filemark.pipelines.added',
    ],
    [
      'a table without a comment',
      'comment on table filemark.file_events is null',
      'filemark.file_events has no',
    ],
    [
      'a type without a comment',
      'create type filemark.added as (n int)',
      'filemark.added has no comment\nfilemark.added.n has',
    ],
    [
      'a column that a type lacks',
      `comment on type filemark.claim is e'A claim.\n\nColumns: as in filemark.file_checkpoints.\nother: d.'`,
      'filemark.claim: says what other is, which it lacks\nfilemark.claim.outcome has no comment',
    ],
  ])('of %s', async (_what, change, problem) => {
    const { sql } = await database.connect()
    await sql`begin`
    await sql.unsafe(change)
    await expect(readReference(sql)).rejects.toThrow(problem)
    await sql.end()
  })
})

describe('the errors of a function', () => {
  const file = `'held.csv', 1`
  const unknown = `'none.csv', 1`
  const lost = `'held.csv', 2`
  const large = `to_jsonb(repeat('x', 100))`
  const many = (entry: string, count: number) =>
    `(select jsonb_agg(${entry}) from generate_series(1, ${count}))`

  // A call that is refused so, for each error that a function claims.
  const refusals: Record<string, Record<string, string>> = {
    'public.register_files': { PT400: `('{}')`, PT413: `(${many(`'{}'::jsonb`, 10_001)})` },
    'public.claim_file': { PT400: `('', 'csv', now(), 'worker')` },
    'public.claim_next_files': { PT400: `('worker', 0)` },
    'public.checkpoint_file': {
      PT400: `(${file}, null, 2)`,
      PT404: `(${unknown}, '1', 1)`,
      PT409: `(${lost}, '1', 1)`,
      PT412: `(${file}, '1', 0)`,
      PT413: `(${file}, ${large}, 2)`,
    },
    'public.extend_claim': { PT400: `('', 1)`, PT404: `(${unknown})`, PT409: `(${lost})` },
    'filemark.assert_claim': { PT400: `('held.csv', 0)`, PT404: `(${unknown})`, PT409: `(${lost})` },
    'public.persist_records': {
      PT400: `(${file}, 'no_such_table', '[]', '1', 2)`,
      PT404: `(${unknown}, 'target', '[]', '1', 2)`,
      PT409: `(${lost}, 'target', '[]', '1', 2)`,
      PT412: `(${file}, 'target', '[]', '2', 1)`,
      PT413: `(${file}, 'target', ${many(`'{}'::jsonb`, 10_001)}, '1', 2)`,
      '42501': `(${file}, 'target', '[{"n": 1}]', '1', 2)`,
    },
    'public.complete_file': {
      PT400: `(${file}, -1)`,
      PT404: `(${unknown})`,
      PT409: `(${lost})`,
      PT413: `(${file}, p_accumulated_results => ${large})`,
    },
    'public.complete_and_claim_next': {
      PT400: `('worker', '{}')`,
      PT413: `('worker', ${many(`'{}'::jsonb`, 101)})`,
    },
    'public.fail_file': {
      PT400: `(${file}, '')`,
      PT404: `(${unknown}, 'broken')`,
      PT409: `(${lost}, 'broken')`,
      PT413: `(${file}, 'broken', p_error => to_jsonb(repeat('x', 1048577)))`,
    },
    'public.release_file': { PT400: `('held.csv', null)`, PT404: `(${unknown})`, PT409: `(${lost})` },
    'public.get_file_checkpoint': { PT400: `('')` },
    'public.list_file_checkpoints': { PT400: `('unheard of')` },
    'public.pending_files': { PT400: `(null)`, PT413: `(array_fill('a'::text, array[1001]))` },
    'public.pipeline_stats': {},
    'filemark.configure_pipeline': { PT400: `('default', '{"max_attempts": 0}')` },
    'public.requeue_file': {
      PT400: `('held.csv', 'the moon')`,
      PT404: `('none.csv')`,
      PT422: `('held.csv')`,
    },
    'public.skip_file': { PT400: `('')`, PT404: `('none.csv')`, PT422: `('held.csv')` },
    'filemark.reclaim_stale_claims': { PT400: `(0)`, PT404: `(p_pipeline => 'none')` },
    'filemark.truncate_checkpoint_history': { PT400: `(0)`, PT404: `(p_pipeline => 'none')` },
    'filemark.clear_completed_checkpoints': { PT400: `(0)`, PT404: `(p_pipeline => 'none')` },
    'filemark.purge_files': { PT400: `(0)`, PT404: `(p_pipeline => 'none')` },
    'filemark.run_maintenance': { PT400: `(0)` },
    'filemark.dead_letter_file': { PT400: `('')`, PT404: `('none.csv')`, PT422: `('held.csv')` },
    'filemark.resolve_dead_letter': {
      PT400: `('held.csv', 'done')`,
      PT404: `('none.csv', 'skipped')`,
      PT422: `('held.csv', 'skipped')`,
    },
    'filemark.requeue_dead_letters': { PT400: `('default', null)`, PT404: `('none')` },
    'filemark.schedule_maintenance': { PT400: `('soon')`, PT422: `()` },
    'filemark.unschedule_maintenance': {},
    'filemark.alert_limits': {},
    'filemark.current_alerts': {},
    'filemark.held_snapshots': {},
    'filemark.estimate_storage': { PT400: `(-1, 1, 1)` },
    'filemark.alert_count': {},
    'filemark.set_alert_webhook': { PT400: `('ftp://a')`, PT404: `('https://a', p_pipeline => 'none')` },
    'filemark.check_alerts': { PT400: `(-1)` },
    'public.filemark_metrics': {},
  }

  beforeAll(async () => {
    await database.sql.unsafe(`
      select filemark.configure_pipeline('default', '{"results_limit_bytes": 50, "cursor_limit_bytes": 50}');
      select claim_file('held.csv', 'csv', now(), 'worker');
      select checkpoint_file('held.csv', 1, '1', 1);
      create table public.target (n int);
    `)
  })

  const claimed = (name: string) =>
    reference.functions.find((fn) => fn.name === name)?.meaning.errors.map(({ code }) => code)

  test('are those that are tried here, of every function', () => {
    expect(reference.functions.map(({ name }) => name).sort()).toEqual(Object.keys(refusals).sort())
    for (const [name, codes] of Object.entries(refusals)) {
      expect([name, claimed(name)?.sort()]).toEqual([name, Object.keys(codes).sort()])
    }
  })

  test.each(
    Object.entries(refusals).flatMap(([name, codes]) =>
      Object.entries(codes).map(([code, args]) => ({ name, code, args })),
    ),
  )('$name: $code is what a caller gets', async ({ name, code, args }) => {
    const { sql } = await database.connect()
    await sql`set role filemark_operator`
    await expect(sql.unsafe(`select * from ${name}${args}`)).rejects.toMatchObject({ code })
    await sql.end()
  })

  test('are all that it and what it calls can raise', () => {
    // The tasks are given pipelines that are there.
    const never: Record<string, string[]> = { 'filemark.run_maintenance': ['PT404'] }
    for (const { name, meaning } of reference.functions) {
      const raised = new Set(
        [...reachedFrom(name, sources)].flatMap((callee) =>
          Array.from((sources.get(callee) ?? '').matchAll(/errcode = '(\w{5})'/g), ([, code]) => code),
        ),
      )
      const ours = meaning.errors.map(({ code }) => code).filter((code) => code.startsWith('PT'))
      const expected = [...raised].filter((code) => !never[name]?.includes(code ?? ''))
      expect([name, ours.sort()]).toEqual([name, expected.sort()])
    }
  })
})

describe('the settings of a pipeline', () => {
  const settings = () =>
    (reference.relations.find(({ name }) => name === 'filemark.pipelines')?.columns ?? [])
      .filter(({ name }) => name !== 'pipeline' && name !== 'created_at')
      .map(({ name, type, comment }) => ({
        name,
        isWhole: type !== 'double precision',
        allowed: / Allowed: (.+)\.$/.exec(comment ?? '')?.[1] ?? '',
        isReserved: comment?.startsWith('Reserved: '),
      }))

  const isTaken = (name: string, value: unknown) =>
    database.sql`
      select filemark.configure_pipeline('settings', ${database.sql.json({ [name]: value } as never)})`.then(
      () => true,
      () => false,
    )

  test('take what their comment allows, up to the bounds, and nothing else', async () => {
    for (const { name, isWhole, allowed } of settings()) {
      const [, low, high] = /^(\d+) to (\d+)/.exec(allowed) ?? []
      const step = isWhole ? 1 : 0.001
      const words = allowed.match(/(?<=')\w+(?=')/g) ?? []
      const good = low ? [Number(low), Number(high)] : allowed === 'true or false' ? [true, false] : words
      const bad = low ? [Number(low) - step, Number(high) + step, String(low)] : ['other', 1]
      if (low && isWhole) bad.push(Number(low) + 0.5)
      const nullIsAllowed = allowed.endsWith(' or null')

      expect(good.length, name).toBeGreaterThanOrEqual(2)
      for (const value of good) expect([name, value, await isTaken(name, value)]).toEqual([name, value, true])
      for (const value of bad) expect([name, value, await isTaken(name, value)]).toEqual([name, value, false])
      expect([name, 'null', await isTaken(name, null)]).toEqual([name, 'null', nullIsAllowed])
    }
    expect(settings().length).toBeGreaterThan(20)
  })

  test('are reserved exactly when no function and no view reads them', async () => {
    const views = await database.sql<{ name: string; source: string }[]>`
      select viewname as name, definition as source from pg_views where schemaname = 'filemark'`
    const readers = [...sources, ...views.map(({ name, source }) => [name, source] as const)].filter(
      ([name]) => name !== 'filemark.configure_pipeline' && name !== 'filemark.check_settings',
    )
    const unread = settings().filter(
      ({ name }) => !readers.some(([, source]) => new RegExp(`\\b${name}\\b`).test(source)),
    )
    expect(unread.map(({ name }) => name)).toEqual(
      settings()
        .filter(({ isReserved }) => isReserved)
        .map(({ name }) => name),
    )
  })
})
