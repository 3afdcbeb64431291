// A worker that loads files until it is killed: `node worker.ts <database url> <mode> <worker id>`, forked by
// crash.test.ts. It tells its parent of each save and goes when its parent is gone.

import pg from 'pg'
import postgres from 'postgres'
import { CheckpointManager, type FileClaim } from '../../sdk/index.ts'

/** How records and cursor come into one transaction; also the name of the pipeline. */
export type Mode = 'persist' | 'tx'

export interface LoadedRecord {
  pipeline: string
  file_url: string
  record_number: number
  claim_token: number
}

/** Loads a batch and saves that the file is done up to `next`, all or nothing. */
type SaveBatch = (claim: FileClaim, records: LoadedRecord[], next: number) => Promise<unknown>

const batchSize = 5

const [databaseUrl = '', mode = '', workerId = ''] = process.argv.slice(2)

function connect(): { manager: CheckpointManager; save: SaveBatch } {
  const options = { pipeline: mode, workerId, retries: 8 }
  if (mode === 'persist') {
    const pool = new pg.Pool({ connectionString: databaseUrl, max: 2, application_name: workerId })
    // An idle connection that is lost when the server crashes; the pool makes a new one.
    pool.on('error', () => {})
    return {
      manager: new CheckpointManager(pool, options),
      save: (claim, records, next) =>
        claim.persistRecords('loaded', records, { cursor: next, itemsProcessed: next }),
    }
  }
  const sql = postgres(databaseUrl, {
    max: 2,
    connection: { application_name: workerId },
    onnotice: () => {},
  })
  return {
    manager: new CheckpointManager(sql, options),
    save: (claim, records, next) =>
      sql.begin(async (tx) => {
        await tx`select filemark.assert_claim(${claim.fileUrl}, ${claim.claimToken}, ${claim.pipeline})`
        for (const record of records) await tx`insert into public.loaded ${tx(record)}`
        await claim.saveCheckpoint({ cursor: next, itemsProcessed: next }, { tx })
      }),
  }
}

async function work(): Promise<never> {
  const { manager, save } = connect()
  for (;;) {
    const [claim] = await manager.claimNextFiles()
    if (!claim) {
      // Nothing is due: others hold it, or a lease has yet to end.
      await new Promise((resolve) => setTimeout(resolve, 50))
      continue
    }
    await manager.processClaim(claim, async () => {
      const { records: total } = claim.metadata as { records: number }
      while (claim.itemsProcessed < total) {
        const from = Number(claim.cursor ?? 0)
        const next = Math.min(from + batchSize, total)
        const records = Array.from({ length: next - from }, (_, index) => ({
          pipeline: claim.pipeline,
          file_url: claim.fileUrl,
          record_number: from + index,
          claim_token: claim.claimToken,
        }))
        await save(claim, records, next)
        process.send?.('saved')
      }
      return { totalRows: total, persistedRows: total }
    })
  }
}

if (process.send) {
  process.on('disconnect', () => process.exit(0))
  await work()
}
