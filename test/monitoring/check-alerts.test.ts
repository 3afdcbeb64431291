import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { call, checkpoint, claim, configure, fail, only, refusal, started } from '../behaviour/calls.ts'
import { empty } from '../behaviour/tables.ts'
import { createDatabase, type TestConnection, type TestDatabase } from '../database.ts'
import { pgNetSql, vaultSql } from '../servers/supabase-extensions.ts'
import { until, untilLocked } from '../wait.ts'
import { age, situations } from './situations.ts'

let db: TestDatabase
let one: TestConnection
let two: TestConnection
/** What came over the channel filemark_alerts. */
const heard: Notification[] = []

interface Notification {
  event: string
  alert_id: number
  alert: string
  pipeline: string
  file_url?: string | null
  message?: string
  hint?: string
}

interface Change {
  event: string
  alert_id: string
  alert: string
  file_url: string | null
  message: string
}

interface LogRow {
  alert_id: string
  alert: string
  pipeline: string
  file_url: string | null
  value: number
  opened_at: Date
  last_seen: Date
  resolved_at: Date | null
}

beforeAll(async () => {
  db = await createDatabase()
  one = await db.connect()
  two = await db.connect()
  await db.sql.listen('filemark_alerts', (payload) => {
    heard.push(JSON.parse(payload) as Notification)
  })
})
beforeEach(async () => {
  await empty(db.sql)
  await db.sql.unsafe('drop schema if exists net cascade; drop schema if exists vault cascade')
  heard.length = 0
})
afterEach(async () => {
  await one.sql.unsafe('rollback')
  await two.sql.unsafe('rollback')
})
afterAll(() => db.drop())

/** Checks, with alerts resolved as soon as they are gone if not said otherwise. */
async function check(resolve_after_seconds = 0): Promise<Change[]> {
  return call<Change & object>(db.sql, 'filemark.check_alerts', { resolve_after_seconds })
}

async function log(): Promise<LogRow[]> {
  return [...(await db.sql<LogRow[]>`select * from filemark.alert_log order by alert_id`)]
}

/** All that was notified up to now. */
async function notified(): Promise<Notification[]> {
  const mark = crypto.randomUUID()
  await db.sql.notify('filemark_alerts', JSON.stringify({ alert: mark }))
  await until(() => heard.some(({ alert }) => alert === mark), { what: 'the last notification' })
  return heard.filter(({ alert }) => !/^[0-9a-f]{8}-/.test(alert))
}

async function arise(name: string): Promise<void> {
  await situations[name]?.arise(db.sql, one)
}

async function resolve(name: string): Promise<void> {
  await situations[name]?.resolve(db.sql, one)
}

