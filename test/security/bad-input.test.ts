import { connect } from 'node:net'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  arrange,
  arrived,
  calls,
  oddTexts,
  parameterTypes,
  sendAround,
  unreadable,
} from '../behaviour/bad-arguments.ts'
import { pick } from '../behaviour/calls.ts'
import { contents, empty } from '../behaviour/tables.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { type PostgrestServer, startPostgrest } from '../servers/postgrest.ts'

// The bad arguments of arguments.test.ts once more, over HTTP to the real PostgREST, and what can only be done wrong over
// HTTP. Every answer is a 4xx that says what is wrong, and nothing is written.

let database: TestDatabase
let rest: PostgrestServer
/** Every function over the API: its parameters with their types, how many are required, whether it writes. */
let functions: Record<string, { types: Record<string, string>; required: number; writes: boolean }>

const names = Object.keys(calls)
  .filter((name) => name.startsWith('public.'))
  .map((name) => name.slice('public.'.length))

beforeAll(async () => {
  database = await createDatabase({ supabase: 'new' })
  await arrange(database.sql)
  await database.sql`grant insert on target, counted, deferred to service_role`
  rest = await startPostgrest({ databaseUrl: database.url })
  const types = await parameterTypes(database.sql)
  const rows = await database.sql<{ name: string; required: number; writes: boolean }[]>`
    select proname as name, pronargs - pronargdefaults as required, provolatile = 'v' as writes
      from pg_proc where pronamespace = 'public'::regnamespace and proname = any (${names})`
  functions = Object.fromEntries(
    rows.map(({ name, required, writes }) => [
      name,
      { types: types[`public.${name}`] ?? {}, required, writes },
    ]),
  )
})
afterAll(async () => {
  await rest?.stop()
  await database?.drop()
})

interface Answer {
  status: number
  code: string | undefined
  /** Message, details and hint. */
  says: string
  body: unknown
}

/** Posts as service_role; `body` as it is. */
async function post(
  name: string,
  body: string | Buffer<ArrayBuffer>,
  options: { method?: string; headers?: Record<string, string> } = {},
): Promise<Answer> {
  const { method = 'POST', headers = {} } = options
  const response = await fetch(`${rest.url}/rest/v1/rpc/${name}`, {
    method,
    headers: { apikey: rest.secretKey, 'content-type': 'application/json', ...headers },
    body: method === 'GET' ? null : body,
  })
  return read(response)
}

async function read(response: Response): Promise<Answer> {
  const text = await response.text()
  const body: unknown = text === '' ? undefined : JSON.parse(text)
  const { code, message, details, hint } = (body ?? {}) as Record<string, string | null | undefined>
  return {
    status: response.status,
    code: code ?? undefined,
    says: [message, details, hint].filter((part) => part).join('\n'),
    body,
  }
}

/** The JSON of SQL that is an argument of that type. */
async function jsonOf(value: string, type: string): Promise<string> {
  const [row] = await database.sql.unsafe<{ json: string | null }[]>(
    `select to_jsonb((${value})::${type})::text as json`,
  )
  return row?.json ?? 'null'
}

/** A JSON object of texts that are JSON already. */
function bodyOf(values: Record<string, string>): string {
  const entries = Object.entries(values).map(([key, json]) => `${JSON.stringify(key)}: ${json}`)
  return `{${entries.join(', ')}}`
}

/** The arguments of a call that works, as JSON texts. */
async function goodOf(name: string): Promise<Record<string, string>> {
  const { types } = pick(functions, name)
  const good: Record<string, string> = {}
  for (const [parameter, value] of Object.entries(calls[`public.${name}`]?.good ?? {})) {
    good[parameter] = await jsonOf(value, pick(types, parameter))
  }
  return good
}

/** Checks that what `work` does leaves every row of every table as it was. */
async function changesNothing(work: () => Promise<void>): Promise<void> {
  const before = await contents(database.sql)
  await work()
  expect(await contents(database.sql)).toEqual(before)
}

