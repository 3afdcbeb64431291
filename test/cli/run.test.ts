import { existsSync } from 'node:fs'
import { appendFile, mkdtemp, readFile, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { openEmbedded } from '../../sdk/embedded.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { until as untilSoon } from '../wait.ts'
import { endFilemarks, runFilemark, startFilemark } from './filemark-process.ts'

// Starting an embedded database takes seconds on a busy machine.
const until = <T>(condition: () => T | Promise<T>, what?: string) =>
  untilSoon(condition, { timeoutMs: 45_000, ...(what !== undefined && { what }) })

let directory: string
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'filemark-run-'))
})
afterEach(async () => {
  await endFilemarks()
  await rm(directory, { recursive: true, force: true })
})

async function put(name: string, content: string): Promise<string> {
  const path = join(directory, name)
  await writeFile(path, content)
  return path
}

function urlOf(name: string): string {
  return pathToFileURL(join(directory, name)).href
}

function csv(rows: number): string {
  return `id,text\n${Array.from({ length: rows }, (_, id) => `${id},row ${id}\n`).join('')}`
}

const SETUP = 'create table if not exists public.rows (file_url text, number int, text text); select 1'

/** A handler module whose `handle` first does `body`, then makes a row of each record. */
function handlerModule(body = ''): string {
  return `
    import { appendFileSync, existsSync, writeFileSync } from 'node:fs'
    import { setTimeout as delay } from 'node:timers/promises'
    const until = async (condition) => { while (!condition()) await delay(10) }
    export const target = 'public.rows'
    export const setup = ${JSON.stringify(SETUP)}
    export async function handle(records, context) {
      ${body}
      return records.map((record, index) => ({
        file_url: context.fileUrl, number: context.firstRecord + index, text: record.text,
      }))
    }`
}

interface LoadedFile {
  file_url: string
  status: string
  generation: number
  processed_by: string
  records_total: number
  records_persisted: number
  error_message: string | null
  rows: number
  numbers: number
}

const LOADED = `
  select f.file_url, f.status, f.generation::int, f.processed_by, f.records_total::int, f.records_persisted::int,
         f.error_message, count(r.number)::int as rows, count(distinct r.number)::int as numbers
    from filemark.file_checkpoints f
    left join public.rows r using (file_url)
   group by f.pipeline, f.file_url
   order by f.file_url`

