import { afterAll, beforeAll, expect, test } from 'vitest'
import { CheckpointManager, type FileClaim, type Logger } from '../../sdk/index.ts'
import { createDatabase, type TestDatabase } from '../database.ts'
import { file, newManager } from './clients.ts'

let database: TestDatabase
beforeAll(async () => {
  database = await createDatabase()
})
afterAll(async () => {
  await database.drop()
})

test('every step of a file is an event with its fields', async () => {
  const lines: [string, Record<string, unknown>, string][] = []
  const line =
    (level: string) =>
    (fields: Record<string, unknown>, message: string): void => {
      lines.push([level, fields, message])
    }
  const logger: Logger = {
    debug: line('debug'),
    info: line('info'),
    warn: line('warn'),
    error: line('error'),
  }
  const checkpoints = newManager(database.sql, { logger, workerId: 'me' })
  await database.sql`create table events (id int)`

  await checkpoints.processFile(file('a'), async (claim) => {
    await checkpoints.claimFile(file('a'))
    await claim.saveCheckpoint({ cursor: 0, itemsProcessed: 0 })
    await claim.persistRecords('events', [{ id: 1 }], { cursor: 1, itemsProcessed: 1 })
  })
  await checkpoints.processFile(file('b'), (claim) => claim.release())
  await checkpoints.processFile(file('b'), () => Promise.reject(new Error('broken')))
  await checkpoints.processFile(file('c'), async (claim) => {
    await checkpoints.requeueFile('c', { force: true })
    await claim.extend()
  })

  const common = { pipeline: checkpoints.pipeline, worker_id: 'me' }
  const expected: [string, string, Record<string, unknown>][] = [
    ['info', 'file_claimed', { file_url: 'a', claim_token: 1, attempts: 1, cursor: null }],
    ['debug', 'claim_refused', { file_url: 'a', outcome: 'held' }],
    ['debug', 'checkpoint_saved', { file_url: 'a', cursor: 0, items_processed: 0, history_length: 1 }],
    ['debug', 'checkpoint_saved', { file_url: 'a', cursor: 1, items_processed: 1, records_persisted: 1 }],
    ['info', 'file_completed', { file_url: 'a', outcome: 'completed', items_processed: 1 }],
    ['info', 'file_claimed', { file_url: 'b' }],
    ['info', 'file_released', { file_url: 'b' }],
    ['info', 'file_claimed', { file_url: 'b' }],
    ['warn', 'file_failed', { file_url: 'b', status: 'failed', error_message: 'broken' }],
    ['info', 'file_claimed', { file_url: 'c' }],
    ['warn', 'claim_lost', { file_url: 'c', claim_token: 1 }],
  ]
  expect(lines).toEqual(
    expected.map(([level, event, fields]) => [
      level,
      expect.objectContaining({ event, ...common, ...fields }),
      event,
    ]),
  )
})

test('a logger that throws, at once or later, breaks nothing', async () => {
  const broken = () => {
    throw new Error('disk full')
  }
  const later = async () => broken()
  const logger = { debug: broken, info: later, warn: broken, error: {} } as unknown as Logger
  const checkpoints = newManager(database.sql, { logger })
  const claim = (await checkpoints.claimFile(file('a'))) as FileClaim
  await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
  await claim.complete()
  expect(await checkpoints.isProcessed('a')).toBe(true)
})

test('a worker is named for its host and process, unless it is given a name', () => {
  const first = new CheckpointManager(database.sql).getWorkerId()
  expect(first).toMatch(new RegExp(`^worker_.+_${process.pid}_[0-9a-f]{8}$`))
  expect(new CheckpointManager(database.sql).getWorkerId()).not.toBe(first)
  expect(new CheckpointManager(database.sql, { workerId: 'mine' }).getWorkerId()).toBe('mine')
})