/** What to say of an answer that was not expected. */
function brief({ status, code, says }: Answer): string {
  return `${status} ${code} ${says.slice(0, 200)}`
}

test('every function of the API is tried', async () => {
  const rows = await database.sql<{ name: string }[]>`
    select proname as name from pg_proc
     where pronamespace = 'public'::regnamespace and has_function_privilege('service_role', oid, 'execute')`
  expect(names.toSorted()).toEqual(rows.map(({ name }) => name).sort())
})

describe.each(names)('%s over HTTP', (name) => {
  const { bad = {} } = calls[`public.${name}`] ?? {}
  const refused = Object.keys(bad).filter((parameter) => bad[parameter] !== 'any')

  test('takes the good values', async () => {
    const { status, says } = await post(name, bodyOf(await goodOf(name)))
    expect([200, 204], says).toContain(status)
    await empty(database.sql)
    await database.sql`drop view counted`
    await database.sql`drop table target, deferred`
    await arrange(database.sql)
    await database.sql`grant insert on target, counted, deferred to service_role`
  })

  test.each(refused)('rule 6.12: refuses a bad %s as over SQL, and changes nothing', async (parameter) => {
    const values = bad[parameter]
    if (values === undefined || values === 'any') throw new Error(`no bad ${parameter}`)
    const good = await goodOf(name)
    const type = pick(pick(functions, name).types, parameter)
    await changesNothing(async () => {
      const surprises = []
      for (const entry of values) {
        const {
          value,
          code = 'PT400',
          names = parameter,
        } = typeof entry === 'string' ? { value: entry } : entry
        const answer = await post(name, bodyOf({ ...good, [parameter]: await jsonOf(value, type) }))
        const status = code.startsWith('PT') ? Number(code.slice(2)) : 400
        if (answer.status !== status || answer.code !== code || !answer.says.includes(names)) {
          surprises.push({ value: value.slice(0, 200), expected: `${code} ${names}`, answer: brief(answer) })
        }
      }
      expect(surprises).toEqual([])
    })
  })

  test('refuses values of another JSON type, says which, and changes nothing', async () => {
    const good = await goodOf(name)
    await changesNothing(async () => {
      const surprises = []
      for (const [parameter, type] of Object.entries(pick(functions, name).types)) {
        for (const [json, says] of wrongJson[type] ?? []) {
          const answer = await post(name, bodyOf({ ...good, [parameter]: json }))
          if (answer.status !== 400 || !answer.says.includes(says.replace('<parameter>', parameter))) {
            surprises.push({ parameter, json, expected: says, answer: brief(answer) })
          }
        }
      }
      expect(surprises).toEqual([])
    })
  })

  test('refuses what the server cannot read, and changes nothing', async () => {
    const good = await goodOf(name)
    await changesNothing(async () => {
      const surprises = []
      for (const [parameter, type] of Object.entries(pick(functions, name).types)) {
        for (const [what, { json, sql }] of Object.entries({ ...unreadable, ...bottomless })) {
          if (!(type in sql)) continue
          const value = type === 'text[]' ? `[${json}]` : json
          const answer = await post(name, bodyOf({ ...good, [parameter]: value }))
          if (answer.status < 400 || answer.status > 499 || answer.says === '') {
            surprises.push({ parameter, what, answer: brief(answer) })
          }
        }
      }
      expect(surprises).toEqual([])
    })
  })

  test('refuses a text of 5 MB for any argument that has a limit, in a short message', async () => {
    const good = await goodOf(name)
    const long = JSON.stringify('x'.repeat(5_000_000))
    await changesNothing(async () => {
      const surprises = []
      for (const parameter of refused) {
        const type = pick(pick(functions, name).types, parameter)
        if (!['text', 'jsonb', 'text[]'].includes(type)) continue
        const value = type === 'text[]' ? `[${long}]` : long
        const answer = await post(name, bodyOf({ ...good, [parameter]: value }))
        if (
          ![400, 413].includes(answer.status) ||
          !answer.says.includes(parameter) ||
          answer.says.length > 1000
        ) {
          surprises.push({ parameter, answer: brief(answer) })
        }
      }
      expect(surprises).toEqual([])
    })
  })

  test('refuses a call without a required argument, or with an unknown one, and changes nothing', async () => {
    const good = await goodOf(name)
    const required = Object.keys(good).slice(0, pick(functions, name).required)
    await changesNothing(async () => {
      const wrong = required.map((parameter) => {
        const { [parameter]: _, ...others } = good
        return others
      })
      wrong.push({ ...good, p_colour: '"red"' })
      for (const body of wrong) {
        const answer = await post(name, bodyOf(body))
        expect(answer, JSON.stringify(body)).toMatchObject({ status: 404, code: 'PGRST202' })
        expect(answer.says).toContain(`public.${name}`)
      }
    })
  })

  test('refuses a body that is no object of arguments, and changes nothing', async () => {
    if (pick(functions, name).required === 0) return
    const good = bodyOf(await goodOf(name))
    const bodies: (string | Buffer<ArrayBuffer>)[] = [
      '',
      ' ',
      'null',
      '5',
      '"text"',
      '[]',
      '{}',
      'hello',
      good.slice(0, -1),
      `${good}}`,
      good.replaceAll('"', "'"),
      `\ufeff${good}`,
      `${good}\0`,
      Buffer.from(good.replace('"p_', '"\xff'), 'latin1'),
    ]
    await changesNothing(async () => {
      for (const body of bodies) {
        const answer = await post(name, body)
        expect([400, 404], `${body} ${brief(answer)}`).toContain(answer.status)
        expect(answer.says).not.toBe('')
      }
    })
  })

  test('refuses a content type that is not JSON, and changes nothing', async () => {
    if (pick(functions, name).required === 0) return
    const good = bodyOf(await goodOf(name))
    await changesNothing(async () => {
      for (const type of [
        'text/plain',
        'text/html',
        'text/xml',
        'application/octet-stream',
        'application/x-www-form-urlencoded',
        'multipart/form-data; boundary=x',
        'text/csv',
        'unknown',
      ]) {
        const answer = await post(name, good, { headers: { 'content-type': type } })
        expect([400, 404, 415], `${type} ${brief(answer)}`).toContain(answer.status)
        expect(answer.says).not.toBe('')
      }
    })
  })

  test('refuses PUT, PATCH and DELETE, and GET when it writes, and changes nothing', async () => {
    const good = await goodOf(name)
    await changesNothing(async () => {
      for (const method of ['PUT', 'PATCH', 'DELETE']) {
        const answer = await post(name, bodyOf(good), { method })
        expect(answer.status, `${method} ${brief(answer)}`).toBe(405)
      }
      if (!pick(functions, name).writes) return
      const query = new URLSearchParams(
        Object.entries(good).map(([parameter, json]): [string, string] => {
          const value: unknown = JSON.parse(json)
          return [parameter, typeof value === 'string' ? value : json]
        }),
      )
      const answer = await post(`${name}?${query}`, '', { method: 'GET' })
      // What writes is refused in a transaction that reads only; a JSON argument arrives as a text, and is none.
      expect([400, 405], brief(answer)).toContain(answer.status)
    })
  })
})