describe('check_alerts', () => {
  test.each(Object.keys(situations))(
    'notes and tells once that %s opened, and that it was resolved',
    async (name) => {
      await arise(name)
      const opened = only(await check())
      const { message, hint, value } = only(await db.sql`select * from filemark.alerts`)
      expect(opened).toMatchObject({ event: 'opened', alert: name, message, hint })
      expect(only(await log())).toMatchObject({
        alert: name,
        file_url: situations[name]?.file ?? null,
        resolved_at: null,
      })
      expect(typeof value).toBe('number')
      expect(await check()).toEqual([])
      await resolve(name)
      expect(only(await check())).toMatchObject({ event: 'resolved', alert_id: opened.alert_id })
      expect(await check()).toEqual([])
      const { opened_at, last_seen, resolved_at } = only(await log())
      expect(opened_at.getTime()).toBeLessThan(last_seen.getTime())
      expect(resolved_at?.getTime()).toBeGreaterThan(last_seen.getTime())
      expect(await notified()).toMatchObject([
        { event: 'opened', alert: name, alert_id: Number(opened.alert_id), hint },
        { event: 'resolved', alert: name, alert_id: Number(opened.alert_id) },
      ])
    },
  )

  test('keeps the value and the message of an open alert up to date', async () => {
    await configure(db.sql, { stale_after_seconds: 5 })
    await claim(db.sql, 'a')
    await age(db.sql, 'a', 10)
    await check()
    await age(db.sql, 'a', 100)
    expect(await check()).toEqual([])
    const alert = only(await log())
    expect(alert.value).toBeGreaterThan(110)
  })

  test('an alert that flaps is one alert: it is resolved when it was gone for five minutes', async () => {
    await arise('stale_checkpoint')
    await check(300)
    for (let items = 2; items <= 4; items++) {
      await checkpoint(db.sql, 'stale.csv', '1', items)
      expect(await db.sql`select from filemark.alerts`).toHaveLength(0)
      expect(await check(300)).toEqual([])
      await age(db.sql, 'stale.csv', 7)
      expect(await check(300)).toEqual([])
    }
    expect(await log()).toHaveLength(1)
    await checkpoint(db.sql, 'stale.csv', '1', 5)
    await db.sql`update filemark.alert_log set last_seen = last_seen - interval '301 seconds'`
    expect(await call(db.sql, 'filemark.check_alerts')).toMatchObject([{ event: 'resolved' }])
    expect(await notified()).toMatchObject([{ event: 'opened' }, { event: 'resolved' }])
  })

  test('an alert that comes back after it was resolved is another one', async () => {
    await arise('stale_checkpoint')
    await check()
    await resolve('stale_checkpoint')
    await check()
    await age(db.sql, 'stale.csv', 7)
    expect(await check()).toMatchObject([{ event: 'opened' }])
    expect(await log()).toHaveLength(2)
  })

  test('two at once open, and resolve, an alert once', async () => {
    await arise('dead_letters')
    for (const event of ['opened', 'resolved']) {
      await one.sql`begin`
      const first = await call(one.sql, 'filemark.check_alerts', { resolve_after_seconds: 0 })
      expect(first).toMatchObject([{ event }])
      const second = started(call(two.sql, 'filemark.check_alerts', { resolve_after_seconds: 0 }))
      await untilLocked(db.sql, two.pid)
      await one.sql`commit`
      expect(await second).toEqual([])
      await resolve('dead_letters')
    }
    expect(await log()).toHaveLength(1)
    expect(await notified()).toMatchObject([{ event: 'opened' }, { event: 'resolved' }])
  })

  test('what is not committed was not told', async () => {
    await arise('dead_letters')
    await one.sql`begin`
    expect(await call(one.sql, 'filemark.check_alerts')).toHaveLength(1)
    await one.sql`rollback`
    expect(await log()).toEqual([])
    expect(await notified()).toEqual([])
    expect(await check()).toHaveLength(1)
  })

  test('leaves out of a notification what does not fit into one', async () => {
    await configure(db.sql, { stale_after_seconds: 5 })
    const urls = ['a', 'ä', '\u0001'].map((letter) => letter.repeat(2048 / Buffer.byteLength(letter)))
    for (const url of urls) {
      await claim(db.sql, url)
      await age(db.sql, url, 7)
    }
    const changes = await check()
    const heard = await notified()
    const [ascii, umlaut, control] = urls.map((url) => {
      const change = changes.find(({ file_url }) => file_url === url)
      return heard.find(({ alert_id }) => alert_id === Number(change?.alert_id))
    })
    expect(ascii).toMatchObject({ file_url: urls[0], message: expect.stringContaining('nothing was saved') })
    expect(ascii).not.toHaveProperty('hint')
    expect(umlaut).toMatchObject({ file_url: urls[1] })
    expect(control).toMatchObject({ alert: 'stale_checkpoint', event: 'opened' })
    expect(control).not.toHaveProperty('file_url')
  })

  test('forgets what was resolved more than 90 days ago, and nothing else', async () => {
    await arise('stale_checkpoint')
    await arise('dead_letters')
    await check()
    await resolve('stale_checkpoint')
    await check()
    await db.sql`
      update filemark.alert_log
         set opened_at = opened_at - interval '91 days', resolved_at = resolved_at - interval '91 days'`
    await check()
    expect(await log()).toMatchObject([{ alert: 'dead_letters', resolved_at: null }])
  })

  test('is for operators: a monitor and a worker are refused', async () => {
    for (const role of ['filemark_monitor', 'filemark_worker']) {
      const session = await db.connect()
      await session.sql.unsafe(`set role ${role}`)
      expect(await refusal(call(session.sql, 'filemark.check_alerts'))).toMatchObject({ code: '42501' })
    }
    await one.sql`begin; set local role filemark_operator`.simple()
    expect(await call(one.sql, 'filemark.check_alerts')).toEqual([])
  })
})

interface HttpRequest {
  method: string
  url: string
  headers: Record<string, string>
  body: { text: string; database: string; alerts: Notification[] }
}

/** What pg_net was asked to send. */
async function requests(): Promise<HttpRequest[]> {
  return [
    ...(await db.sql<HttpRequest[]>`
      select method, url, headers, convert_from(body, 'UTF8')::jsonb as body from net.http_request_queue order by id`),
  ]
}

async function setWebhook(args: Record<string, unknown>): Promise<void> {
  await call(db.sql, 'filemark.set_alert_webhook', args)
}

