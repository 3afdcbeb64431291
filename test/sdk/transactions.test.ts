import pg from 'pg'
import postgres from 'postgres'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import {
  CheckpointConflictError,
  type CheckpointManager,
  ClaimLostError,
  type FileClaim,
  InvalidArgumentError,
  type WriteOptions,
} from '../../sdk/index.ts'
import { createDatabase } from '../database.ts'
import { untilLocked } from '../wait.ts'
import { clients, file, newManager, openSupabase, type TestClient, type TestTransaction } from './clients.ts'

const { 'supabase-js': _, ...direct } = clients
const rollback = new Error('rolled back')

describe.each(Object.entries(direct))('a transaction of %s', (_, open) => {
  let db: TestClient
  let checkpoints: CheckpointManager
  let claim: FileClaim
  const begin = <T>(work: (tx: TestTransaction) => Promise<T>): Promise<T> => {
    if (!db.transaction) throw new Error('no transactions')
    return db.transaction(work)
  }
  /** Does the work in a transaction that is rolled back then. */
  const beginInVain = async (work: (tx: TestTransaction) => Promise<unknown>): Promise<void> => {
    const transaction = begin(async (tx) => {
      await work(tx)
      throw rollback
    })
    await expect(transaction).rejects.toBe(rollback)
  }
  /** The cursors in the history, as the database has them. */
  const saved = async (): Promise<unknown[]> => {
    const rows = await db.query(
      `select cursor::text as cursor from filemark.checkpoint_history
        where pipeline = '${checkpoints.pipeline}' order by checkpoint_seq`,
    )
    return rows.map((row) => JSON.parse(String(row.cursor)))
  }

  beforeAll(async () => {
    db = await open()
    await db.query('create table public.events (id int primary key)')
  })
  afterAll(async () => {
    await db[Symbol.asyncDispose]()
  })
  beforeEach(async () => {
    checkpoints = newManager(db.client)
    await db.query('truncate events')
    claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  })

  test('commits the effects and the checkpoint together, one after the other', async () => {
    for (const n of [1, 2, 3]) {
      await begin(async ({ tx, query }) => {
        await query('insert into events values ($1)', [n])
        await claim.saveCheckpoint({ cursor: n, itemsProcessed: claim.itemsProcessed + 1 }, { tx })
      })
    }
    expect(claim).toMatchObject({ cursor: 3, itemsProcessed: 3, checkpointSeq: 3 })
    expect(await saved()).toEqual([1, 2, 3])
    expect(await db.query('select id from events order by id')).toEqual([{ id: 1 }, { id: 2 }, { id: 3 }])
    await claim.saveCheckpoint({ cursor: 4, itemsProcessed: 4 })
    expect(await saved()).toEqual([1, 2, 3, 4])
  })

  test('shows the save inside, and not outside until it commits', async () => {
    await begin(async ({ tx, query }) => {
      await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx })
      expect(claim).toMatchObject({ cursor: 1, checkpointSeq: 1 })
      expect(
        await query('select from filemark.checkpoint_history where pipeline = $1', [checkpoints.pipeline]),
      ).toHaveLength(1)
    })
  })

  test('that is rolled back takes no effect, and the same save can be made again', async () => {
    await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
    const next = { cursor: 2, itemsProcessed: 2, accumulatedResults: { n: 2 } }
    await beginInVain(({ tx }) => claim.saveCheckpoint(next, { tx }))
    expect(await saved()).toEqual([1])
    // In a transaction of its own, which is lost as well,
    await beginInVain(({ tx }) => claim.saveCheckpoint(next, { tx }))
    // in another one,
    await begin(({ tx }) => claim.saveCheckpoint(next, { tx }))
    expect(await saved()).toEqual([1, 2])
    expect(claim).toMatchObject({ ...next, checkpointSeq: 2 })
    // and without one, as the next save, though the transaction before is only known to be over.
    await beginInVain(({ tx }) => claim.saveCheckpoint({ cursor: 3, itemsProcessed: 3 }, { tx }))
    await claim.saveCheckpoint({ cursor: 3, itemsProcessed: 3 })
    expect(await saved()).toEqual([1, 2, 3])
    expect(claim).toMatchObject({ cursor: 3, checkpointSeq: 3 })
  })

  test('that is rolled back lets nobody go on behind it: the next save is refused, the claim is back', async () => {
    await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
    await beginInVain(({ tx }) => claim.saveCheckpoint({ cursor: 2, itemsProcessed: 2 }, { tx }))
    expect(claim.cursor).toBe(2)
    const skipping = claim.saveCheckpoint({ cursor: 3, itemsProcessed: 3 })
    await expect(skipping).rejects.toThrow(CheckpointConflictError)
    await expect(skipping).rejects.toMatchObject({ hint: expect.stringContaining('was rolled back') })
    expect(claim).toMatchObject({ cursor: 1, itemsProcessed: 1, checkpointSeq: 1 })
    await claim.saveCheckpoint({ cursor: 2, itemsProcessed: 2 })
    expect(await saved()).toEqual([1, 2])
  })

  test('that would go on behind one that was rolled back is refused too', async () => {
    for (const n of [1, 2]) {
      await begin(({ tx }) => claim.saveCheckpoint({ cursor: n, itemsProcessed: n }, { tx }))
    }
    await beginInVain(({ tx }) => claim.saveCheckpoint({ cursor: 3, itemsProcessed: 3 }, { tx }))
    const skipping = begin(({ tx }) => claim.saveCheckpoint({ cursor: 4, itemsProcessed: 4 }, { tx }))
    await expect(skipping).rejects.toThrow(CheckpointConflictError)
    expect(claim).toMatchObject({ cursor: 2, itemsProcessed: 2, checkpointSeq: 2 })
    await begin(({ tx }) => claim.saveCheckpoint({ cursor: 3, itemsProcessed: 3 }, { tx }))
    expect(await saved()).toEqual([1, 2, 3])
  })

  test('a handler that swallows rollbacks loses no batch and loads none twice', async () => {
    await claim.release()
    await db.query(
      `select filemark.configure_pipeline('${checkpoints.pipeline}', '{"backoff_base_seconds": 0}')`,
    )
    const batches = 12
    let attempt = 0
    const load = () =>
      checkpoints.processFile(file('a'), async (claim) => {
        while (Number(claim.cursor ?? 0) < batches) {
          const next = Number(claim.cursor ?? 0) + 1
          attempt += 1
          if (attempt > 100) throw new Error('does not come to an end')
          await begin(async ({ tx, query }) => {
            await query('insert into events values ($1)', [next])
            await claim.saveCheckpoint({ cursor: next, itemsProcessed: claim.itemsProcessed + 1 }, { tx })
            if (attempt % 3 === 0 || (next === batches && attempt < 60)) throw rollback
          }).catch(() => {})
        }
        // The last batch looks done, whether its transaction has committed or not.
        expect(claim.cursor).toBe(batches)
      })
    const first = await load()
    expect(first).toMatchObject({ outcome: 'failed', error: expect.any(CheckpointConflictError) })
    expect(first).toMatchObject({ claim: { cursor: batches - 1, itemsProcessed: batches - 1 } })
    attempt = 60
    expect(await load()).toMatchObject({ outcome: 'completed', claim: { itemsProcessed: batches } })
    const loaded = await db.query('select id from events order by id')
    expect(loaded.map(({ id }) => id)).toEqual(Array.from({ length: batches }, (_, n) => n + 1))
  })

  test('that saved and completed is told so when it is completed again', async () => {
    await begin(async ({ tx }) => {
      await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx })
      expect(await claim.complete({}, { tx })).toEqual({ outcome: 'completed' })
    })
    expect(await claim.complete()).toEqual({ outcome: 'already_completed' })
  })

  test('refresh tells where the claim stands after a rollback', async () => {
    await beginInVain(({ tx }) => claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx }))
    await claim.refresh()
    expect(claim).toMatchObject({ cursor: null, itemsProcessed: 0, hasCheckpoint: false })
    await begin(({ tx }) => claim.saveCheckpoint({ cursor: 5, itemsProcessed: 5 }, { tx }))
    await claim.refresh()
    expect(claim).toMatchObject({ cursor: 5, itemsProcessed: 5, checkpointSeq: 1 })
  })

  test('holds several saves, which can all be made again after a rollback', async () => {
    const work = async ({ tx }: WriteOptions) => {
      await claim.persistRecords('events', [{ id: 1 }], { cursor: 1, itemsProcessed: 1 }, { tx })
      await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1, accumulatedResults: { n: 1 } }, { tx })
      await claim.persistRecords('events', [{ id: 2 }], { cursor: 2, itemsProcessed: 2 }, { tx })
    }
    await beginInVain(work)
    await beginInVain(work)
    await begin(work)
    expect(await saved()).toEqual([1, 1, 2])
    expect(await db.query('select id from events order by id')).toEqual([{ id: 1 }, { id: 2 }])
    expect(claim).toMatchObject({ cursor: 2, accumulatedResults: { n: 1 }, checkpointSeq: 3 })
  })

  test('that committed although its caller believes otherwise is not repeated', async () => {
    const records = { cursor: 2, itemsProcessed: 2 }
    await begin(({ tx }) => claim.persistRecords('events', [{ id: 1 }, { id: 2 }], records, { tx }))
    await db.query('delete from events')
    // As after a lost answer to the commit: the records would be there twice if they were inserted again.
    const again = await begin(({ tx }) =>
      claim.persistRecords('events', [{ id: 1 }, { id: 2 }], records, { tx }),
    )
    expect(again).toMatchObject({ recordsPersisted: 2, checkpointSeq: 1 })
    expect(await db.query('select from events')).toEqual([])
    await claim.saveCheckpoint({ cursor: 3, itemsProcessed: 3 })
    expect(claim.checkpointSeq).toBe(2)
  })

  test('completes the file when it commits, not when it is rolled back', async () => {
    await beginInVain(({ tx }) => claim.complete({ totalRows: 1 }, { tx }))
    expect(await checkpoints.isProcessed('a')).toBe(false)
    await beginInVain(({ tx }) => checkpoints.completeFile('a', { totalRows: 2 }, { tx }))
    await begin(({ tx }) => checkpoints.completeFile('a', { totalRows: 3 }, { tx }))
    expect(await checkpoints.getFile('a')).toMatchObject({ status: 'completed', recordsTotal: 3 })
  })

  test('a claim whose end was rolled back goes on', async () => {
    await beginInVain(({ tx }) => claim.fail('x', { tx }))
    expect(claim.ended).toBe('failed')
    await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
    expect(claim.ended).toBeUndefined()
    await beginInVain(({ tx }) => claim.release({ tx }))
    await claim.refresh()
    expect(claim.ended).toBeUndefined()
    await claim.complete()
  })

  test('registers, claims and requeues files', async () => {
    await beginInVain(({ tx }) => checkpoints.registerFiles([file('b')], { tx }))
    expect(await checkpoints.getFile('b')).toBeNull()
    await begin(({ tx }) => checkpoints.registerFiles([file('b')], { tx }))
    await beginInVain(({ tx }) => checkpoints.claimFile(file('b'), { tx }))
    const [other] = await begin(({ tx }) => checkpoints.claimNextFiles({ tx }))
    expect(other).toMatchObject({ fileUrl: 'b' })
    await beginInVain(({ tx }) => checkpoints.requeueFile('b', { force: true, tx }))
    await other?.complete()
  })

  test('of a lost claim fails as a whole', async () => {
    await checkpoints.requeueFile('a', { force: true })
    const work = begin(async ({ tx, query }) => {
      await query('insert into events values (1)')
      await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx })
    })
    await expect(work).rejects.toThrow(ClaimLostError)
    expect(claim.signal.aborted).toBe(true)
    expect(await db.query('select from events')).toEqual([])
  })

  test('the client itself is not taken for a transaction', async () => {
    const save = claim.saveCheckpoint(
      { cursor: 1, itemsProcessed: 1 },
      { tx: db.client as TestTransaction['tx'] },
    )
    await expect(save).rejects.toThrow(InvalidArgumentError)
    await expect(save).rejects.toThrow('tx must be the open transaction itself')
    expect(claim.hasCheckpoint).toBe(false)
  })
})

