import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest'
import {
  type CheckpointManager,
  ClaimLostError,
  type FileClaim,
  InvalidArgumentError,
  PermanentError,
  RetryAfterError,
  UnavailableError,
} from '../../sdk/index.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { startPostgrest } from '../servers/postgrest.ts'
import { until } from '../wait.ts'
import { file, newManager } from './clients.ts'

let database: TestDatabase
let checkpoints: CheckpointManager
beforeAll(async () => {
  database = await createDatabase()
  await database.sql`create table events (id int primary key)`
})
afterAll(async () => {
  await database.drop()
})
beforeEach(() => {
  checkpoints = newManager(database.sql)
})

const never = new Promise<never>(() => {})

async function configure(settings: Record<string, number | boolean>): Promise<void> {
  await database.sql`select filemark.configure_pipeline(${checkpoints.pipeline}, ${database.sql.json(settings)})`
}

describe('a handler', () => {
  test('that returns completes the file, with the stats it returns', async () => {
    const result = await checkpoints.processFile(file('a'), async (claim) => {
      expect(claim.hasCheckpoint).toBe(false)
      await claim.saveCheckpoint({ cursor: 5, itemsProcessed: 5 })
      return { totalRows: 5, filteredRows: 1, persistedRows: 4 }
    })
    expect(result).toMatchObject({ claimed: true, outcome: 'completed', claim: { itemsProcessed: 5 } })
    expect(await checkpoints.getFile('a')).toMatchObject({
      status: 'completed',
      recordsTotal: 5,
      recordsFiltered: 1,
      recordsPersisted: 4,
    })
  })

  test('that returns nothing completes it too, with the records it has persisted', async () => {
    const { outcome } = await checkpoints.processFile(file('a'), async (claim) => {
      await claim.persistRecords('events', [{ id: 1 }, { id: 2 }], { cursor: 2, itemsProcessed: 2 })
    })
    expect(outcome).toBe('completed')
    expect(await checkpoints.getFile('a')).toMatchObject({ recordsPersisted: 2 })
  })

  test('that is not asynchronous works as well', async () => {
    expect(await checkpoints.processFile(file('a'), () => {})).toMatchObject({ outcome: 'completed' })
    const result = await checkpoints.processFile(file('b'), () => {
      throw new Error('at once')
    })
    expect(result).toMatchObject({ outcome: 'failed', error: new Error('at once') })
  })

  test('that throws fails the attempt, until the budget is spent', async () => {
    await configure({ max_attempts: 2, backoff_base_seconds: 0 })
    const error = new Error('broken row')
    const handler = async (claim: FileClaim) => {
      if (!claim.hasCheckpoint) await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 0 })
      throw error
    }
    const first = await checkpoints.processFile(file('a'), handler)
    expect(first).toMatchObject({
      claimed: true,
      outcome: 'failed',
      attempts: 1,
      availableAt: expect.any(Date),
    })
    expect('error' in first && first.error).toBe(error)
    const second = await checkpoints.processFile(file('a'), handler)
    expect(second).toMatchObject({
      outcome: 'dead_letter',
      attempts: 2,
      availableAt: null,
      claim: { cursor: 1 },
    })
    expect(await checkpoints.processFile(file('a'), handler)).toEqual({
      claimed: false,
      outcome: 'dead_letter',
    })
    expect(await checkpoints.getFile('a')).toMatchObject({ errorMessage: 'broken row' })
  })

  test('that throws a PermanentError ends in the dead letter at once', async () => {
    const result = await checkpoints.processFile(file('a'), async () => {
      throw new PermanentError('not a CSV file')
    })
    expect(result).toMatchObject({ outcome: 'dead_letter', attempts: 1, availableAt: null })
  })

  test('that throws a RetryAfterError is tried again when that says', async () => {
    const result = await checkpoints.processFile(file('a'), async () => {
      throw new RetryAfterError('quota', 5_000)
    })
    const due = 'availableAt' in result ? (result.availableAt?.getTime() ?? 0) : 0
    expect(due - Date.now()).toBeGreaterThan(4_900_000)
    expect(await checkpoints.processFile(file('a'), () => {})).toEqual({ claimed: false, outcome: 'waiting' })
  })

  test('whose stats are refused has failed', async () => {
    const result = await checkpoints.processFile(file('a'), async () => ({ totalRows: -1 }))
    expect(result).toMatchObject({ outcome: 'failed', error: expect.any(InvalidArgumentError) })
  })

  test('may end the claim itself', async () => {
    const completed = await checkpoints.processFile(file('a'), async (claim) => {
      await claim.complete({ totalRows: 9 })
    })
    expect(completed).toMatchObject({ outcome: 'completed' })
    expect(await checkpoints.getFile('a')).toMatchObject({ recordsTotal: 9 })
    const failed = await checkpoints.processFile(file('b'), async (claim) => {
      await claim.fail('not today')
    })
    expect(failed).toMatchObject({ outcome: 'failed', error: 'not today', attempts: 1 })
    const released = await checkpoints.processFile(file('c'), (claim) => claim.release())
    expect(released).toMatchObject({ outcome: 'released' })
    expect(await checkpoints.getFile('c')).toMatchObject({ status: 'pending', attempts: 0 })
  })

  test('that throws after it ended the claim keeps its error', async () => {
    const error = new Error('afterwards')
    const result = await checkpoints.processFile(file('a'), async (claim) => {
      await claim.complete()
      throw error
    })
    expect(result).toMatchObject({ outcome: 'completed' })
    expect('error' in result && result.error).toBe(error)
  })

  test('of which newer content is seen meanwhile is superseded, however it ends', async () => {
    const saw = (url: string) => checkpoints.registerFiles([{ ...file(url), etag: 'new' }])
    const done = await checkpoints.processFile({ ...file('a'), etag: 'old' }, async () => {
      await saw('a')
    })
    expect(done).toMatchObject({ claimed: true, outcome: 'superseded' })
    const failed = await checkpoints.processFile({ ...file('b'), etag: 'old' }, async () => {
      await saw('b')
      throw new Error('half old, half new')
    })
    expect(failed).toMatchObject({ outcome: 'superseded', error: new Error('half old, half new') })
    expect(await checkpoints.getFile('b')).toMatchObject({ status: 'pending', generation: 2 })
  })
})