// Starting one takes seconds, and many of them on a busy machine.
describe('on an embedded database', { timeout: 120_000 }, () => {
  async function loaded(): Promise<LoadedFile[]> {
    const db = await openEmbedded({ dataDir: join(directory, '.filemark') })
    try {
      return (await db.query<LoadedFile>(LOADED)).rows
    } finally {
      await db.close()
    }
  }

  it('loads files of every kind, skips what is no list with the reason, and exits with 0', async () => {
    await put('handler.mjs', handlerModule())
    await put('a.csv', csv(2500))
    await put('b.json', JSON.stringify([{ text: 'x' }, { text: 'y' }]))
    await put('c.ndjson', '{"text":"x"}\n')
    await put('empty.csv', '')
    await put('object.json', '{"a": 1}')
    await put('notes.md', 'hello')
    const first = await runFilemark(directory, ['run', '*.{csv,json,ndjson,md}', '--handler', 'handler.mjs'])
    expect(first.stderr).toBe('')
    expect(first.code).toBe(0)
    expect(first.stdout).toContain('skipped    object.json: a JSON object, not an array of records')
    expect(first.stdout).toContain('completed  a.csv: 2,500 records, 2,500 persisted')
    expect(first.stdout).toContain('6 files: 4 completed, 2 skipped')
    expect(await loaded()).toMatchObject([
      {
        file_url: urlOf('a.csv'),
        status: 'completed',
        records_total: 2500,
        records_persisted: 2500,
        rows: 2500,
      },
      { file_url: urlOf('b.json'), status: 'completed', records_total: 2, rows: 2 },
      { file_url: urlOf('c.ndjson'), status: 'completed', records_total: 1, rows: 1 },
      { file_url: urlOf('empty.csv'), status: 'completed', records_total: 0, rows: 0 },
    ])

    const second = await runFilemark(directory, ['run', '*.csv', '--handler', 'handler.mjs'])
    expect(second.code).toBe(0)
    expect(second.stdout).toContain('2 files: 2 already completed')
    expect((await loaded()).map(({ rows }) => rows)).toEqual([2500, 2, 1, 0])
  })

  it('Ctrl-C finishes the batch, gives the file back and exits with 130; the next run continues there', async () => {
    await put('big.csv', csv(2000))
    await put(
      'handler.mjs',
      handlerModule(`
        if (context.firstRecord === 300) {
          writeFileSync('waiting', '')
          await until(() => existsSync('go'))
        }`),
    )
    const args = ['run', 'big.csv', '--handler', 'handler.mjs', '--batch-size', '100']
    const first = startFilemark(directory, args)
    await until(() => existsSync(join(directory, 'waiting')), 'the fourth batch')
    first.kill('SIGINT')
    await until(() => first.stderr().includes('SIGINT'))
    await put('go', '')
    expect(await first.ended).toBe(130)
    expect(first.stdout()).toContain('released   big.csv at record 400')
    expect(await loaded()).toMatchObject([{ status: 'pending', rows: 400, numbers: 400 }])

    const second = await runFilemark(directory, args)
    expect(second.code).toBe(0)
    expect(second.stdout).toContain('resumed    big.csv at record 400')
    expect(second.stdout).toContain('completed  big.csv: 2,000 records, 2,000 persisted')
    expect(await loaded()).toMatchObject([
      { status: 'completed', records_total: 2000, records_persisted: 2000, rows: 2000, numbers: 2000 },
    ])
  })

  it('after a kill, the next run continues the file from its cursor at once', async () => {
    await put('big.csv', csv(1000))
    await put(
      'handler.mjs',
      handlerModule(`
        if (context.firstRecord === 300 && !existsSync('go')) {
          writeFileSync('waiting', '')
          await until(() => existsSync('go'))
        }`),
    )
    const args = ['run', 'big.csv', '--handler', 'handler.mjs', '--batch-size', '100']
    const first = startFilemark(directory, args)
    await until(() => existsSync(join(directory, 'waiting')), 'the fourth batch')
    first.kill('SIGKILL')
    expect(await first.ended).toBe('SIGKILL')
    await put('go', '')
    const second = await runFilemark(directory, args)
    expect(second.code).toBe(0)
    expect(second.stdout).toContain('resumed    big.csv at record 300')
    expect(await loaded()).toMatchObject([
      { status: 'completed', records_persisted: 1000, rows: 1000, numbers: 1000 },
    ])
  })

  it('keeps another process off the directory it works on', async () => {
    await put('a.csv', csv(10))
    await put(
      'handler.mjs',
      handlerModule(`writeFileSync('waiting', ''); await until(() => existsSync('go'))`),
    )
    const args = ['run', 'a.csv', '--handler', 'handler.mjs']
    const first = startFilemark(directory, args)
    await until(() => existsSync(join(directory, 'waiting')), 'the first batch')
    const second = await runFilemark(directory, args)
    expect(second.code).toBe(1)
    expect(second.stderr).toMatch(/^filemark: .*\.filemark/)
    await put('go', '')
    expect(await first.ended).toBe(0)
  })
})

