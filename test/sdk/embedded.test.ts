import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { DirectoryInUseError, openEmbedded } from '../../sdk/embedded.ts'
import { CheckpointManager, FilemarkError } from '../../sdk/index.ts'
import { until } from '../wait.ts'
import { file } from './clients.ts'

let dataDir: string
let children: ChildProcess[]
beforeEach(() => {
  dataDir = join(mkdtempSync(join(tmpdir(), 'filemark-embedded-')), 'data')
  children = []
})
afterEach(async () => {
  for (const child of children) child.kill('SIGKILL')
  rmSync(join(dataDir, '..'), { recursive: true, force: true })
})

/** Another process that opens the directory, claims a file, saves a checkpoint and waits for its end. */
async function openInAnotherProcess(): Promise<ChildProcess> {
  const sdk = (name: string) => JSON.stringify(pathToFileURL(join(import.meta.dirname, '../../sdk', name)))
  const program = `
    import { openEmbedded } from ${sdk('embedded.ts')}
    import { CheckpointManager } from ${sdk('index.ts')}
    const db = await openEmbedded({ dataDir: ${JSON.stringify(dataDir)} })
    const checkpoints = new CheckpointManager(db)
    const claim = await checkpoints.claimFile({ url: 'a', type: 'csv', timestamp: new Date() })
    await claim.saveCheckpoint({ cursor: 7, itemsProcessed: 7 })
    console.log('saved')
    process.stdin.resume()`
  const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  children.push(child)
  let output = ''
  child.stdout?.on('data', (data) => {
    output += data
  })
  await until(() => output.includes('saved'), { timeoutMs: 30_000, what: 'the other process' })
  return child
}

test('in memory it is ready to use', async () => {
  await using db = await openEmbedded()
  const checkpoints = new CheckpointManager(db)
  const result = await checkpoints.processFile(file('a'), async (claim) => {
    await db.transaction(async (tx) => {
      await claim.saveCheckpoint({ cursor: 1, itemsProcessed: 1 }, { tx })
    })
  })
  expect(result.outcome).toBe('completed')
})

test('on disk it is there again when it is opened again, and only then', async () => {
  const first = await openEmbedded({ dataDir })
  await new CheckpointManager(first).processFile(file('a'), () => {})
  await expect(openEmbedded({ dataDir })).rejects.toThrow(DirectoryInUseError)
  await first.close()

  const second = await openEmbedded({ dataDir })
  expect(await new CheckpointManager(second).isProcessed('a')).toBe(true)
  await second.exec('drop schema filemark_embedded cascade')
  await second.close()
  // Its tables are there, and nothing says so: the migration stops, and leaves nothing locked.
  await expect(openEmbedded({ dataDir })).rejects.toThrow('already there')
  await expect(openEmbedded({ dataDir })).rejects.toThrow('already there')
})

test('a directory that another process has open is refused; when that was killed, its file is resumed at once', async () => {
  const other = await openInAnotherProcess()
  const refused = openEmbedded({ dataDir })
  await expect(refused).rejects.toThrow(DirectoryInUseError)
  await expect(refused).rejects.toThrow(`${dataDir} is in use by process ${other.pid}`)
  await expect(refused).rejects.toBeInstanceOf(FilemarkError)

  other.kill('SIGKILL')
  await until(() => other.signalCode)
  const db = await openEmbedded({ dataDir })
  expect(await new CheckpointManager(db).claimFile(file('a'))).toMatchObject({ cursor: 7, claimToken: 2 })
  await db.close()
})
