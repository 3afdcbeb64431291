import pg from 'pg'
import postgres from 'postgres'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  CheckpointConflictError,
  type CheckpointManager,
  type CheckpointManagerOptions,
  type DatabaseClient,
  type FileClaim,
  UnavailableError,
} from '../../sdk/index.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { type Fault, type PostgrestServer, startPostgrest } from '../servers/postgrest.ts'
import { until } from '../wait.ts'
import { file, newManager } from './clients.ts'
import { startCuttingProxy } from './cutting-proxy.ts'

/** A client whose connection can be made to fail. */
interface Frail extends AsyncDisposable {
  client: DatabaseClient
  database: TestDatabase
  /** The next calls fail: `request` before they reach the database, `answer` after they took effect. */
  lose(what: 'request' | 'answer', times?: number): void
  /** How many failures are still to come. */
  left(): number
}

async function openSupabase(fault: (what: 'request' | 'answer') => Fault): Promise<Frail> {
  const database = await createDatabase({ supabase: 'new' })
  await database.sql`create table events (id int)`
  await database.sql`grant insert on events to service_role`
  const api = await startPostgrest({ databaseUrl: database.url })
  let faults: Fault[] = []
  api.intercept = () => faults.shift()
  return {
    client: api.client('service_role'),
    database,
    lose(what, times = 1) {
      faults = Array.from({ length: times }, () => fault(what))
    },
    left: () => faults.length,
    async [Symbol.asyncDispose]() {
      await api.stop()
      await database.drop()
    },
  }
}

async function openDirect(
  connect: (url: string) => { client: DatabaseClient; end(): Promise<void> },
): Promise<Frail> {
  const database = await createDatabase()
  await database.sql`create table events (id int)`
  const proxy = await startCuttingProxy(database.url)
  const { client, end } = connect(proxy.url)
  return {
    client,
    database,
    lose: (what, times) => proxy.cut(what, times),
    left: () => proxy.left,
    async [Symbol.asyncDispose]() {
      await end()
      await proxy[Symbol.asyncDispose]()
      await database.drop()
    },
  }
}

const openPostgresJs = () =>
  openDirect((url) => {
    const sql = postgres(url, { max: 3, backoff: () => 0 })
    return { client: sql, end: () => sql.end({ timeout: 1 }) }
  })

const openNodePostgres = () =>
  openDirect((url) => {
    const pool = new pg.Pool({ connectionString: url, max: 3 })
    pool.on('error', () => {})
    return { client: pool, end: () => pool.end() }
  })

const ways: [string, () => Promise<Frail>][] = [
  [
    'supabase-js and a broken connection',
    () => openSupabase((what) => (what === 'request' ? 'drop-request' : 'drop-answer')),
  ],
  [
    'supabase-js and a gateway that answers 503',
    () => openSupabase((what) => ({ status: 503, when: what === 'request' ? 'before' : 'after' })),
  ],
  ['postgres.js', openPostgresJs],
  ['node-postgres', openNodePostgres],
]