describe('a file that cannot be claimed', () => {
  test('is not handled, and the result says why', async () => {
    const handler = vi.fn()
    const refusal = async (url: string) => {
      const result = await checkpoints.processFile(file(url), handler)
      expect(result.claimed).toBe(false)
      return result.outcome
    }
    await checkpoints.claimFile(file('a'))
    expect(await refusal('a')).toBe('held')
    await checkpoints.completeFile('a')
    expect(await refusal('a')).toBe('completed')
    await configure({ max_concurrency: 1 })
    await checkpoints.claimFile(file('b'))
    expect(await refusal('c')).toBe('busy')
    await configure({ paused: true })
    expect(await refusal('c')).toBe('paused')
    expect(handler).not.toHaveBeenCalled()
  })
})

describe('a lease', () => {
  test('is renewed while the handler runs', async () => {
    await configure({ lease_seconds: 3 })
    const ends: number[] = []
    const result = await checkpoints.processFile(file('a'), async (claim) => {
      const start = claim.leaseExpiresAt.getTime()
      await until(() => {
        const end = claim.leaseExpiresAt.getTime()
        if (end !== ends.at(-1)) ends.push(end)
        return end > start + 3_500
      })
      // Longer than a lease, and nobody could take it over.
      const other = newManager(database.sql, { pipeline: claim.pipeline })
      expect(await other.claimFile(file('a'))).toBeNull()
    })
    expect(result.outcome).toBe('completed')
    // The first one, and more than one renewal; a busy machine may be late with some.
    expect(ends.length).toBeGreaterThanOrEqual(3)
  })

  test('is renewed by one call at a time, and no longer than the handler runs', async () => {
    await configure({ lease_seconds: 1 })
    const blocker = await database.connect()
    const waiting = async () => {
      const rows = await database.sql`
        select from pg_stat_activity where query like '%extend_claim%' and wait_event_type = 'Lock'
           and datname = current_database()`
      return rows.length
    }
    let longest = 0
    await checkpoints.processFile(file('a'), async () => {
      await blocker.sql.begin(async (tx) => {
        await tx`select from filemark.file_checkpoints where pipeline = ${checkpoints.pipeline} for update`
        await until(waiting)
        const until1s = performance.now() + 1_000
        await until(async () => {
          longest = Math.max(longest, await waiting())
          return performance.now() > until1s
        })
      })
    })
    expect(longest).toBe(1)
    const before = await checkpoints.getFile('a')
    expect(before?.status).toBe('completed')
    expect(await waiting()).toBe(0)
  })
})

