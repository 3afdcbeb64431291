import { execFile, execFileSync } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { call, checkpoint, claim, configure } from '../behaviour/calls.ts'
import { empty } from '../behaviour/tables.ts'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { age, completeSome, situations } from '../monitoring/situations.ts'
import { type PostgresServer, startPostgres } from '../servers/postgres.ts'
import { type PostgrestServer, startPostgrest } from '../servers/postgrest.ts'
import { type PrometheusServer, startPrometheus } from '../servers/prometheus.ts'
import { until } from '../wait.ts'

const directory = fileURLToPath(new URL('../../monitoring/', import.meta.url))
const promtool = (args: string[]) => promisify(execFile)('promtool', args, { cwd: directory })

describe('promtool', () => {
  test('finds the rules, and the tests of the rules, in order', async () => {
    expect((await promtool(['check', 'rules', 'prometheus-rules.yml'])).stdout).toMatch(/SUCCESS: 12 rules/)
    expect((await promtool(['test', 'rules', 'prometheus-rules.test.yml'])).stdout).toContain('SUCCESS')
  })

  test('finds a rule wanting that does not do what its test says', async () => {
    const copies = await mkdtemp(join(tmpdir(), 'filemark-rules-'))
    for (const name of ['prometheus-rules.yml', 'prometheus-rules.test.yml']) {
      const text = await readFile(join(directory, name), 'utf8')
      await writeFile(
        join(copies, name),
        text.replace('checkpoint_age_seconds > 600', 'checkpoint_age_seconds > 700'),
      )
    }
    const failed = promisify(execFile)('promtool', [
      'test',
      'rules',
      join(copies, 'prometheus-rules.test.yml'),
    ])
    await expect(failed).rejects.toMatchObject({ stderr: expect.stringContaining('StaleCheckpoint') })
    await rm(copies, { recursive: true })
  })

  test('takes the configuration, also that for a hosted project, but for the header that it is too old for', async () => {
    const configuration = await readFile(join(directory, 'prometheus.yml'), 'utf8')
    expect((await promtool(['check', 'config', '--syntax-only', 'prometheus.yml'])).stdout).toContain(
      'SUCCESS',
    )
    const [own = ''] = /^ {2}- job_name[\s\S]*?(?=\n\n)/m.exec(configuration) ?? []
    const hosted = configuration.replace(own, '').replaceAll(/^ {2}# (?=- | {2})/gm, '  ')
    expect(hosted).toContain('\n  - job_name: filemark\n')
    const copies = await mkdtemp(join(tmpdir(), 'filemark-config-'))
    const check = async (text: string) => {
      await writeFile(join(copies, 'prometheus.yml'), text)
      return promisify(execFile)('promtool', [
        'check',
        'config',
        '--syntax-only',
        join(copies, 'prometheus.yml'),
      ])
    }
    const header = /^ {4}http_headers:\n.*\n.*\n/m
    expect((await check(hosted.replace(header, ''))).stdout).toContain('SUCCESS')
    await expect(check(hosted)).rejects.toMatchObject({ stderr: expect.stringContaining('http_headers') })
    await rm(copies, { recursive: true })
  })
})

interface Panel {
  title: string
  targets?: { expr: string }[]
}

interface Sample {
  metric: Record<string, string>
  value: [number, string]
}

describe('Prometheus, scraping the API', () => {
  let server: PostgresServer
  let db: TestDatabase
  let other: TestConnection
  let rest: PostgrestServer
  let prometheus: PrometheusServer

  beforeAll(async () => {
    server = await startPostgres()
    db = await createDatabase({ on: server.url(), supabase: 'new' })
    other = await db.connect()
    await db.sql`grant filemark_monitor to authenticator`
    rest = await startPostgrest({ databaseUrl: db.url })
    // The example as it stands, but for its address, and faster.
    const example = await readFile(join(directory, 'prometheus.yml'), 'utf8')
    const configuration = example
      .replace('<localhost:3000>', new URL(rest.directUrl).host)
      .replace('scrape_interval: 30s', 'scrape_interval: 1s')
      .concat('\nglobal:\n  evaluation_interval: 1s\n')
    prometheus = await startPrometheus(configuration, [
      { path: 'prometheus-rules.yml', copyOf: join(directory, 'prometheus-rules.yml') },
      { path: 'filemark.jwt', text: rest.token('filemark_monitor') },
    ])
  })
  afterAll(async () => {
    await prometheus?.[Symbol.asyncDispose]()
    await rest?.stop()
    await db?.drop()
    await server?.[Symbol.asyncDispose]()
  })

  async function query(expression: string): Promise<Sample[]> {
    const { result } = (await prometheus.get('/api/v1/query', { query: expression })) as { result: Sample[] }
    return result
  }

  async function rules(): Promise<{ name: string; query: string; health: string; state: string }[]> {
    const { groups } = (await prometheus.get('/api/v1/rules')) as {
      groups: { rules: { name: string; query: string; health: string; state: string }[] }[]
    }
    return groups.flatMap((group) => group.rules)
  }

  test('has the metrics a few seconds later, and promtool finds nothing in them', async () => {
    await configure(db.sql, {})
    await completeSome(db.sql, 'done', 2)
    await until(
      async () => (await query('filemark_completions_total')).some(({ value }) => value[1] === '2'),
      {
        timeoutMs: 30_000,
      },
    )
    expect(await query('up{job="filemark"}')).toMatchObject([{ value: [expect.any(Number), '1'] }])
    const answer = await fetch(`${rest.directUrl}/rpc/filemark_metrics`, {
      headers: { accept: 'text/plain', authorization: `Bearer ${rest.token('filemark_monitor')}` },
    })
    const text = await answer.text()
    expect(execFileSync('promtool', ['check', 'metrics'], { input: text, encoding: 'utf8' })).toBe('')
    const wrong = text.replaceAll('filemark_completions_total', 'filemark_completions')
    expect(() => execFileSync('promtool', ['check', 'metrics'], { input: wrong, stdio: 'pipe' })).toThrow(
      /counter metrics should have "_total" suffix/,
    )
  })

  test('answers every query of the dashboard, with data', async () => {
    const dashboard = JSON.parse(await readFile(join(directory, 'grafana-dashboard.json'), 'utf8')) as {
      panels: Panel[]
      templating: { list: { name: string; query: unknown }[] }
    }
    await call(db.sql, 'filemark.run_maintenance')
    await until(async () => (await query('filemark_last_maintenance_timestamp_seconds')).length > 0, {
      timeoutMs: 30_000,
    })
    const targets = dashboard.panels.flatMap(({ title, targets }) =>
      (targets ?? []).map(({ expr }) => ({ title, expr })),
    )
    expect(targets.length).toBeGreaterThan(30)
    // What is shown only while something is wrong.
    const mayBeEmpty = ['Alerts by name']
    for (const { title, expr } of targets) {
      const expression = expr.replaceAll('$pipeline', '.*').replaceAll('$__rate_interval', '1m')
      expect(expression).not.toContain('$')
      const result = await query(expression)
      if (!mayBeEmpty.includes(title))
        expect([title, expression, result.length > 0]).toEqual([title, expression, true])
    }
    // Its variable.
    const [, pipeline] = dashboard.templating.list
    expect(pipeline?.query).toMatchObject({ query: 'label_values(filemark_files, pipeline)' })
    expect(await prometheus.get('/api/v1/label/pipeline/values', { 'match[]': 'filemark_files' })).toEqual([
      'default',
    ])
    // Every metric is on it.
    const families = await db.sql<{ metric: string }[]>`select metric from filemark.metric_families()`
    const shown = targets.map(({ expr }) => expr).join(' ')
    expect(families.map(({ metric }) => metric).filter((metric) => !shown.includes(metric))).toEqual([])
  })

  test('evaluates every rule without an error, over metrics that are there', async () => {
    const isEvaluated = async () => {
      const all = await rules()
      return all.length > 0 && all.every(({ health }) => health !== 'unknown')
    }
    await until(isEvaluated, { timeoutMs: 30_000 })
    const loaded = await rules()
    expect(loaded.map(({ name, health }) => `${name} ${health}`)).toEqual(
      loaded.map(({ name }) => `${name} ok`),
    )
    for (const { query: expression } of loaded.filter(({ query }) => !query.startsWith('absent('))) {
      const [measured = ''] = expression.split(' > ')
      expect([measured, (await query(measured)).length > 0]).toEqual([measured, true])
    }
  })

  const names: Record<string, string> = { large_history: 'CheckpointHistoryGrowth' }
  const ruleOf = (alert: string) =>
    names[alert] ?? alert.replaceAll(/(?:^|_)([a-z])/g, (_, letter: string) => letter.toUpperCase())

  test('has a rule for every alert, and one for its own blindness', async () => {
    expect((await rules()).map(({ name }) => name).sort()).toEqual(
      [...Object.keys(situations).map(ruleOf), 'FilemarkMetricsMissing'].sort(),
    )
  })

  // Those whose thresholds are in the rules.
  const worse: Record<string, () => Promise<unknown>> = {
    stale_checkpoint: async () => {
      await claim(db.sql, 'a')
      await age(db.sql, 'a', 700)
    },
    large_history: async () => {
      await claim(db.sql, 'a')
      for (let items = 1; items <= 101; items++) await checkpoint(db.sql, 'a', '1', items)
    },
  }

  test.each(Object.keys(situations))('sees %s come and go', async (alert) => {
    await empty(db.sql)
    await configure(db.sql, {})
    const state = async () => (await rules()).find(({ name }) => name === ruleOf(alert))?.state
    await until(async () => (await state()) === 'inactive', {
      timeoutMs: 30_000,
      what: `${alert} to be inactive`,
    })
    await (worse[alert]?.() ?? situations[alert]?.arise(db.sql, other))
    await until(async () => (await state()) === 'pending', {
      timeoutMs: 30_000,
      what: `${alert} to be pending`,
    })
    if (worse[alert]) await empty(db.sql)
    else await situations[alert]?.resolve(db.sql, other)
    await until(async () => (await state()) === 'inactive', {
      timeoutMs: 30_000,
      what: `${alert} to be over`,
    })
  })
})