/** What the server's stack is too small for. */
const bottomless = {
  'arrays in arrays, 1,000,000 deep': { json: nested(1_000_000), sql: { jsonb: '' } },
}

function nested(depth: number): string {
  return '['.repeat(depth) + ']'.repeat(depth)
}

/** Per type of a parameter: JSON that is none of it, and what the message says. */
const wholeNumber: [json: string, says: string][] = [
  ['"x"', '"x"'],
  ['""', '""'],
  ['" "', '" "'],
  ['"1 2"', '"1 2"'],
  ['"NaN"', '"NaN"'],
  ['true', '"true"'],
  ['{}', '"{}"'],
  ['{"a": 1}', 'a'],
  ['[1]', '"[1]"'],
  ['1.5', '"1.5"'],
  ['1e400', '"1e400"'],
  ['9223372036854775808', 'out of range'],
  ['"-9223372036854775809"', 'out of range'],
  ['1e-400', '"1e-400"'],
]
const wrongJson: Record<string, [json: string, says: string][]> = {
  bigint: wholeNumber,
  integer: [...wholeNumber, ['2147483648', 'out of range'], ['-2147483649', 'out of range']],
  boolean: [
    ['"maybe"', '"maybe"'],
    ['""', '""'],
    ['2', '"2"'],
    ['{}', '"{}"'],
    ['[true]', '"[true]"'],
  ],
  uuid: [
    ['"no"', '"no"'],
    ['""', '""'],
    ['5', '"5"'],
    ['true', '"true"'],
    ['{}', '"{}"'],
    ['"00000000-0000-4000-8000-00000000000g"', '"00000000-0000-4000-8000-00000000000g"'],
  ],
  'timestamp with time zone': [
    ['"soon"', '"soon"'],
    ['""', '""'],
    ['true', '"true"'],
    ['{}', '"{}"'],
    ['[]', '"[]"'],
    ['1767225600', '"1767225600"'],
    ['"2026-02-30"', '"2026-02-30"'],
    ['"300000-01-01"', '"300000-01-01"'],
    ['"2026-01-01T00:00:00 Mars/Olympus"', 'mars/olympus'],
  ],
  'text[]': [
    ['5', '<parameter>'],
    ['true', '<parameter>'],
    ['{"a": 1}', '<parameter>'],
    ['"a"', '"a"'],
    ['[["a"], ["b", "c"]]', 'matching dimensions'],
    ['[["a"], "b"]', '<parameter>'],
  ],
}