describe('on a Postgres server', () => {
  let database: TestDatabase
  beforeEach(async () => {
    database = await createDatabase()
  })
  afterEach(() => database.drop())

  async function loaded(): Promise<LoadedFile[]> {
    return [...(await database.sql.unsafe<LoadedFile[]>(LOADED))]
  }

  function workerArgs(workerId: string, pattern: string, ...more: string[]): string[] {
    const to = ['--handler', 'handler.mjs', '--database', database.url]
    return ['run', pattern, ...to, ...more, '--worker-id', workerId]
  }

  it('a second Ctrl-C exits at once', async () => {
    await put('big.csv', csv(2000))
    await put('handler.mjs', handlerModule(`writeFileSync('waiting', ''); await new Promise(() => {})`))
    const filemark = startFilemark(directory, workerArgs('worker-1', 'big.csv'))
    await until(() => existsSync(join(directory, 'waiting')), 'the first batch')
    filemark.kill('SIGINT')
    await until(() => filemark.stderr().includes('SIGINT'))
    filemark.kill('SIGINT')
    expect(await filemark.ended).toBe(130)
  })

  it('SIGTERM is obeyed like Ctrl-C, with 143', async () => {
    await put('big.csv', csv(2000))
    await put(
      'handler.mjs',
      handlerModule(`writeFileSync('waiting', ''); await until(() => existsSync('go'))`),
    )
    const filemark = startFilemark(directory, workerArgs('worker-1', 'big.csv', '--batch-size', '10'))
    await until(() => existsSync(join(directory, 'waiting')), 'the first batch')
    filemark.kill('SIGTERM')
    await until(() => filemark.stderr().includes('SIGTERM'))
    await put('go', '')
    expect(await filemark.ended).toBe(143)
    expect(filemark.stdout()).toContain('released   big.csv at record 10')
  })

  it('a file whose handler throws fails, damaged content is a dead letter, the others complete: exit code 1', async () => {
    await put('good.csv', csv(10))
    await put('poison.csv', csv(20))
    await put('damaged.csv', 'id,text\n1,a\n2\n')
    await put(
      'handler.mjs',
      handlerModule(`if (context.fileUrl.endsWith('poison.csv')) throw new Error('no poison')`),
    )
    const args = workerArgs('worker-1', '*.csv')
    const first = await runFilemark(directory, args)
    expect(first.code).toBe(1)
    expect(first.stdout).toMatch(/failed {5}poison\.csv at record 0: no poison \(attempt 1, retry at 20.*Z\)/)
    expect(first.stdout).toMatch(/failed {5}damaged\.csv at record 0: record 1: .* on line 3 .*dead letter/)
    expect(first.stdout).toContain('completed  good.csv: 10 records')
    expect(await loaded()).toMatchObject([
      { file_url: urlOf('damaged.csv'), status: 'dead_letter' },
      { file_url: urlOf('good.csv'), status: 'completed', rows: 10 },
      { file_url: urlOf('poison.csv'), status: 'failed', error_message: 'no poison' },
    ])

    const second = await runFilemark(directory, args)
    expect(second.code).toBe(1)
    expect(second.stdout).toMatch(/poison\.csv: waits until 20.*Z \(no poison\)/)
    expect(second.stdout).toContain('3 files: 1 already completed, 1 failed, 1 dead letter')
  })

  it('a handler may return fewer rows than records, or none, or more', async () => {
    await put('none.csv', csv(10))
    await put('twice.csv', csv(10))
    await put(
      'handler.mjs',
      `export const target = 'rows'\nexport const setup = ${JSON.stringify(SETUP)}
      export const handle = (records, { fileUrl }) => fileUrl.endsWith('none.csv')
        ? [] : records.flatMap(({ id, text }) => [1, 2].map((n) => ({ file_url: fileUrl, number: id * n, text })))`,
    )
    const { code } = await runFilemark(directory, workerArgs('worker-1', '*.csv', '--batch-size', '3'))
    expect(code).toBe(0)
    expect(await loaded()).toMatchObject([
      { file_url: urlOf('none.csv'), records_total: 10, records_persisted: 0, rows: 0 },
      { file_url: urlOf('twice.csv'), records_total: 10, records_persisted: 20, rows: 20 },
    ])
  })

  it('a file that was changed since is loaded again', async () => {
    await put('handler.mjs', handlerModule())
    const path = await put('a.csv', csv(3))
    const args = workerArgs('worker-1', 'a.csv')
    expect((await runFilemark(directory, args)).code).toBe(0)
    await appendFile(path, '3,row 3\n')
    const second = await runFilemark(directory, args)
    expect(second.stdout).toContain('completed  a.csv: 4 records')
    await utimes(path, new Date(), new Date())
    const third = await runFilemark(directory, args)
    expect(third.stdout).toContain('completed  a.csv: 4 records')
    expect(await loaded()).toMatchObject([{ generation: 3, records_total: 4, rows: 11 }])
  })

  it('a file that is changed while it is read is read once more', async () => {
    await put('a.csv', csv(1000))
    await put(
      'handler.mjs',
      handlerModule(`
        if (context.claim.generation === 1 && context.firstRecord === 0) {
          appendFileSync('a.csv', '1000,row 1000\\n')
        }`),
    )
    const { code, stdout } = await runFilemark(
      directory,
      workerArgs('worker-1', 'a.csv', '--batch-size', '100'),
    )
    expect(code).toBe(0)
    expect(stdout).toContain('changed    a.csv')
    expect(stdout).toContain('completed  a.csv: 1,001 records')
    expect(await loaded()).toMatchObject([
      { status: 'completed', generation: 2, records_total: 1001, numbers: 1001 },
    ])
  })

  it('share the files, each of which is loaded once', async () => {
    for (let n = 0; n < 20; n++) await put(`${n}.csv`, csv(500 + n))
    // Neither goes on before both have a file.
    await put(
      'handler.mjs',
      handlerModule(`
        appendFileSync(process.argv.at(-1), '')
        await until(() => existsSync('worker-1') && existsSync('worker-2'))`),
    )
    const ends = await Promise.all(
      ['worker-1', 'worker-2'].map((id) => runFilemark(directory, workerArgs(id, '*.csv'))),
    )
    expect(ends.map(({ code, stderr }) => [code, stderr])).toEqual([
      [0, ''],
      [0, ''],
    ])
    const files = await loaded()
    expect(new Set(files.map((file) => file.processed_by))).toEqual(new Set(['worker-1', 'worker-2']))
    for (const file of files) {
      expect(file).toMatchObject({
        status: 'completed',
        rows: file.records_total,
        numbers: file.records_total,
      })
    }
    expect(files).toHaveLength(20)
    // Each knows of every file, whoever loaded it.
    for (const { stdout } of ends) expect(stdout).toMatch(/20 files: /)
  })

  it('one that is killed is waited for, and its file continued from its cursor', async () => {
    await put('big.csv', csv(1000))
    await put(
      'handler.mjs',
      handlerModule(`
        if (process.argv.at(-1) === 'worker-1' && context.firstRecord === 300) {
          writeFileSync('waiting', '')
          await new Promise(() => setInterval(() => {}, 1000))
        }`),
    )
    const options = ['--batch-size', '100', '--lease-seconds', '1']
    const first = startFilemark(directory, workerArgs('worker-1', 'big.csv', ...options))
    await until(() => existsSync(join(directory, 'waiting')), 'the fourth batch')
    const second = startFilemark(directory, workerArgs('worker-2', 'big.csv', ...options))
    await until(() => second.stdout().includes('waiting'), 'worker-2 to wait for worker-1')
    expect(second.stdout()).toContain('worker-1')
    first.kill('SIGKILL')
    expect(await first.ended).toBe('SIGKILL')
    expect(await second.ended).toBe(0)
    expect(second.stdout()).toContain('resumed    big.csv at record 300')
    expect(await loaded()).toMatchObject([
      { status: 'completed', processed_by: 'worker-2', records_persisted: 1000, rows: 1000, numbers: 1000 },
    ])
  })

  it('one that is killed for the last time leaves a dead letter, which the others report', async () => {
    await put('poison.csv', csv(10))
    await put('good.csv', csv(5))
    await put(
      'handler.mjs',
      handlerModule(`
        if (context.fileUrl.endsWith('poison.csv')) {
          writeFileSync('waiting', '')
          await new Promise(() => setInterval(() => {}, 1000))
        }`),
    )
    await database.sql`
      select from filemark.configure_pipeline('default', '{"lease_seconds": 1, "max_attempts": 1}')`
    const first = startFilemark(directory, workerArgs('worker-1', 'poison.csv'))
    await until(() => existsSync(join(directory, 'waiting')), 'the first batch')
    const second = startFilemark(directory, workerArgs('worker-2', '*.csv'))
    await until(() => second.stdout().includes('waiting'), 'worker-2 to wait for worker-1')
    first.kill('SIGKILL')
    expect(await second.ended).toBe(1)
    expect(second.stdout()).toContain('2 files: 1 completed, 1 dead letter')
    expect(await loaded()).toMatchObject([
      { status: 'completed', rows: 5 },
      { status: 'dead_letter', rows: 0 },
    ])
  })

  it('a handler that returns no rows, or something else, is told so', async () => {
    await put('a.csv', csv(1))
    await put(
      'handler.mjs',
      `export const target = 'public.rows'\nexport const setup = ${JSON.stringify(SETUP)}
      export function handle() { return [1] }`,
    )
    const { code, stdout } = await runFilemark(directory, workerArgs('worker-1', 'a.csv'))
    expect(code).toBe(1)
    expect(stdout).toContain("the handler's handle() returned 1 as row 0, not an object")
  })

  it('a paused pipeline is left alone, which is no success', async () => {
    await put('a.csv', csv(10))
    await put('handler.mjs', handlerModule())
    await database.sql`select filemark.configure_pipeline('default', '{"paused": true}')`
    const { code, stdout } = await runFilemark(directory, workerArgs('worker-1', '*.csv'))
    expect(code).toBe(1)
    expect(stdout).toContain('a.csv: the pipeline is paused')
  })

  it('a full pipeline is waited for', async () => {
    for (let n = 0; n < 6; n++) await put(`${n}.csv`, csv(10))
    await put('handler.mjs', handlerModule())
    await database.sql`select filemark.configure_pipeline('default', '{"max_concurrency": 1}')`
    const { code, stdout } = await runFilemark(directory, workerArgs('worker-1', '*.csv'))
    expect(code).toBe(0)
    expect(stdout).toContain('6 files: 6 completed')
  })

  it('shows its worker id as application_name', async () => {
    await put('a.csv', csv(10))
    await put(
      'handler.mjs',
      handlerModule(`writeFileSync('waiting', ''); await until(() => existsSync('go'))`),
    )
    const filemark = startFilemark(directory, workerArgs('worker-1', '*.csv'))
    await until(() => existsSync(join(directory, 'waiting')), 'the first batch')
    const sessions = await database.sql`select from pg_stat_activity where application_name = 'worker-1'`
    expect(sessions.length).toBeGreaterThan(0)
    await put('go', '')
    expect(await filemark.ended).toBe(0)
  })
})