test('a renewal that crosses the completion on its way does not make the claim lost', async () => {
  const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  const blocker = await database.connect()
  const calls: Promise<unknown>[] = []
  await blocker.sql.begin(async (tx) => {
    await tx`select from filemark.file_checkpoints where pipeline = ${claim.pipeline} for update`
    const waiting = async () =>
      (
        await database.sql`
          select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()`
      ).length
    for (const call of [() => claim.complete(), () => claim.extend()]) {
      const answer: Promise<unknown> = call()
      // It may be refused before anybody waits for it.
      answer.catch(() => {})
      calls.push(answer)
      await until(async () => (await waiting()) === calls.length)
    }
  })
  expect(await Promise.allSettled(calls)).toMatchObject([
    { status: 'fulfilled', value: { outcome: 'completed' } },
    { status: 'rejected', reason: { code: 'PT409' } },
  ])
  expect(claim.signal.aborted).toBe(false)
  expect(claim.ended).toBe('completed')
})

describe('a claim that is lost', () => {
  test('aborts the signal of its handler, which is given up after its grace', async () => {
    await configure({ lease_seconds: 1 })
    let reason: unknown
    const result = await checkpoints.processFile(
      file('a'),
      async (claim) => {
        claim.signal.addEventListener('abort', () => {
          reason = claim.signal.reason
        })
        await checkpoints.requeueFile('a', { force: true })
        await never
      },
      { graceMs: 50 },
    )
    expect(result).toMatchObject({ claimed: true, outcome: 'claim_lost', error: expect.any(ClaimLostError) })
    expect(reason).toBeInstanceOf(ClaimLostError)
    expect(await checkpoints.getFile('a')).toMatchObject({ status: 'pending' })
  })

  test('cannot be completed or failed by a handler that does not notice', async () => {
    for (const end of [() => {}, () => Promise.reject(new Error('x'))]) {
      const result = await checkpoints.processFile(file('a'), async () => {
        await checkpoints.requeueFile('a', { force: true })
        await end()
      })
      expect(result.outcome).toBe('claim_lost')
    }
    expect(await checkpoints.getFile('a')).toMatchObject({ status: 'pending', errorMessage: null })
  })

  test('is told from a lost claim on another file', async () => {
    const other = (await checkpoints.claimFile(file('b'))) as FileClaim
    await other.release()
    const result = await checkpoints.processFile(file('a'), async () => {
      await other.extend()
    })
    expect(result).toMatchObject({ outcome: 'failed', error: expect.any(ClaimLostError) })
  })
})

