// A worker of the night: `node night-worker.ts <database url> <directory> <worker id> <release>`, forked by night.test.ts.
// It loads the files of three pipelines from a directory into public.loaded. It tells of each save and goes on when it is
// told to; it tells what became of each file; it ends between two files when it is told to stop, or its parent is gone.

import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import pg from 'pg'
import { CheckpointManager, type FileClaim } from '../../sdk/index.ts'

/** 1 keeps each line whole in memory, and the kernel ends it at a long one; 2 does not. */
export type Release = 1 | 2

export type Told = { saved: string; items: number } | { outcome: string; fileUrl: string }

const pipelines = ['ledger', 'events', 'orders']
const batchSize = 5
const longLine = 1_000

const [databaseUrl = '', directory = '', workerId = '', release = ''] = process.argv.slice(2)

async function load(claim: FileClaim): Promise<{ totalRows: number; persistedRows: number }> {
  const lines = (await readFile(join(directory, claim.fileUrl), 'utf8')).trimEnd().split('\n')
  while (claim.itemsProcessed < lines.length) {
    const from = Number(claim.cursor ?? 0)
    const batch = lines.slice(from, from + batchSize)
    if (Number(release) === 1 && batch.some((line) => line.length > longLine))
      process.kill(process.pid, 'SIGKILL')
    const next = from + batch.length
    const records = batch.map((line, index) => ({
      file_url: claim.fileUrl,
      record_number: from + index + 1,
      amount: line.split(',')[0],
      loaded_by: workerId,
    }))
    await claim.persistRecords('public.loaded', records, { cursor: next, itemsProcessed: next })
    await tellAndWait({ saved: claim.fileUrl, items: next })
  }
  return { totalRows: lines.length, persistedRows: lines.length }
}

function tellAndWait(told: Told): Promise<void> {
  return new Promise((resolve) => {
    const goOn = (message: unknown) => {
      if (message !== 'go on') return
      process.off('message', goOn)
      resolve()
    }
    process.on('message', goOn)
    process.send?.(told)
  })
}

async function work(): Promise<void> {
  let isStopped = false
  process.on('message', (message) => {
    if (message === 'stop') isStopped = true
  })
  const pool = new pg.Pool({ connectionString: databaseUrl, max: 2, options: '-c role=filemark_worker' })
  const managers = pipelines.map((pipeline) => new CheckpointManager(pool, { pipeline, workerId }))
  while (!isStopped) {
    let claimed = 0
    for (const manager of managers) {
      const [claim] = isStopped ? [] : await manager.claimNextFiles()
      if (!claim) continue
      claimed++
      const { outcome } = await manager.processClaim(claim, load)
      process.send?.({ outcome, fileUrl: claim.fileUrl } satisfies Told)
    }
    // Nothing is due: others hold it, or a lease has yet to end.
    if (claimed === 0) await new Promise((resolve) => setTimeout(resolve, 100))
  }
  process.exit(0)
}

if (process.send) {
  process.on('disconnect', () => process.exit(0))
  await work()
}