test('over supabase-js there is no transaction to join, and the error says why', async () => {
  await using db = await openSupabase()
  const checkpoints = newManager(db.client)
  const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  const tx = { query: async () => ({ rows: [] }) }
  for (const call of [
    () => claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx }),
    () => claim.complete({}, { tx }),
    () => checkpoints.registerFiles([file('b')], { tx }),
  ]) {
    await expect(call()).rejects.toThrow(InvalidArgumentError)
    await expect(call()).rejects.toThrow('each call is a request and a transaction of its own')
  }
})

test('a savepoint that is rolled back is noticed like a transaction', async () => {
  await using database = await createDatabase()
  const checkpoints = newManager(database.sql)
  const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  await database.sql.begin(async (tx) => {
    await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx })
    await tx
      .savepoint(async (tx) => {
        await claim.saveCheckpoint({ cursor: 2, itemsProcessed: 2 }, { tx })
        throw rollback
      })
      .catch(() => {})
    await claim.saveCheckpoint({ cursor: 2, itemsProcessed: 2 }, { tx })
  })
  expect(await checkpoints.getFile('a')).toMatchObject({ cursor: 2, checkpointSeq: 2 })
})

test('a pool of one connection can hold a transaction and join it', async () => {
  await using database = await createDatabase()
  const sql = postgres(database.url, { max: 1 })
  const checkpoints = newManager(sql)
  const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  await sql
    .begin(async (tx) => {
      await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx })
      throw rollback
    })
    .catch(() => {})
  const refused = sql.begin((tx) => claim.saveCheckpoint({ cursor: 9, itemsProcessed: 9 }, { tx }))
  await expect(refused).rejects.toThrow(CheckpointConflictError)
  await sql.begin((tx) => claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx }))
  expect(claim.checkpointSeq).toBe(1)
  await sql.end()
})