describe.each(ways)('over %s', (_, open) => {
  let frail: Frail
  beforeAll(async () => {
    frail = await open()
  })
  afterAll(async () => {
    await frail[Symbol.asyncDispose]()
  })
  beforeEach(() => frail.lose('request', 0))

  /** Runs each call with a lost request and with a lost answer before it goes through. */
  async function lossy<T>(call: () => Promise<T>, kind: 'request' | 'answer'): Promise<T> {
    frail.lose(kind, 2)
    const result = await call()
    expect(frail.left()).toBe(0)
    return result
  }
  const manager = (options?: CheckpointManagerOptions) => newManager(frail.client, options)
  const events = async (file: FileClaim): Promise<unknown[]> => [
    ...(await frail.database.sql`select event from filemark.file_events where pipeline = ${file.pipeline}`),
  ]

  test.each(['request', 'answer'] as const)(
    'a lost %s changes no answer, and nothing is done twice',
    async (kind) => {
      const checkpoints = manager()
      const files = ['a', 'b', 'c'].map(file)
      const registered = await lossy(() => checkpoints.registerFiles(files), kind)
      expect(registered.registered + registered.unchanged).toBe(3)

      const a = (await lossy(() => checkpoints.claimFile(file('a')), kind)) as FileClaim
      expect(a).toMatchObject({ claimToken: 1, attempts: 1 })
      const batch = await lossy(() => checkpoints.claimNextFiles({ limit: 1 }), kind)
      expect(batch).toMatchObject([{ fileUrl: 'b', claimToken: 1 }])
      expect(await checkpoints.stats()).toMatchObject({ processing: 2, pending: 1 })

      expect(await lossy(() => a.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }), kind)).toMatchObject({
        checkpointSeq: 1,
        historyLength: 1,
      })
      await frail.database.sql`truncate events`
      const position = { cursor: 2, itemsProcessed: 2 }
      expect(
        await lossy(() => a.persistRecords('events', [{ id: 1 }, { id: 2 }], position), kind),
      ).toMatchObject({
        recordsPersisted: 2,
        checkpointSeq: 2,
      })
      expect(await frail.database.sql`select id from events`).toHaveLength(2)
      await lossy(() => a.extend(), kind)
      const { outcome } = await lossy(() => a.complete({ totalRows: 2 }), kind)
      expect(outcome).toBe(kind === 'answer' ? 'already_completed' : 'completed')
      expect(a.ended).toBe('completed')

      const [b] = batch as [FileClaim]
      expect(await lossy(() => b.fail('x'), kind)).toMatchObject({ status: 'failed', attempts: 1 })
      const c = (await checkpoints.claimFile(file('c'))) as FileClaim
      await lossy(() => c.release(), kind)
      expect(await events(a)).toEqual([{ event: 'failed' }, { event: 'released' }])
      expect(await lossy(() => checkpoints.listFiles(), kind)).toMatchObject([
        { fileUrl: 'a', status: 'completed', checkpointSeq: 2, recordsTotal: 2 },
        { fileUrl: 'b', status: 'failed', attempts: 1 },
        { fileUrl: 'c', status: 'pending', attempts: 0 },
      ])
    },
  )

  test('after the last try the call is unavailable, with the reason', async () => {
    const checkpoints = manager({ retries: 2 })
    frail.lose('request', 3)
    const error = await checkpoints.registerFiles([file('a')]).catch((thrown: unknown) => thrown)
    expect(error).toBeInstanceOf(UnavailableError)
    expect(error).toMatchObject({
      code: 'UNAVAILABLE',
      message: expect.stringContaining('register_files got no answer in 3 tries'),
      cause: expect.any(Error),
    })
    expect(frail.left()).toBe(0)
    expect(await checkpoints.getFile('a')).toBeNull()
  })

  test('without retries there is one try', async () => {
    frail.lose('request', 1)
    await expect(manager({ retries: 0 }).stats()).rejects.toThrow(UnavailableError)
    expect(frail.left()).toBe(0)
  })

  test('the caller can end the retries', async () => {
    const controller = new AbortController()
    frail.lose('request', 100)
    const call = manager({ retries: 99 }).stats({ signal: controller.signal })
    await until(() => frail.left() < 100)
    controller.abort(new Error('enough'))
    await expect(call).rejects.toThrow('enough')
    expect(frail.left()).toBeGreaterThan(90)
  })

  test('a save that took effect without an answer is known when it is made again', async () => {
    const checkpoints = manager({ retries: 0 })
    const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
    const save = () => claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
    frail.lose('answer')
    await expect(save()).rejects.toThrow(UnavailableError)
    expect(claim.hasCheckpoint).toBe(false)
    await save()
    await claim.saveCheckpoint({ cursor: 2, itemsProcessed: 2 })
    expect(claim).toMatchObject({ cursor: 2, checkpointSeq: 2 })
  })

  test('another save after one without an answer does not pass for it', async () => {
    const checkpoints = manager({ retries: 0 })
    const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
    await frail.database.sql`truncate events`
    const position = { cursor: 1, itemsProcessed: 1 }
    frail.lose('answer')
    await expect(claim.persistRecords('events', [{ id: 1 }], position)).rejects.toThrow(UnavailableError)
    // The first one is in: this one would be taken for its repeat, and its record would be lost.
    const other = claim.persistRecords('events', [{ id: 2 }], position)
    await expect(other).rejects.toThrow(CheckpointConflictError)
    expect(claim).toMatchObject({ cursor: 1, itemsProcessed: 1, checkpointSeq: 1 })

    frail.lose('request')
    await expect(claim.saveCheckpoint({ cursor: 7, itemsProcessed: 7 })).rejects.toThrow(UnavailableError)
    // Nothing is in: any other one may follow.
    await claim.persistRecords('events', [{ id: 2 }], { cursor: 2, itemsProcessed: 2 })
    expect(claim).toMatchObject({ cursor: 2, checkpointSeq: 2 })
    expect(await frail.database.sql`select id from events order by id`).toEqual([{ id: 1 }, { id: 2 }])
  })
})