describe('what it cannot follow is said, with exit code 2', () => {
  beforeEach(async () => {
    await put('a.csv', csv(1))
    await put('handler.mjs', handlerModule())
  })

  it.each([
    ['no handler', ['run', 'a.csv'], /--handler/],
    ['no file of that name', ['run', 'b.csv', '--handler', 'handler.mjs'], /there is no file b\.csv/],
    ['no match', ['run', '*.tsv', '--handler', 'handler.mjs'], /no file matches \*\.tsv/],
    [
      'no handler module',
      ['run', 'a.csv', '--handler', 'other.mjs'],
      /there is no handler module other\.mjs/,
    ],
    [
      'a number out of range',
      ['run', 'a.csv', '--handler', 'handler.mjs', '--concurrency', '0'],
      /from 1 to 100/,
    ],
    ['an unknown option', ['run', 'a.csv', '--handler', 'handler.mjs', '--fast'], /--fast/],
    [
      'two databases',
      ['run', 'a.csv', '--handler', 'handler.mjs', '--data-dir', 'x', '--database', 'y'],
      /cannot be used/,
    ],
    ['no command', [], /Usage/],
    ['an unknown command', ['walk'], /walk/],
  ])('%s', async (_, args, message) => {
    const { code, stderr } = await runFilemark(directory, args)
    expect(stderr).toMatch(message)
    expect(code).toBe(2)
  })

  it.each([
    ['export function handle() {}', /empty\.mjs needs a table to load into: export const target/],
    [`export const target = 'public.rows'`, /empty\.mjs needs a function: export function handle/],
    [`export const target = 'x', setup = 1; export function handle() {}`, /SQL as text in its export setup/],
    ['export const target = ;', /empty\.mjs cannot be loaded: /],
  ])('a handler module of %j', async (text, message) => {
    await put('empty.mjs', text)
    const { code, stderr } = await runFilemark(directory, ['run', 'a.csv', '--handler', 'empty.mjs'])
    expect(stderr).toMatch(message)
    expect(code).toBe(2)
  })

  it('a database without filemark', async () => {
    await using database = await createDatabase({ filemark: false })
    const { code, stderr } = await runFilemark(directory, [
      ...['run', 'a.csv', '--handler', 'handler.mjs', '--database', database.url],
    ])
    expect(code).toBe(2)
    expect(stderr).toMatch(/not installed.*npx filemark init.*supabase db push.*dbmate/)
  })
})