test('a deadlock in a transaction keeps its code, so that the caller can repeat the whole', async () => {
  await using database = await createDatabase()
  const checkpoints = newManager(database.sql)
  const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  await database.sql`create table locks as select 1 as n`
  const other = await database.connect()
  const save = (tx: WriteOptions['tx']) => claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx })
  let theirs: Promise<unknown> = Promise.resolve()
  const ours = database.sql.begin(async (tx) => {
    await tx`select from locks for update`
    theirs = other.sql.begin(async (their) => {
      await their`set local deadlock_timeout = '1h'`
      await their`select public.extend_claim('a', ${claim.claimToken}, ${checkpoints.pipeline})`
      await their`select from locks for update`
    })
    await untilLocked(database.sql, other.pid)
    await save(tx)
  })
  await expect(ours).rejects.toMatchObject({ name: 'FilemarkError', code: '40P01' })
  await theirs
  await database.sql.begin(save)
  expect(claim.checkpointSeq).toBe(1)
})

test('a node-postgres Client that ran begin is its own transaction', async () => {
  await using database = await createDatabase()
  const client = new pg.Client(database.url)
  await client.connect()
  const checkpoints = newManager(client)
  const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  await client.query('begin')
  await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx: client })
  await client.query('rollback')
  await claim.refresh()
  expect(claim.hasCheckpoint).toBe(false)
  await client.end()
})
