// What one checkpoint costs: `node bench/checkpoint.ts`. One connection to a Postgres server of its own on this machine,
// with fsync on, calls checkpoint_file again and again: median time of a call, and the WAL that a call writes.

import { cpus, loadavg } from 'node:os'
import postgres from 'postgres'
import { installFilemark } from '../test/servers/install.ts'
import { startPostgres } from '../test/servers/postgres.ts'

const calls = 2_000

/** By the size of accumulated_results. */
const cases = { 'no results': 0, '10 kB of results': 10_000, '1 MB of results': 1_000_000 }

await using server = await startPostgres({ fsync: true })
await installFilemark(server.url())
const sql = postgres(server.url(), { max: 1, onnotice: () => {} })

console.log(
  `Postgres ${server.version}, ${cpus().length} × ${cpus()[0]?.model}, load ${loadavg()[0]?.toFixed(1)}`,
)
for (const [name, bytes] of Object.entries(cases)) {
  const count = bytes > 100_000 ? calls / 10 : calls
  // As JSON text it is that long, and it compresses as little as words do.
  const results = bytes ? { seen: randomWords(bytes) } : null
  const [claim] = await sql`select claim_token from claim_file(${name}, 'csv', now(), 'bench')`
  const times: number[] = []
  await sql`checkpoint`
  let before = ''
  for (let seq = 1; seq <= count + 100; seq++) {
    // The first hundred warm up: plans, and the pages that a server's checkpoint has to be written whole after it.
    if (seq === 101) before = await walPosition()
    const began = performance.now()
    await sql`
      select from checkpoint_file(
        ${name}, ${claim?.claim_token}, ${sql.json({ line: seq * 1000, offset: seq * 123_456 })}, ${seq * 1000},
        ${results && sql.json(results)})`
    if (seq > 100) times.push(performance.now() - began)
  }
  const [wal] = await sql`select pg_wal_lsn_diff(${await walPosition()}, ${before})::float8 as bytes`
  const sorted = times.toSorted((a, b) => a - b)
  const percentile = (share: number) => (sorted[Math.floor(share * sorted.length)] ?? 0).toFixed(2)
  console.log(
    `${name}: median ${percentile(0.5)} ms, 95 % within ${percentile(0.95)} ms, ${Math.round(wal?.bytes / count)} bytes of WAL each (${count} calls)`,
  )
}
await sql.end()

async function walPosition(): Promise<string> {
  const [row] = await sql<{ at: string }[]>`select pg_current_wal_insert_lsn()::text as at`
  return row?.at ?? ''
}

function randomWords(bytes: number): string {
  let text = ''
  while (text.length < bytes) text += `${Math.random().toString(36).slice(2)} `
  return text.slice(0, bytes)
}