it('a target that is not there is said before any file fails on it', async () => {
  await put('a.csv', csv(1))
  await put('handler.mjs', `export const target = 'events'\nexport const handle = (records) => records`)
  await using database = await createDatabase()
  const args = ['run', 'a.csv', '--handler', 'handler.mjs', '--database', database.url]
  const { code, stderr } = await runFilemark(directory, args)
  expect(stderr).toMatch(/there is no table events/)
  expect(code).toBe(2)
  expect(await database.sql`select from filemark.file_checkpoints`).toHaveLength(0)
})

it('a database that does not answer is an error, never another database', async () => {
  await put('a.csv', csv(1))
  await put('handler.mjs', handlerModule())
  const { code, stderr } = await runFilemark(directory, [
    ...['run', 'a.csv', '--handler', 'handler.mjs', '--database', 'postgres://nobody@127.0.0.1:1/none'],
  ])
  expect(code).toBe(1)
  expect(stderr).toMatch(/ECONNREFUSED/)
  expect(existsSync(join(directory, '.filemark'))).toBe(false)
})

it('filemark init copies the migration, and says what to run next', async () => {
  const first = await runFilemark(directory, ['init'])
  expect(first.code).toBe(0)
  const name = /supabase\/migrations\/([0-9]{14}_[0-9]{14}_filemark\.sql)/.exec(first.stdout)?.[1] ?? ''
  expect(await readFile(join(directory, 'supabase/migrations', name), 'utf8')).toContain('-- migrate:up')
  expect(first.stdout).toContain('supabase db push')
  expect(first.stdout).toContain('dbmate --migrations-dir supabase/migrations up')
  const second = await runFilemark(directory, ['init'])
  expect(second.code).toBe(0)
  expect(second.stdout).toContain('Nothing to do.')
})

it('filemark --version is the version of the package', async () => {
  const manifest = JSON.parse(await readFile(new URL('../../package.json', import.meta.url), 'utf8'))
  expect((await runFilemark(directory, ['--version'])).stdout.trim()).toBe(manifest.version)
})
