import type { TransactionSql } from 'postgres'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from '../database.ts'
import {
  arrange,
  arrived,
  type Bad,
  calls,
  oddTexts,
  parameterTypes,
  sendAround,
  statement,
  unreadable,
} from './bad-arguments.ts'
import { call, refusal } from './calls.ts'
import { contents } from './tables.ts'

let db: TestDatabase

beforeAll(async () => {
  db = await createDatabase()
  await arrange(db.sql)
})
afterAll(() => db.drop())

test('the table has every parameter of every function that is granted', async () => {
  const rows = await db.sql<{ name: string; parameters: string[] }[]>`
    select n.nspname || '.' || p.proname as name, coalesce((p.proargnames::text[])[:p.pronargs], '{}') as parameters
      from pg_proc p join pg_namespace n on n.oid = p.pronamespace
     where n.nspname in ('public', 'filemark') and has_function_privilege('filemark_operator', p.oid, 'execute')
       -- What persist_records is made of is called by it alone.
       and coalesce(obj_description(p.oid, 'pg_proc'), '') not like 'Internal:%'
     order by 1`
  const granted = Object.fromEntries(rows.map(({ name, parameters }) => [name, parameters]))
  const sorted = Object.entries(calls).toSorted(([a], [b]) => (a < b ? -1 : 1))
  expect(Object.fromEntries(sorted.map(([name, { good }]) => [name, Object.keys(good)]))).toEqual(granted)
  expect(Object.fromEntries(sorted.map(([name, { bad }]) => [name, Object.keys(bad)]))).toEqual(granted)
})

describe.each(Object.entries(calls))('%s', (name, { good, bad, unavailable }) => {
  test('takes the good values', async () => {
    if (unavailable) {
      expect(await refusal(db.sql.unsafe(statement(name, good)))).toMatchObject({ code: unavailable })
      return
    }
    const undo = new Error('rolled back')
    const calling = db.sql.begin(async (tx) => {
      await tx.unsafe(statement(name, good))
      throw undo
    })
    await expect(calling).rejects.toBe(undo)
  })

  const refused = Object.entries(bad).filter(
    (entry): entry is [string, (string | Bad)[]] => entry[1] !== 'any',
  )
  test.each(refused)(
    'rule 6.12: refuses a bad %s, names it and changes nothing',
    async (parameter, values) => {
      const before = await contents(db.sql)
      const surprises = []
      for (const entry of values) {
        const {
          value,
          code = 'PT400',
          names = parameter,
        } = typeof entry === 'string' ? { value: entry } : entry
        const answer = await refusal(db.sql.unsafe(statement(name, { ...good, [parameter]: value })))
        if (answer?.code !== code || !answer.message.includes(names)) {
          surprises.push({ value: value.slice(0, 200), expected: `${code} ${names}`, answer })
        }
      }
      expect(surprises).toEqual([])
      expect(await contents(db.sql)).toEqual(before)
    },
  )
})

describe('rule 6.12: persist_records without p_checkpoint_seq', () => {
  const { good } = calls['public.persist_records'] ?? { good: {} }
  const bad: Record<string, string[]> = { p_items_processed: ['null', '-1'], p_cursor: ['null'] }
  test.each(Object.entries(bad))('refuses a bad %s as it does with one', async (parameter, values) => {
    const before = await contents(db.sql)
    for (const value of values) {
      const args = { ...good, p_checkpoint_seq: 'null', [parameter]: value }
      expect(await refusal(db.sql.unsafe(statement('persist_records', args))), value).toMatchObject({
        code: 'PT400',
        message: expect.stringContaining(parameter),
      })
    }
    expect(await contents(db.sql)).toEqual(before)
  })
})

