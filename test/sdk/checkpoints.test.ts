import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import {
  CheckpointConflictError,
  type CheckpointManager,
  ClaimLostError,
  type FileClaim,
  FilemarkError,
  InvalidArgumentError,
  InvalidStateError,
  PermanentError,
  RetryAfterError,
  TooLargeError,
  UnknownFileError,
} from '../../sdk/index.ts'
import { clients, file, newManager, type TestClient } from './clients.ts'

/** Claims a new file, which must succeed. */
async function claim(checkpoints: CheckpointManager, url = 's3://bucket/a.csv'): Promise<FileClaim> {
  const claimed = await checkpoints.claimFile(file(url))
  if (!claimed) throw new Error(`no claim on ${url}`)
  return claimed
}

describe.each(Object.entries(clients))('over %s', (_, open) => {
  let db: TestClient
  beforeAll(async () => {
    db = await open()
    await db.query(
      'create table public.events (id int primary key, name text default $$unnamed$$, at timestamptz)',
    )
    await db.query('create table public.numbers (id bigint, ratio float8, amount numeric)')
    await db.query(`do $$ begin
      if to_regrole('service_role') is not null then grant insert on events, numbers to service_role; end if;
    end $$`)
  })
  afterAll(async () => {
    await db[Symbol.asyncDispose]()
  })

  test('a claimed file says everything about itself', async () => {
    const checkpoints = newManager(db.client, { workerId: 'worker 7' })
    await checkpoints.registerFiles([
      {
        url: 's3://bucket/ä "b".csv',
        type: 'csv',
        timestamp: '2026-11-20T10:00:00.5Z',
        etag: '"e1"',
        sizeBytes: 5_000_000_000,
        priority: -3,
        metadata: { nested: { none: null, no: false, empty: '' } },
      },
    ])
    const [claimed, ...others] = await checkpoints.claimNextFiles({ limit: 10 })
    expect(others).toEqual([])
    expect(claimed).toMatchObject({
      pipeline: checkpoints.pipeline,
      fileUrl: 's3://bucket/ä "b".csv',
      fileType: 'csv',
      fileTimestamp: new Date('2026-11-20T10:00:00.500Z'),
      etag: '"e1"',
      sizeBytes: 5_000_000_000,
      metadata: { nested: { none: null, no: false, empty: '' } },
      generation: 1,
      claimToken: 1,
      attempts: 1,
      maxAttempts: 3,
      leaseSeconds: 300,
      cursor: null,
      hasCheckpoint: false,
      itemsProcessed: 0,
      itemsTotal: null,
      accumulatedResults: null,
      checkpointSeq: 0,
      ended: undefined,
    })
    expect(claimed?.signal.aborted).toBe(false)
    expect(claimed?.leaseExpiresAt).toBeInstanceOf(Date)
    const row = await checkpoints.getFile('s3://bucket/ä "b".csv')
    expect(row).toMatchObject({
      status: 'processing',
      processedBy: 'worker 7',
      priority: -3,
      sizeBytes: 5_000_000_000,
      fileTimestamp: new Date('2026-11-20T10:00:00.500Z'),
      completedAt: null,
      error: null,
    })
    expect(row?.startedAt).toBeInstanceOf(Date)
  })

  test('a claim follows its own saves, and the next one goes on from them', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    const saved = await first.saveCheckpoint({ cursor: { line: 2 }, itemsProcessed: 1, itemsTotal: 9 })
    expect(saved).toEqual({ checkpointSeq: 1, leaseExpiresAt: expect.any(Date), historyLength: 1 })
    expect(first.leaseExpiresAt).toEqual(saved.leaseExpiresAt)
    await first.saveCheckpoint({ cursor: { line: 5 }, itemsProcessed: 4, accumulatedResults: { sum: 10 } })
    const position = {
      cursor: { line: 5 },
      itemsProcessed: 4,
      itemsTotal: 9,
      accumulatedResults: { sum: 10 },
      checkpointSeq: 2,
      hasCheckpoint: true,
    }
    expect(first).toMatchObject(position)
    await first.release()

    const second = await claim(checkpoints)
    expect(second).toMatchObject({ ...position, claimToken: 2, attempts: 1 })
    await second.saveCheckpoint({ cursor: { line: 6 }, itemsProcessed: 5 })
    expect(second).toMatchObject({ checkpointSeq: 3, itemsTotal: 9, accumulatedResults: { sum: 10 } })
  })

  test.each([
    0,
    -1.5,
    false,
    true,
    '',
    'text "with" quotes, ünïcode 😀 and \\ backslash\n',
    [],
    {},
    [null, 0, '', false],
    { nested: { none: null, zero: 0, list: [[], {}] } },
    Number.MAX_SAFE_INTEGER,
  ])('the value %j survives as cursor, as results and as metadata', async (value) => {
    const checkpoints = newManager(db.client)
    await checkpoints.registerFiles([{ ...file('a'), metadata: { value } }])
    const first = await claim(checkpoints, 'a')
    expect(first.metadata).toEqual({ value })
    await first.saveCheckpoint({ cursor: value, itemsProcessed: 0, accumulatedResults: value })
    expect(first).toMatchObject({ cursor: value, accumulatedResults: value, hasCheckpoint: true })
    await first.release()
    const second = await claim(checkpoints, 'a')
    expect(second.cursor).toEqual(value)
    expect(second.accumulatedResults).toEqual(value)
    expect(second.hasCheckpoint).toBe(true)
  })

  test('a Date in a cursor comes back as the text JSON makes of it', async () => {
    const first = await claim(newManager(db.client))
    const day = new Date('2026-11-20T10:00:00.123Z')
    await first.saveCheckpoint({ cursor: { day, ignored: undefined }, itemsProcessed: 1 })
    expect(first.cursor).toEqual({ day: '2026-11-20T10:00:00.123Z' })
  })

  test('results left out stay, and {} clears them', async () => {
    const first = await claim(newManager(db.client))
    await first.saveCheckpoint({ cursor: 1, itemsProcessed: 1, accumulatedResults: { count: 1 } })
    await first.saveCheckpoint({ cursor: 2, itemsProcessed: 2 })
    expect(first.accumulatedResults).toEqual({ count: 1 })
    await first.saveCheckpoint({ cursor: 3, itemsProcessed: 3, accumulatedResults: {} })
    expect(first.accumulatedResults).toEqual({})
    await first.refresh()
    expect(first.accumulatedResults).toEqual({})
  })

  test('what the caller does to its cursor object after a save is not in the claim', async () => {
    const first = await claim(newManager(db.client))
    const cursor = { line: 1 }
    await first.saveCheckpoint({ cursor, itemsProcessed: 1 })
    cursor.line = 99
    expect(first.cursor).toEqual({ line: 1 })
  })

  test('saves that are not awaited are made in the order of their calls', async () => {
    const first = await claim(newManager(db.client))
    await Promise.all([1, 2, 3, 4, 5].map((n) => first.saveCheckpoint({ cursor: n, itemsProcessed: n })))
    expect(first).toMatchObject({ cursor: 5, checkpointSeq: 5 })
  })

  test('persistRecords loads the records and saves the checkpoint together', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    const persisted = await first.persistRecords(
      'public.events',
      [{ id: 1, at: new Date('2026-11-20T10:00:00.123Z') }, { id: 2, name: '' }, { id: 1 }],
      { cursor: 3, itemsProcessed: 3, accumulatedResults: { seen: 3 } },
    )
    expect(persisted).toEqual({ recordsPersisted: 2, checkpointSeq: 1, leaseExpiresAt: expect.any(Date) })
    expect(first).toMatchObject({ cursor: 3, itemsProcessed: 3, accumulatedResults: { seen: 3 } })
    const rows = await db.query('select id, name, to_json(at) #>> $${}$$ as at from events order by id')
    expect(rows).toMatchObject([
      { id: 1, name: 'unnamed', at: expect.stringContaining('10:00:00.123') },
      { id: 2, name: '' },
    ])
    await first.complete()
    expect(await checkpoints.getFile(first.fileUrl)).toMatchObject({ recordsPersisted: 2 })

    const other = await claim(checkpoints, 'b')
    await expect(
      other.persistRecords('events', [{ id: 3, nope: 1 }], { cursor: 1, itemsProcessed: 1 }),
    ).rejects.toThrow(InvalidArgumentError)
    expect(other.hasCheckpoint).toBe(false)
  })

  test('numbers that JSON cannot hold reach a column without loss', async () => {
    const first = await claim(newManager(db.client))
    await first.persistRecords(
      'numbers',
      [
        { id: 9007199254740993n, ratio: Number.NaN, amount: 12345678901234567890n },
        { id: 1, ratio: Number.NEGATIVE_INFINITY, amount: 0.1 },
      ],
      { cursor: 2, itemsProcessed: 2 },
    )
    const rows = await db.query('select id::text, ratio::text, amount::text from numbers order by ratio')
    expect(rows).toEqual([
      { id: '1', ratio: '-Infinity', amount: '0.1' },
      { id: '9007199254740993', ratio: 'NaN', amount: '12345678901234567890' },
    ])
  })

  test.each([
    ['a bigint', { last: { id: 10n } }, 'p_cursor.last.id'],
    ['NaN', [1, Number.NaN], 'p_cursor[1]'],
    ['infinity', Number.POSITIVE_INFINITY, 'p_cursor'],
    ['a function', { f: () => {} }, 'p_cursor.f'],
    ['a Map', new Map([[1, 2]]), 'p_cursor'],
    ['an invalid Date', { at: new Date('never') }, 'p_cursor.at'],
    ['null', null, 'p_cursor'],
    ['undefined', undefined, 'p_cursor'],
  ])('a cursor that is or holds %s is refused by name', async (_, cursor, where) => {
    const first = await claim(newManager(db.client))
    const save = first.saveCheckpoint({ cursor: cursor as NonNullable<unknown>, itemsProcessed: 1 })
    await expect(save).rejects.toThrow(InvalidArgumentError)
    await expect(save).rejects.toThrow(`${where} must be `)
    await first.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
    expect(first.checkpointSeq).toBe(1)
  })

  test('a cursor that contains itself is refused', async () => {
    const first = await claim(newManager(db.client))
    const cursor: { self?: unknown } = {}
    cursor.self = cursor
    await expect(first.saveCheckpoint({ cursor, itemsProcessed: 1 })).rejects.toThrow('p_cursor.self must be')
  })

  test.each([1.5, Number.NaN, 2 ** 53, -1, '7'])('itemsProcessed %s is refused', async (itemsProcessed) => {
    const first = await claim(newManager(db.client))
    const save = first.saveCheckpoint({ cursor: 1, itemsProcessed: itemsProcessed as number })
    await expect(save).rejects.toThrow(InvalidArgumentError)
    await expect(save).rejects.toThrow('p_items_processed must be')
  })

  test('a number beyond 2^53 in a column is an error, never rounded', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    await first.saveCheckpoint({ cursor: 1, itemsProcessed: Number.MAX_SAFE_INTEGER })
    expect((await checkpoints.getFile(first.fileUrl))?.itemsProcessed).toBe(Number.MAX_SAFE_INTEGER)
    await db.query(
      `update filemark.file_checkpoints set items_processed = 9007199254740993 where pipeline = '${checkpoints.pipeline}'`,
    )
    await expect(checkpoints.getFile(first.fileUrl)).rejects.toThrow('items_processed is')
  })

  test('files are registered from arrays, iterables and streams, in batches', async () => {
    const checkpoints = newManager(db.client)
    const files = (from: number, to: number) =>
      Array.from({ length: to - from }, (_, n) => ({ ...file(`file ${from + n}`), etag: '1' }))
    expect(await checkpoints.registerFiles([])).toEqual({ registered: 0, newGenerations: 0, unchanged: 0 })
    expect(await checkpoints.registerFiles(new Set(files(0, 10)))).toEqual({
      registered: 10,
      newGenerations: 0,
      unchanged: 0,
    })
    async function* stream() {
      yield* files(5, 10)
      yield* files(10, 20_500)
      yield { ...file('file 1'), etag: '2' }
    }
    expect(await checkpoints.registerFiles(stream())).toEqual({
      registered: 20_490,
      newGenerations: 1,
      unchanged: 5,
    })
    expect(await checkpoints.stats()).toMatchObject({ pending: 20_500, total: 20_500, completed: 0 })
  })

  test('nothing of a batch is registered when one file of it is wrong', async () => {
    const checkpoints = newManager(db.client)
    const register = checkpoints.registerFiles([file('good'), { ...file('bad'), timestamp: 'yesteryear' }])
    await expect(register).rejects.toThrow(InvalidArgumentError)
    await expect(register).rejects.toThrow('p_files[1].file_timestamp')
    expect(await checkpoints.getFile('good')).toBeNull()
  })

  test('a batch of claims comes by priority, and not again', async () => {
    const checkpoints = newManager(db.client)
    await checkpoints.registerFiles([
      { ...file('low'), priority: 1 },
      { ...file('high'), priority: 9 },
      { ...file('later'), availableAt: new Date(Date.now() + 60_000) },
      { ...file('other'), type: 'json' },
    ])
    expect((await checkpoints.claimNextFiles({ type: 'csv' })).map((c) => c.fileUrl)).toEqual(['high'])
    expect((await checkpoints.claimNextFiles({ limit: 5 })).map((c) => c.fileUrl)).toEqual(['low', 'other'])
    expect(await checkpoints.claimNextFiles({ limit: 5 })).toEqual([])
    await expect(checkpoints.claimNextFiles({ limit: 101 })).rejects.toThrow(InvalidArgumentError)
  })

  test('pendingFiles names those that can be claimed, in the order given, however many', async () => {
    const checkpoints = newManager(db.client)
    const urls = Array.from({ length: 2_300 }, (_, n) => `file ${n}, with "quotes" and {braces}, NULL`)
    await (await claim(checkpoints, urls[0])).complete()
    await claim(checkpoints, urls[1_700])
    const pending = await checkpoints.pendingFiles(urls)
    expect(pending).toEqual(urls.filter((_, n) => n !== 0 && n !== 1_700))
    expect(await checkpoints.pendingFiles([])).toEqual([])
  })

  test('files are listed by URL, page by page and by status', async () => {
    const checkpoints = newManager(db.client)
    await checkpoints.registerFiles(['c', 'a', 'd', 'b'].map(file))
    await (await claim(checkpoints, 'b')).complete({ totalRows: 7 })
    const urls = (files: { fileUrl: string }[]) => files.map(({ fileUrl }) => fileUrl)
    expect(urls(await checkpoints.listFiles({ limit: 3 }))).toEqual(['a', 'b', 'c'])
    expect(urls(await checkpoints.listFiles({ limit: 3, after: 'c' }))).toEqual(['d'])
    const [done, ...others] = await checkpoints.listFiles({ status: 'completed' })
    expect(done).toMatchObject({
      fileUrl: 'b',
      status: 'completed',
      recordsTotal: 7,
      completedAt: expect.any(Date),
    })
    expect(others).toEqual([])
  })

  test('a file is completed once, with its numbers', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    expect(await checkpoints.isProcessed(first.fileUrl)).toBe(false)
    expect(
      await first.complete({
        totalRows: 10,
        filteredRows: 3,
        persistedRows: 7,
        durationMs: 1234,
        accumulatedResults: { sum: 0 },
      }),
    ).toEqual({ outcome: 'completed' })
    expect(first.ended).toBe('completed')
    expect(await first.complete()).toEqual({ outcome: 'already_completed' })
    expect(await checkpoints.isProcessed(first.fileUrl)).toBe(true)
    expect(await checkpoints.getFile(first.fileUrl)).toMatchObject({
      status: 'completed',
      recordsTotal: 10,
      recordsFiltered: 3,
      recordsPersisted: 7,
      processingTimeMs: 1234,
      accumulatedResults: { sum: 0 },
    })
    expect(await checkpoints.claimFile(file(first.fileUrl))).toBeNull()
    expect(await checkpoints.isProcessed('unknown')).toBe(false)
  })

  test('a file that was read with another etag than it was claimed with is superseded', async () => {
    const checkpoints = newManager(db.client)
    const first = await checkpoints.claimFile({ ...file('a'), etag: 'old' })
    expect(await first?.complete({ etag: 'new' })).toEqual({ outcome: 'superseded' })
    expect(first?.ended).toBe('superseded')
    expect(await checkpoints.claimFile(file('a'))).toMatchObject({ generation: 2, etag: 'new' })
  })

  test('a failure is kept with its error, and retried later', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    const error = Object.assign(
      new TypeError('row 3: ', { cause: new Error('half a pair \ud800, NUL \0') }),
      {
        code: 'E_ROW',
      },
    )
    const failed = await first.fail(error)
    expect(failed).toEqual({ status: 'failed', attempts: 1, availableAt: expect.any(Date) })
    expect(first.ended).toBe('failed')
    expect(await checkpoints.claimFile(file(first.fileUrl))).toBeNull()
    expect(await checkpoints.getFile(first.fileUrl)).toMatchObject({
      status: 'failed',
      errorMessage: 'row 3: ',
      error: {
        name: 'TypeError',
        message: 'row 3: ',
        code: 'E_ROW',
        stack: expect.stringContaining('checkpoints.test.ts'),
        cause: { name: 'Error', message: 'half a pair \ufffd, NUL \ufffd' },
      },
    })
  })

  test('PermanentError is for good, RetryAfterError says when', async () => {
    const checkpoints = newManager(db.client)
    const dead = await (await claim(checkpoints, 'a')).fail(new PermanentError('no such column'))
    expect(dead).toEqual({ status: 'dead_letter', attempts: 1, availableAt: null })
    const later = await (await claim(checkpoints, 'b')).fail(new RetryAfterError('too many requests', 999.5))
    const seconds = ((later.availableAt?.getTime() ?? 0) - Date.now()) / 1000
    expect(seconds).toBeGreaterThan(900)
    expect(seconds).toBeLessThan(1_100)
    expect(() => new RetryAfterError('when?', Number.NaN)).toThrow(InvalidArgumentError)
  })

  test.each([
    ['text', 'text'],
    ['', 'unknown error'],
    [new Error(''), 'Error'],
    [undefined, 'undefined'],
    [null, 'null'],
    [42, '42'],
    [Object.create(null), 'an error that has no text'],
    ['\0', '\ufffd'],
  ])('anything thrown is a failure: %o', async (thrown, message) => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    await first.fail(thrown)
    expect((await checkpoints.getFile(first.fileUrl))?.errorMessage).toBe(message)
  })

  test('an endless error message is cut to what the database takes', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    await first.fail(new Error('€'.repeat(100_000), { cause: new Error('\u0001'.repeat(1_000_000)) }))
    const kept = await checkpoints.getFile(first.fileUrl)
    expect(kept?.errorMessage).toMatch(/^€+…$/)
    expect(Buffer.byteLength(kept?.errorMessage ?? '')).toBeGreaterThan(65_530)
  })

  test('completeFile and failFile work on the claims of this manager only', async () => {
    const checkpoints = newManager(db.client)
    const other = newManager(db.client, { pipeline: checkpoints.pipeline })
    await claim(checkpoints, 'a')
    await claim(checkpoints, 'b')
    await expect(other.completeFile('a')).rejects.toThrow(ClaimLostError)
    await expect(checkpoints.failFile('never claimed', 'x')).rejects.toThrow(ClaimLostError)
    expect(await checkpoints.completeFile('a', { totalRows: 1 })).toEqual({ outcome: 'completed' })
    expect(await checkpoints.failFile('b', 'broken', { retryable: false })).toMatchObject({
      status: 'dead_letter',
    })
    await expect(checkpoints.completeFile('a')).rejects.toThrow(ClaimLostError)
  })

  test('a claim that was taken over finds out, aborts its signal and changes nothing', async () => {
    const checkpoints = newManager(db.client)
    const zombie = await claim(checkpoints)
    await zombie.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
    await checkpoints.requeueFile(zombie.fileUrl, { force: true, reason: 'hung', actor: 'me' })
    const holder = await claim(checkpoints)
    expect(zombie.signal.aborted).toBe(false)
    const save = zombie.saveCheckpoint({ cursor: 2, itemsProcessed: 2 })
    await expect(save).rejects.toThrow(ClaimLostError)
    expect(zombie.signal.aborted).toBe(true)
    expect(zombie.signal.reason).toBeInstanceOf(ClaimLostError)
    expect(zombie.ended).toBe('lost')
    for (const call of [
      () => zombie.persistRecords('events', [{ id: 100 }], { cursor: 2, itemsProcessed: 2 }),
      () => zombie.extend(),
      () => zombie.complete(),
      () => zombie.fail('x'),
      () => zombie.release(),
      () => zombie.refresh(),
    ]) {
      await expect(call()).rejects.toThrow(ClaimLostError)
    }
    expect(await db.query('select from events where id = 100')).toEqual([])
    // The manager's claim on that URL is the new one.
    expect(await checkpoints.completeFile(holder.fileUrl)).toEqual({ outcome: 'completed' })
  })

  test('extend renews the lease', async () => {
    const first = await claim(newManager(db.client))
    const before = first.leaseExpiresAt
    await db.query(`update filemark.file_checkpoints set lease_expires_at = lease_expires_at - interval '100 s'
                     where file_url = '${first.fileUrl}'`)
    const extended = await first.extend()
    expect(extended.getTime()).toBeGreaterThanOrEqual(before.getTime())
    expect(first.leaseExpiresAt).toEqual(extended)
  })

  test('a checkpoint that goes back is a conflict, and the claim stays where it is', async () => {
    const first = await claim(newManager(db.client))
    await first.saveCheckpoint({ cursor: 5, itemsProcessed: 5 })
    await expect(first.saveCheckpoint({ cursor: 4, itemsProcessed: 4 })).rejects.toThrow(
      CheckpointConflictError,
    )
    expect(first).toMatchObject({ cursor: 5, itemsProcessed: 5, checkpointSeq: 1 })
    await first.saveCheckpoint({ cursor: 6, itemsProcessed: 6 })
    expect(first.checkpointSeq).toBe(2)
  })

  test('a claim that another one of the same token has moved on finds where it stands', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    await db.query(
      `select public.checkpoint_file('${first.fileUrl}', ${first.claimToken}, '7', 7, p_pipeline => '${first.pipeline}')`,
    )
    await expect(first.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })).rejects.toThrow(
      CheckpointConflictError,
    )
    expect(first).toMatchObject({ cursor: 7, itemsProcessed: 7, checkpointSeq: 1 })
    await first.saveCheckpoint({ cursor: 8, itemsProcessed: 8 })
  })

  test('errors come by the code of the database', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    const cases: [() => Promise<unknown>, typeof FilemarkError, string][] = [
      [() => claim(checkpoints, ''), InvalidArgumentError as typeof FilemarkError, 'PT400'],
      [() => checkpoints.requeueFile('unknown'), UnknownFileError as typeof FilemarkError, 'PT404'],
      [() => checkpoints.requeueFile(first.fileUrl), InvalidStateError as typeof FilemarkError, 'PT422'],
      [
        () => first.saveCheckpoint({ cursor: 'x'.repeat(2_000_000), itemsProcessed: 1 }),
        TooLargeError as typeof FilemarkError,
        'PT413',
      ],
      [() => first.saveCheckpoint({ cursor: 'NUL \0', itemsProcessed: 1 }), FilemarkError, '22P05'],
    ]
    for (const [call, ErrorClass, code] of cases) {
      const error = await call().catch((thrown: unknown) => thrown)
      expect(error).toBeInstanceOf(ErrorClass)
      expect(error).toMatchObject({ code, name: ErrorClass.name, cause: expect.anything() })
    }
    const lost = await claim(checkpoints, 'b')
    await lost.release()
    await expect(lost.extend()).rejects.toMatchObject({
      code: 'PT409',
      detail: expect.stringContaining('released'),
      hint: expect.stringContaining('Stop working'),
    })
  })

  test('requeueFile goes back to the checkpoint asked for', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    for (const n of [1, 2, 3]) await first.saveCheckpoint({ cursor: n, itemsProcessed: n })
    await first.fail(new PermanentError('broken'))
    expect(await checkpoints.requeueFile(first.fileUrl, { from: 'checkpoint:2' })).toEqual({
      status: 'pending',
      checkpointSeq: expect.any(Number),
    })
    expect(await claim(checkpoints)).toMatchObject({ cursor: 2, itemsProcessed: 2 })
    await checkpoints.requeueFile(first.fileUrl, { from: 'start', force: true })
    expect(await claim(checkpoints)).toMatchObject({ cursor: null, hasCheckpoint: false, itemsProcessed: 0 })
  })

  test('skipFile takes a file out of the queue until it is requeued', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    await expect(checkpoints.skipFile(first.fileUrl)).rejects.toThrow(InvalidStateError)
    await first.release()
    await checkpoints.skipFile(first.fileUrl, { reason: 'not ours', actor: 'me' })
    expect(await checkpoints.getFile(first.fileUrl)).toMatchObject({ status: 'skipped' })
    expect(await checkpoints.claimFile(file(first.fileUrl))).toBeNull()
    await checkpoints.requeueFile(first.fileUrl)
    expect(await checkpoints.claimFile(file(first.fileUrl))).not.toBeNull()
  })

  test('a purged file is processed, and little else is known of it', async () => {
    const checkpoints = newManager(db.client)
    const first = await claim(checkpoints)
    await first.saveCheckpoint({ cursor: 1, itemsProcessed: 1 })
    await first.complete()
    await db.query(`select filemark.configure_pipeline('${checkpoints.pipeline}', '{"keep_files_days": 0}')`)
    await db.query(`select filemark.purge_files(p_pipeline => '${checkpoints.pipeline}')`)
    expect(await checkpoints.getFile(first.fileUrl)).toMatchObject({
      status: 'completed',
      fileType: first.fileType,
      fileTimestamp: first.fileTimestamp,
      claimToken: first.claimToken,
      createdAt: null,
      itemsProcessed: null,
    })
    expect(await checkpoints.isProcessed(first.fileUrl)).toBe(true)
    expect(await checkpoints.claimFile(file(first.fileUrl))).toBeNull()
  })

  test('stats tells a pipeline in numbers, and nothing of one never used', async () => {
    const checkpoints = newManager(db.client)
    expect(await checkpoints.stats()).toBeNull()
    await (await claim(checkpoints, 'a')).complete({ totalRows: 5 })
    await (await claim(checkpoints, 'b')).fail('x')
    expect(await checkpoints.stats()).toMatchObject({
      pipeline: checkpoints.pipeline,
      completed: 1,
      failed: 1,
      total: 2,
      recordsTotal: 5,
      failureRatio: 0.5,
      oldestPendingAgeSeconds: null,
      lastCompletedAt: expect.any(Date),
    })
  })

  test('a call ends at once when its signal aborts', async () => {
    const checkpoints = newManager(db.client)
    const reason = new Error('enough')
    await expect(checkpoints.getFile('a', { signal: AbortSignal.abort(reason) })).rejects.toBe(reason)
    const controller = new AbortController()
    const call = checkpoints.stats({ signal: controller.signal })
    controller.abort(reason)
    await expect(call).rejects.toBe(reason)
  })
})