describe('a webhook', () => {
  test('gets one post with all that opened, and one with all that was resolved', async () => {
    await db.sql.unsafe(pgNetSql)
    await setWebhook({ url: 'https://chat.example/hook?key=1', headers: { Authorization: 'Bearer abc' } })
    await arise('stale_checkpoint')
    await arise('dead_letters')
    await check()
    await check()
    await resolve('dead_letters')
    await check()
    const sent = await requests()
    expect(sent).toHaveLength(2)
    expect(sent[0]).toMatchObject({
      method: 'POST',
      url: 'https://chat.example/hook?key=1',
      headers: { 'Content-Type': 'application/json', Authorization: 'Bearer abc' },
      body: {
        database: db.name,
        text: expect.stringMatching(/^opened: .*bad\.csv.*\nopened: .*stale\.csv/),
        alerts: [
          { event: 'opened', alert: 'dead_letters', pipeline: 'default', severity: 'warning', threshold: 0 },
          { event: 'opened', alert: 'stale_checkpoint', file_url: 'stale.csv', hint: expect.any(String) },
        ],
      },
    })
    expect(sent[1]?.body.alerts).toMatchObject([{ event: 'resolved', alert: 'dead_letters' }])
  })

  test('of a pipeline gets what is about that, and the other one the rest', async () => {
    await db.sql.unsafe(pgNetSql)
    await configure(db.sql, {}, 'own')
    await setWebhook({ url: 'https://all.example' })
    await setWebhook({ url: 'https://own.example', pipeline: 'own' })
    for (const pipeline of ['default', 'own']) {
      await claim(db.sql, 'a', { pipeline })
      await fail(db.sql, 'a', '1', { pipeline, retryable: false })
    }
    await check()
    const sent = await requests()
    expect(sent.map(({ url, body }) => [url, body.alerts.map(({ pipeline }) => pipeline)]).sort()).toEqual([
      ['https://all.example', ['default']],
      ['https://own.example', ['own']],
    ])
    await setWebhook({ url: null })
    await setWebhook({ url: null, pipeline: 'own' })
    await configure(db.sql, { stale_after_seconds: 5 })
    await claim(db.sql, 'b')
    await age(db.sql, 'b', 7)
    expect(await check()).toHaveLength(1)
    expect(await requests()).toHaveLength(2)
  })

  test('is sent secrets from Vault, which stand nowhere else', async () => {
    await db.sql.unsafe(pgNetSql + vaultSql)
    await db.sql`select vault.create_secret('Bearer xyz', 'alert_token')`
    await setWebhook({
      url: 'https://a.example',
      headers: { Authorization: { vault: 'alert_token' }, 'X-Team': 'data' },
    })
    await arise('dead_letters')
    await check()
    expect(only(await requests()).headers).toEqual({
      'Content-Type': 'application/json',
      Authorization: 'Bearer xyz',
      'X-Team': 'data',
    })
    expect(JSON.stringify(await db.sql`select * from filemark.alert_webhooks`)).not.toContain('xyz')
  })

  test.each([
    ['pg_net is not installed', ''],
    ['pg_net fails', `${pgNetSql} alter table net.http_request_queue add check (url like 'http:%')`],
    ['Vault is not installed', pgNetSql],
    ['Vault has no such secret', pgNetSql + vaultSql],
  ])('never keeps alerts from being noted and told: %s', async (what, sql) => {
    await db.sql.unsafe(sql)
    await setWebhook({
      url: 'https://a.example',
      headers: what.startsWith('Vault') ? { Authorization: { vault: 'none' } } : {},
    })
    await arise('dead_letters')
    expect(await check()).toHaveLength(1)
    expect(await log()).toHaveLength(1)
    expect(await notified()).toHaveLength(1)
    if (sql) expect(await requests()).toEqual([])
  })

  test('is set by operators only, and nobody else sees its address and headers', async () => {
    await setWebhook({ url: 'https://a.example/secret', headers: { Authorization: 'Bearer abc' } })
    await setWebhook({ url: 'https://a.example/secret', headers: { Authorization: 'Bearer abc' } })
    for (const role of ['filemark_monitor', 'filemark_worker']) {
      const session = await db.connect()
      await session.sql.unsafe(`set role ${role}`)
      expect(await refusal(session.sql`select * from filemark.alert_webhooks`)).toMatchObject({
        code: '42501',
      })
      expect(
        await refusal(call(session.sql, 'filemark.set_alert_webhook', { url: 'https://b.example' })),
      ).toMatchObject({ code: '42501' })
    }
    await one.sql`begin; set local role filemark_operator`.simple()
    expect(await one.sql`select url from filemark.alert_webhooks`).toEqual([
      { url: 'https://a.example/secret' },
    ])
    // The audit, which monitors read, says that it was set, once.
    expect(await db.sql`select event, detail from filemark.file_events`).toEqual([
      { event: 'settings_changed', detail: { alert_webhook: 'set' } },
    ])
  })

  test.each([
    ['url', { url: '' }],
    ['url', { url: 'ftp://a.example' }],
    ['url', { url: 'https://' }],
    ['url', { url: `https://a.example/${'x'.repeat(2048)}` }],
    ['headers', { headers: null }],
    ['headers', { headers: ['Authorization: a'] }],
    ['headers.Authorization', { headers: { Authorization: 1 } }],
    ['headers.Authorization', { headers: { Authorization: { vault: 1 } } }],
    ['headers.Authorization', { headers: { Authorization: { vault: 'a', secret: 'hidden' } } }],
    ['pipeline', { pipeline: '' }],
    ['actor', { actor: 'x'.repeat(201) }],
  ])('with a bad %s is refused, and its secrets are not repeated: %o', async (name, args) => {
    const refused = await refusal(setWebhook({ url: 'https://a.example', ...args }))
    expect(refused).toMatchObject({ code: 'PT400', message: expect.stringContaining(`p_${name} `) })
    expect(refused?.message).not.toContain('hidden')
    expect(await db.sql`select * from filemark.alert_webhooks`).toEqual([])
  })

  test('of an unknown pipeline is refused', async () => {
    expect(await refusal(setWebhook({ url: 'https://a.example', pipeline: 'none' }))).toMatchObject({
      code: 'PT404',
    })
  })
})