describe('PostgREST and JSON', () => {
  test('a key that comes twice has one value: the last', async () => {
    const extend = (tokens: string) =>
      post(
        'extend_claim',
        `{"p_file_url": "held", "p_claim_token": ${tokens.replace(',', ', "p_claim_token":')}}`,
      )
    await changesNothing(async () => {
      expect(await extend('1, 99')).toMatchObject({ status: 409, code: 'PT409' })
      expect(await extend('1, "x"')).toMatchObject({ status: 400, code: '22P02' })
    })
    expect(await extend('99, 1')).toMatchObject({ status: 200 })
  })

  test('several calls in one body are not taken for several calls', async () => {
    const skip = (file_url: string) => ({ p_file_url: file_url })
    const [one, two] = ['several 1', 'several 2']
    const files = [one, two].map((file_url) => ({ file_url, file_type: 'csv', file_timestamp: '2026-01-01' }))
    await post('register_files', JSON.stringify({ p_files: files }))
    const { status } = await post('skip_file', JSON.stringify([skip(one), skip(two)]))
    expect(status).toBeLessThan(500)
    expect(await database.sql`select status from get_file_checkpoint(${two})`).toEqual([
      { status: 'pending' },
    ])
  })

  test('an object or a number for a text arrives as its text, not changed', async () => {
    for (const [json, text] of [
      ['{"a": [1, null]}', '{"a": [1, null]}'],
      ['5.0', '5.0'],
      ['true', 'true'],
    ]) {
      const answer = await post('get_file_checkpoint', `{"p_file_url": ${json}}`)
      expect(answer).toMatchObject({ status: 200, body: [] })
      const pending = await post('pending_files', `{"p_file_urls": [${json}]}`)
      expect(pending).toMatchObject({ status: 200, body: [{ file_url: text }] })
    }
  })

  test('a call to a function that is not there says so', async () => {
    const answer = await post('claim_files', '{"p_worker_id": "w1"}')
    expect(answer).toMatchObject({ status: 404, code: 'PGRST202' })
    expect(answer.says).toContain('claim_files')
  })

  test('arguments that are each fine are refused over HTTP as over SQL when the claim is not there', async () => {
    const answer = await post('extend_claim', '{"p_file_url": "held", "p_claim_token": 9223372036854775807}')
    expect(answer).toMatchObject({ status: 409, code: 'PT409' })
  })
})