describe('rule 6.12: what is allowed is allowed to its limit:', () => {
  const limits: Record<string, string> = {
    'a url of 512 characters of 4 bytes': `select claim_file(repeat('😀', 512), 'csv', now(), 'w')`,
    'a pipeline of 100 bytes': `select claim_file('a', 'csv', now(), 'w', p_pipeline => repeat('x', 100))`,
    'a url of 2,048 bytes': `select claim_file(repeat('x', 2048), 'csv', now(), 'w')`,
    'a type of 100 bytes': `select claim_file('a', repeat('x', 100), now(), 'w')`,
    'a worker of 200 bytes': `select claim_file('a', 'csv', now(), repeat('x', 200))`,
    'an etag of 1,024 bytes': `select claim_file('a', 'csv', now(), 'w', p_etag => repeat('x', 1024))`,
    'a cursor of its limit': `select checkpoint_file('held', 1, to_jsonb(repeat('x', 998)), 11)`,
    'results of their limit': `select checkpoint_file('held', 1, '1', 11, to_jsonb(repeat('x', 1998)))`,
    'a cursor that is false': `select checkpoint_file('held', 1, 'false', 11)`,
    'an error of 65,536 bytes': `select fail_file('held', 1, repeat('x', 65536))`,
    'a claim of 100 files': `select claim_next_files('w', 100)`,
    'a list of 1,000 files': `select list_file_checkpoints(p_limit => 1000)`,
    '1,000 urls': `select pending_files((select array_agg('f' || n) from generate_series(1, 1000) n))`,
    'no urls': `select pending_files('{}')`,
    'no files': `select register_files('[]')`,
    'no completions': `select complete_and_claim_next('w', '[]')`,
    'no records': `select persist_records('held', 1, 'target', '[]', '1', 11)`,
    'no settings': `select filemark.configure_pipeline('default', '{}')`,
    '10,000 files': `select register_files((select jsonb_agg(jsonb_build_object(
        'file_url', 'f' || n, 'file_type', 'csv', 'file_timestamp', now())) from generate_series(1, 10000) n))`,
    '100 completions': `select complete_and_claim_next('w', (select jsonb_agg(jsonb_build_object(
        'file_url', 'f' || n, 'claim_token', 1)) from generate_series(1, 100) n))`,
    '10,000 records': `select persist_records('held', 1, 'target', (select jsonb_agg(jsonb_build_object(
        'id', n)) from generate_series(1, 10000) n), '1', 11)`,
    'a file with nulls for what it has not': `select register_files('[{"file_url": "n", "file_type": "csv",
        "file_timestamp": "2026-01-01", "etag": null, "size_bytes": null, "priority": null, "available_at": null,
        "metadata": null}]')`,
    'whole numbers written as 5.0, as some languages do': `select register_files('[{"file_url": "n",
        "file_type": "csv", "file_timestamp": "2026-01-01", "size_bytes": 5.0, "priority": 1.0}]')`,
    'a completion with numbers written as 5.0': `select complete_and_claim_next('w',
        '[{"file_url": "held", "claim_token": 1.0, "records_total": 5.0}]')`,
    'a completion with the largest of numbers': `select complete_and_claim_next('w', '[{"file_url": "held",
        "claim_token": 1, "records_total": 9223372036854775807, "processing_time_ms": 9223372036854775807}]')`,
    'a completion with its token as a text, as drivers give it': `select complete_and_claim_next('w',
        '[{"file_url": "held", "claim_token": "1"}]')`,
    'the largest of positions': `select checkpoint_file('held', 1, '1', 9223372036854775807,
        p_items_total => 9223372036854775807)`,
    'the largest of counts': `select complete_file('held', 1, 9223372036854775807, 9223372036854775807,
        9223372036854775807, 9223372036854775807)`,
    'arrays in a cursor, 400 deep': `select checkpoint_file('held', 1, (repeat('[', 400) || repeat(']', 400))::jsonb,
        11)`,
    'a setting written as 5.0': `select filemark.configure_pipeline('default', '{"max_attempts": 5.0}')`,
  }
  test.each(Object.entries(limits))('%s', async (_, query) => {
    const undo = new Error('rolled back')
    const calling = db.sql.begin(async (tx) => {
      await tx.unsafe(query)
      throw undo
    })
    await expect(calling).rejects.toBe(undo)
  })
})

