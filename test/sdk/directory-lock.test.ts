import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { DirectoryInUseError, lockDirectory } from '../../sdk/directory-lock.ts'
import { until } from '../wait.ts'

let directory: string
let lock: string
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'filemark-lock-'))
  lock = join(directory, 'filemark.lock')
})
afterEach(() => {
  rmSync(directory, { recursive: true, force: true })
})

const leave = (holder: object) => writeFileSync(lock, JSON.stringify(holder))

test('a directory is locked once, until it is given back', () => {
  const unlock = lockDirectory(directory)
  expect(() => lockDirectory(directory)).toThrow(DirectoryInUseError)
  expect(() => lockDirectory(directory)).toThrow(`${directory} is in use by process ${process.pid}`)
  unlock()
  expect(existsSync(lock)).toBe(false)
  lockDirectory(directory)()
})

test('a directory that is not there is made', () => {
  lockDirectory(join(directory, 'a/b'))()
  expect(existsSync(join(directory, 'a/b'))).toBe(true)
})

test('a lock is stale when its process is gone', () => {
  leave({ pid: 2 ** 22 + 1, host: hostname(), started: 'long ago' })
  lockDirectory(directory)
  expect(JSON.parse(readFileSync(lock, 'utf8'))).toMatchObject({ pid: process.pid })
})

test('a lock is stale when its number has gone to another process since', () => {
  leave({ pid: process.pid, host: hostname(), started: 'another time' })
  lockDirectory(directory)
})

test('a lock of another machine is respected, for nobody here can tell whether it is stale', () => {
  leave({ pid: 1, host: 'elsewhere', started: '' })
  expect(() => lockDirectory(directory)).toThrow('in use by process 1 on elsewhere')
  expect(() => lockDirectory(directory)).toThrow(`remove ${lock}`)
})

test('a lock that cannot be read is respected', () => {
  writeFileSync(lock, '')
  expect(() => lockDirectory(directory)).toThrow(`remove ${lock}`)
})

test('giving back a lock that was taken over takes nothing from its new holder', () => {
  const unlock = lockDirectory(directory)
  leave({ pid: 1, host: 'elsewhere', started: '' })
  unlock()
  expect(existsSync(lock)).toBe(true)
})

test('of many that find a stale lock at once, one gets it', async () => {
  leave({ pid: 2 ** 22 + 1, host: hostname(), started: 'long ago' })
  const program = `
    import { lockDirectory } from ${JSON.stringify(pathToFileURL(join(import.meta.dirname, '../../sdk/directory-lock.ts')))}
    process.stdin.once('data', () => {
      try {
        lockDirectory(${JSON.stringify(directory)})
        console.log('mine')
      } catch (error) {
        console.log(error.name)
      }
      process.stdin.resume()
    })
    console.log('ready')`
  const contenders = Array.from({ length: 8 }, () => {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    const lines: string[] = []
    child.stdout.on('data', (data) => lines.push(...String(data).trim().split('\n')))
    return { child: child as ChildProcess, lines }
  })
  try {
    await until(() => contenders.every(({ lines }) => lines.length === 1), { timeoutMs: 30_000 })
    for (const { child } of contenders) child.stdin?.write('go\n')
    await until(() => contenders.every(({ lines }) => lines.length === 2))
    const outcomes = contenders.map(({ lines }) => lines[1])
    expect(outcomes.filter((outcome) => outcome === 'mine')).toHaveLength(1)
    expect(outcomes.filter((outcome) => outcome === 'DirectoryInUseError')).toHaveLength(7)
  } finally {
    for (const { child } of contenders) child.kill('SIGKILL')
  }
})