describe('of supabase-js', () => {
  let database: TestDatabase
  let api: PostgrestServer
  beforeAll(async () => {
    database = await createDatabase({ supabase: 'new' })
    api = await startPostgrest({ databaseUrl: database.url })
  })
  afterAll(async () => {
    await api.stop()
    await database.drop()
  })

  test('a call that takes too long is tried again, and what it did counts once', async () => {
    const checkpoints = newManager(api.client('service_role'), { timeoutMs: 500, retries: 20 })
    const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
    const blocker = await database.connect()
    let save: Promise<unknown> = Promise.resolve()
    let requests = 0
    await blocker.sql.begin(async (tx) => {
      await tx`select from filemark.file_checkpoints where pipeline = ${claim.pipeline} for update`
      await new Promise<void>((done) => {
        api.intercept = () => {
          requests += 1
          if (requests === 3) done()
          return undefined
        }
        save = claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
      })
    })
    await save
    api.intercept = undefined
    expect(await checkpoints.getFile('a')).toMatchObject({ checkpointSeq: 1, historyLength: 1 })
  })

  test('an answer of the database is not asked for again', async () => {
    const checkpoints = newManager(api.client('service_role'))
    let requests = 0
    api.intercept = () => {
      requests += 1
      return undefined
    }
    await expect(checkpoints.requeueFile('unknown')).rejects.toThrow('unknown')
    expect(requests).toBe(1)
    api.intercept = undefined
  })

  test('a role that may not call the functions is told so at once', async () => {
    await expect(newManager(api.client('anon')).stats()).rejects.toMatchObject({
      name: 'FilemarkError',
      code: '42501',
    })
  })

  test.each([408, 429, 502, 504, 520])('a gateway that answers %i is asked again', async (status) => {
    const checkpoints = newManager(api.client('service_role'))
    let requests = 0
    api.intercept = () => {
      requests += 1
      return requests === 1 ? { status, when: 'after' } : undefined
    }
    expect(await checkpoints.claimFile(file('a'))).toMatchObject({ claimToken: 1, attempts: 1 })
    expect(requests).toBe(2)
    api.intercept = undefined
  })

  test('what PostgREST says when the connection of the database breaks under a call is no answer', async () => {
    const checkpoints = newManager(api.client('service_role'))
    // PostgREST 12 was seen to say this, now and then, when the server crashed.
    const json = { code: '', details: null, hint: null, message: '' }
    let requests = 0
    api.intercept = () => {
      requests += 1
      return requests === 1 ? { status: 400, when: 'after', json } : undefined
    }
    expect(await checkpoints.claimFile(file('a'))).toMatchObject({ claimToken: 1, attempts: 1 })
    expect(requests).toBe(2)
    api.intercept = undefined
  })

  test('a gateway that refuses for good is not asked again', async () => {
    const checkpoints = newManager(api.client('service_role'))
    let requests = 0
    api.intercept = () => {
      requests += 1
      return { status: 403 }
    }
    await expect(checkpoints.stats()).rejects.toMatchObject({ name: 'FilemarkError', code: 'HTTP403' })
    expect(requests).toBe(1)
    api.intercept = undefined
  })

  test('a function that is not there says so', async () => {
    const bare = await createDatabase({ supabase: 'new', filemark: false })
    const bareApi = await startPostgrest({ databaseUrl: bare.url })
    await expect(newManager(bareApi.client('service_role')).stats()).rejects.toMatchObject({
      code: 'PGRST202',
    })
    await bareApi.stop()
    await bare.drop()
  })
})

test('a server that is not there is unavailable, over each driver', async () => {
  const url = 'postgres://postgres@127.0.0.1:1/none'
  const sql = postgres(url, { connect_timeout: 1 })
  const pool = new pg.Pool({ connectionString: url })
  const managers: CheckpointManager[] = [sql, pool].map((client) => newManager(client, { retries: 1 }))
  for (const checkpoints of managers) {
    await expect(checkpoints.stats()).rejects.toThrow(UnavailableError)
  }
  await sql.end()
  await pool.end()
})

test('a server that is shutting down is waited for', async () => {
  const database = await createDatabase()
  const sql = postgres(database.url, { max: 1, backoff: () => 0 })
  const checkpoints = newManager(sql)
  const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  const [backend] = await sql`select pg_backend_pid() as pid`
  const blocker = await database.connect()
  let save: Promise<unknown> = Promise.resolve()
  await blocker.sql.begin(async (tx) => {
    await tx`select from filemark.file_checkpoints where pipeline = ${claim.pipeline} for update`
    save = claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
    // Ends it with 57P01 while it waits.
    await database.sql`select pg_terminate_backend(${backend?.pid}) from pg_sleep(0.2)`
  })
  await save
  expect(await checkpoints.getFile('a')).toMatchObject({ checkpointSeq: 1 })
  await sql.end()
  await database.drop()
})