describe('what the server itself cannot read', () => {
  test.each(Object.entries(unreadable))('%s is refused by it, and nothing is changed', async (_, value) => {
    const types = await parameterTypes(db.sql)
    const before = await contents(db.sql)
    const surprises = []
    let tried = 0
    for (const [name, { good }] of Object.entries(calls)) {
      for (const [parameter, type] of Object.entries(types[name] ?? {})) {
        const bad = value.sql[type]
        if (bad === undefined) continue
        tried += 1
        const answer = await refusal(db.sql.unsafe(statement(name, { ...good, [parameter]: bad })))
        if (!answer || !value.codes.includes(answer.code)) surprises.push({ name, parameter, answer })
      }
    }
    expect(surprises).toEqual([])
    expect(tried).toBeGreaterThan(5)
    expect(await contents(db.sql)).toEqual(before)
  })
})

describe('a JSON null is taken for no value, as it is over HTTP:', () => {
  async function rollBack(work: (tx: TransactionSql) => Promise<unknown>): Promise<void> {
    const undo = new Error('rolled back')
    const working = db.sql.begin(async (tx) => {
      await work(tx)
      throw undo
    })
    await expect(working).rejects.toBe(undo)
  }

  test.each(['checkpoint_file', 'persist_records'])('%s refuses it as a cursor', async (name) => {
    const good = calls[`public.${name}`]?.good ?? {}
    await rollBack(async (tx) => {
      const answer = await refusal(tx.unsafe(statement(name, { ...good, p_cursor: `'null'::jsonb` })))
      expect(answer).toMatchObject({ code: 'PT400', message: expect.stringContaining('p_cursor') })
    })
  })

  test.each(['checkpoint_file', 'persist_records', 'complete_file'])(
    '%s keeps the results there are',
    async (name) => {
      const good = calls[`public.${name}`]?.good ?? {}
      await rollBack(async (tx) => {
        await tx`update filemark.file_checkpoints set accumulated_results = '{"kept": true}'`
        await tx.unsafe(statement(name, { ...good, p_accumulated_results: `'null'::jsonb` }))
        expect(await tx`select accumulated_results from get_file_checkpoint('held')`).toEqual([
          { accumulated_results: { kept: true } },
        ])
      })
    },
  )
})

describe('an odd text comes back as it was given, and is a name of its own:', () => {
  test.each(Object.entries(oddTexts))('%s', async (_, text) => {
    await db.sql`truncate target`
    expect(await sendAround((name, args) => call(db.sql, name, args), text)).toEqual(arrived(text))
    expect(await db.sql`select note from target`).toEqual([{ note: text }])
    const audit = await db.sql`
      select event, file_url, actor, reason from filemark.file_events where pipeline = ${text} order by event_id`
    expect(audit).toEqual([
      { event: 'failed', file_url: text, actor: text, reason: null },
      { event: 'skipped', file_url: text, actor: text, reason: text },
      { event: 'requeued', file_url: text, actor: text, reason: text },
    ])
  })

  test('none is taken for another', async () => {
    const texts = Object.values(oddTexts)
    const files = texts.map((file_url) => ({ file_url, file_type: 'csv', file_timestamp: '2026-01-01' }))
    const registered = await call(db.sql, 'register_files', { files, pipeline: 'odd' })
    expect(registered).toMatchObject([{ registered: `${texts.length}`, unchanged: '0' }])
    const pages: unknown[] = []
    for (let after: unknown = null; pages.length < texts.length; after = pages.at(-1)) {
      const page = await call(db.sql, 'list_file_checkpoints', { pipeline: 'odd', limit: 5, after })
      if (page.length === 0) break
      pages.push(...page.map((row) => row.file_url))
    }
    // By code points, on every server.
    expect(pages).toEqual(texts.toSorted((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))))
  })
})
