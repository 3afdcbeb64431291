// Run as a child process: reads a file of records and prints how many there were and the memory it took.

import { readRecords } from '../../sdk/cli/formats/read-records.ts'
import { recogniseFile } from '../../sdk/cli/formats/recognise-file.ts'

const path = process.argv[2] as string
const recognised = await recogniseFile(path)
if (recognised.outcome !== 'records') throw new Error(recognised.reason)
let records = 0
let residentBytes = 0
for await (const batch of readRecords(path, recognised.format)) {
  records += batch.records.length
  // Not the kernel's own maximum, which begins with that of the parent process.
  residentBytes = Math.max(residentBytes, process.memoryUsage.rss())
  // As slow as a database: whatever does not wait for its reader piles up.
  if (batch.first % 50_000 === 0) await new Promise((resolve) => setTimeout(resolve, 5))
}
console.log(JSON.stringify({ records, residentMb: residentBytes / 1024 / 1024 }))