describe('an aborted signal', () => {
  test('releases the claim when the handler has come to its end', async () => {
    const controller = new AbortController()
    const result = await checkpoints.processFile(
      file('a'),
      async (claim) => {
        await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
        controller.abort(new Error('SIGTERM'))
        expect(claim.signal.reason).toEqual(new Error('SIGTERM'))
        // What was under way may still be saved.
        await claim.saveCheckpoint({ cursor: 2, itemsProcessed: 2 })
      },
      { signal: controller.signal },
    )
    expect(result).toMatchObject({ claimed: true, outcome: 'released', claim: { cursor: 2 } })
    expect(await checkpoints.getFile('a')).toMatchObject({ status: 'pending', attempts: 0, cursor: 2 })
  })

  test('releases the claim of a handler that throws for it', async () => {
    const controller = new AbortController()
    const result = await checkpoints.processFile(
      file('a'),
      async (claim) => {
        controller.abort()
        claim.signal.throwIfAborted()
      },
      { signal: controller.signal },
    )
    expect(result.outcome).toBe('released')
  })

  test('releases the claim of a handler that does not come to an end', async () => {
    const controller = new AbortController()
    let zombie: Promise<unknown> = never
    const result = await checkpoints.processFile(
      file('a'),
      async (claim) => {
        controller.abort()
        zombie = until(() => claim.ended).then(() => claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }))
        zombie.catch(() => {})
        await never
      },
      { signal: controller.signal, graceMs: 50 },
    )
    expect(result.outcome).toBe('released')
    await expect(zombie).rejects.toThrow(ClaimLostError)
  })

  test('of before the start claims nothing; between claim and handler it releases', async () => {
    const handler = vi.fn()
    const signal = AbortSignal.abort(new Error('too late'))
    await expect(checkpoints.processFile(file('a'), handler, { signal })).rejects.toThrow('too late')
    expect(await checkpoints.getFile('a')).toBeNull()
    const claim = (await checkpoints.claimFile(file('b'))) as FileClaim
    expect(await checkpoints.processClaim(claim, handler, { signal })).toMatchObject({ outcome: 'released' })
    expect(handler).not.toHaveBeenCalled()
  })
})

describe('a claim that its handler ends in a transaction', () => {
  test('is completed when that commits', async () => {
    const result = await checkpoints.processFile(file('a'), async (claim) => {
      await database.sql.begin(async (tx) => {
        await claim.complete({ totalRows: 1 }, { tx })
      })
    })
    expect(result.outcome).toBe('completed')
    expect(await checkpoints.getFile('a')).toMatchObject({ status: 'completed', recordsTotal: 1 })
  })

  test('has failed when that is rolled back, also when the handler hides it', async () => {
    const rollback = new Error('rolled back')
    const complete = (claim: FileClaim) =>
      database.sql.begin(async (tx) => {
        await claim.complete({}, { tx })
        throw rollback
      })
    const thrown = await checkpoints.processFile(file('a'), async (claim) => {
      await complete(claim)
    })
    expect(thrown).toMatchObject({ outcome: 'failed', error: rollback })
    const hidden = await checkpoints.processFile(file('b'), async (claim) => {
      await complete(claim).catch(() => {})
    })
    expect(hidden).toMatchObject({
      outcome: 'failed',
      error: new Error('the transaction that ended the claim was rolled back'),
    })
    expect(await checkpoints.isProcessed('b')).toBe(false)
  })
})

describe('without the database', () => {
  test('the failure of the handler is not hidden by the failure to tell of it', async () => {
    await using other = await createDatabase({ supabase: 'new' })
    await using api = await startPostgrest({ databaseUrl: other.url })
    const unreachable = newManager(api.client('service_role'), { retries: 1 })
    const error = new Error('broken row')
    const processed = unreachable.processFile(file('a'), async () => {
      api.intercept = () => 'drop-request'
      throw error
    })
    const thrown = await processed.catch((reason: unknown) => reason)
    expect(thrown).toBeInstanceOf(UnavailableError)
    expect(thrown).toMatchObject({
      cause: error,
      message: expect.stringContaining('fail_file got no answer'),
    })

    api.intercept = undefined
    const completing = unreachable.processFile(file('b'), async () => {
      api.intercept = () => 'drop-request'
    })
    await expect(completing).rejects.toThrow(UnavailableError)
  })
})