describe('an odd text comes back over HTTP as it was given:', () => {
  async function rpc(name: string, args: Record<string, unknown>): Promise<Record<string, unknown>[]> {
    const named = Object.fromEntries(Object.entries(args).map(([key, value]) => [`p_${key}`, value]))
    const answer = await post(name, JSON.stringify(named))
    if (answer.status >= 300) throw new Error(brief(answer))
    return (answer.body ?? []) as Record<string, unknown>[]
  }

  test.each(Object.entries(oddTexts))('%s', async (_, text) => {
    await database.sql`truncate target`
    expect(await sendAround(rpc, text)).toEqual(arrived(text))
    expect(await database.sql`select note from target`).toEqual([{ note: text }])
  })
})

describe('deeply nested JSON', () => {
  test('is refused where it is not what is asked for', async () => {
    await changesNothing(async () => {
      for (const name of ['register_files', 'complete_and_claim_next', 'persist_records']) {
        const good = await goodOf(name)
        const parameter = pick(
          {
            register_files: 'p_files',
            complete_and_claim_next: 'p_completions',
            persist_records: 'p_records',
          },
          name,
        )
        const answer = await post(name, bodyOf({ ...good, [parameter]: nested(10_000) }))
        expect(answer, name).toMatchObject({
          status: 400,
          code: 'PT400',
          says: expect.stringContaining(parameter),
        })
      }
    })
  })

  test('as a cursor comes back as it was given, or is refused as too large', async () => {
    await database.sql`select from filemark.configure_pipeline('default', '{"cursor_limit_bytes": 1000000}')`
    for (const depth of [100, 1000, 10_000, 100_000]) {
      const cursor = nested(depth)
      const held = `"p_file_url": "held", "p_claim_token": 1, "p_items_processed": ${depth}`
      const saved = await post('checkpoint_file', `{${held}, "p_cursor": ${cursor}}`)
      const [file] = await database.sql<{ items: number; same: boolean }[]>`
        select items_processed::int as items, cursor::text = ${cursor} as same from get_file_checkpoint('held')`
      if (saved.status === 200) expect(file, `depth ${depth}`).toEqual({ items: depth, same: true })
      else expect([depth, saved.status, file?.items === depth]).toEqual([depth, 413, false])
      const read = await post('get_file_checkpoint', '{"p_file_url": "held"}')
      expect(read.status).toBe(200)
    }
  })
})

// PostgREST puts the message of a PTxyz error into the status line of its answer.
describe('a text of the caller in a message cannot break out of the status line', () => {
  const hostile = 'a\r\nX-Injected: yes\r\n\r\n<html>\u0001\u007f'
  const named = { p_file_url: hostile, p_claim_token: 2 }
  const held = { p_file_url: hostile, p_claim_token: 1 }
  const load = { p_records: [], p_cursor: 1, p_items_processed: 9 }
  const attempts: Record<string, [code: string, name: string, args: Record<string, unknown>]> = {
    'a status': ['PT400', 'list_file_checkpoints', { p_status: hostile }],
    'a status of control characters': [
      'PT400',
      'list_file_checkpoints',
      { p_status: '\u001b[2J\u007f\u0001' },
    ],
    'a place to requeue from': ['PT400', 'requeue_file', { p_file_url: hostile, p_from: hostile }],
    'a key of a file': ['PT400', 'register_files', { p_files: [{ [hostile]: 1 }] }],
    'a type of a file': [
      'PT400',
      'register_files',
      { p_files: [{ file_url: hostile, file_type: hostile.repeat(9), file_timestamp: '2026-01-01' }] },
    ],
    'a key of a completion': [
      'PT400',
      'complete_and_claim_next',
      { p_worker_id: 'w', p_completions: [{ [hostile]: 1 }] },
    ],
    'a completion without a token': [
      'PT400',
      'complete_and_claim_next',
      { p_worker_id: 'w', p_completions: [{ file_url: hostile, claim_token: null }] },
    ],
    'a worker': ['PT400', 'claim_next_files', { p_worker_id: hostile.repeat(100) }],
    'a target': ['PT400', 'persist_records', { ...held, ...load, p_target: hostile }],
    'a column of a record': [
      'PT400',
      'persist_records',
      { ...held, ...load, p_target: 'target', p_records: [{ [hostile]: 1 }] },
    ],
    'a pipeline': ['PT404', 'extend_claim', { ...held, p_pipeline: hostile }],
    'a file to requeue': ['PT404', 'requeue_file', { p_file_url: `${hostile}?` }],
    'a lost claim': ['PT409', 'extend_claim', named],
    'a lost claim to complete': ['PT409', 'complete_file', named],
    'a gap': [
      'PT412',
      'checkpoint_file',
      { ...held, p_cursor: 1, p_items_processed: 9, p_checkpoint_seq: 9 },
    ],
    'a number used before': [
      'PT412',
      'checkpoint_file',
      { ...held, p_cursor: 7, p_items_processed: 5, p_checkpoint_seq: 1 },
    ],
    'a step back': ['PT412', 'checkpoint_file', { ...held, p_cursor: 1, p_items_processed: 1 }],
    'results that are too large': [
      'PT413',
      'complete_and_claim_next',
      {
        p_worker_id: 'w',
        p_completions: [{ file_url: hostile, claim_token: 1, accumulated_results: 'x'.repeat(3000) }],
      },
    ],
    'a holder, in a requeue': ['PT422', 'requeue_file', { p_file_url: hostile }],
    'a holder, in a skip': ['PT422', 'skip_file', { p_file_url: hostile }],
  }

  beforeAll(async () => {
    const claim = {
      p_file_url: hostile,
      p_file_type: 'csv',
      p_file_timestamp: '2026-01-01',
      p_worker_id: hostile,
    }
    expect(await post('claim_file', JSON.stringify(claim))).toMatchObject({ status: 200 })
    const saved = { ...held, p_cursor: 1, p_items_processed: 5 }
    expect(await post('checkpoint_file', JSON.stringify(saved))).toMatchObject({ status: 200 })
  })

  /** Everything PostgREST answers, byte for byte. */
  async function exchange(name: string, args: Record<string, unknown>): Promise<string> {
    const body = JSON.stringify(args)
    const { hostname, port } = new URL(rest.directUrl)
    const socket = connect(Number(port), hostname)
    socket.write(
      [
        `POST /rpc/${name} HTTP/1.1`,
        'Host: localhost',
        'Connection: close',
        `Authorization: Bearer ${rest.token('service_role')}`,
        'Content-Type: application/json',
        `Content-Length: ${Buffer.byteLength(body)}`,
        '',
        body,
      ].join('\r\n'),
    )
    const chunks: Buffer[] = []
    for await (const chunk of socket) chunks.push(chunk as Buffer)
    return Buffer.concat(chunks).toString('latin1')
  }

  test.each(Object.entries(attempts))('%s', async (_, [code, name, args]) => {
    await changesNothing(async () => {
      const [head = '', body = ''] = (await exchange(name, args)).split('\r\n\r\n', 2)
      const [statusLine, ...headers] = head.split('\r\n')
      // As RFC 9112 has a reason phrase: tab, blank, visible and beyond ASCII.
      expect(statusLine).toMatch(new RegExp(`^HTTP/1.1 ${code.slice(2)} [\\t\\x20-\\x7e\\x80-\\xff]+$`))
      expect(headers.filter((header) => /injected/i.test(header))).toEqual([])
      expect(body).toContain(`"code":"${code}"`)
    })
  })

  test.each(Object.entries(oddTexts))('the client reads the refusal of a file named %s', async (_, text) => {
    const answer = await post('extend_claim', JSON.stringify({ p_file_url: text, p_claim_token: 1 }))
    expect([answer.status, answer.code], answer.says).toEqual([404, 'PT404'])
  })
})
