// A lock on a directory by a file in it, for processes of one machine. The file names the process that holds it; it stays
// behind when that is killed, and is then seen to be stale: no such process, or another one that got its number since.

import { execFileSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { linkSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { FilemarkError } from './errors.ts'

/** The directory is open already, in another process or in this one. */
export class DirectoryInUseError extends FilemarkError {
  override readonly name = 'DirectoryInUseError'

  constructor(message: string) {
    super(message, '55006')
  }
}

interface Holder {
  pid: number
  host: string
  /** When the process started, in whatever form the system tells it. */
  started: string
}

/** Takes the directory (made when missing), or throws DirectoryInUseError. Answers what gives it back. */
export function lockDirectory(directory: string): () => void {
  mkdirSync(directory, { recursive: true })
  const lock = join(directory, 'filemark.lock')
  const mine = JSON.stringify({
    pid: process.pid,
    host: hostname(),
    started: startOf(process.pid),
    id: randomUUID(),
  })
  if (!create(lock, mine)) {
    refuseUnlessStale(directory, lock)
    replaceStale(directory, lock, mine)
  }
  return () => {
    if (read(lock) === mine) rmSync(lock, { force: true })
  }
}

/** Two processes may find the same stale lock: one removes it, the other must not remove the new one. */
function replaceStale(directory: string, lock: string, mine: string): void {
  const takeover = `${lock}.takeover`
  if (!create(takeover, mine)) {
    throw new DirectoryInUseError(
      `${directory} is being opened by another process; if none is, remove ${takeover}, which a crash has left behind`,
    )
  }
  try {
    refuseUnlessStale(directory, lock)
    rmSync(lock, { force: true })
    if (!create(lock, mine)) refuseUnlessStale(directory, lock)
  } finally {
    rmSync(takeover, { force: true })
  }
}

/** Makes the file with its content in one step, unless it is there. */
function create(path: string, text: string): boolean {
  const draft = `${path}.${randomUUID()}`
  writeFileSync(draft, text)
  try {
    linkSync(draft, path)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false
    throw error
  } finally {
    rmSync(draft, { force: true })
  }
}

function refuseUnlessStale(directory: string, lock: string): void {
  const text = read(lock)
  if (text === undefined) return
  const holder = parse(text)
  if (holder.host === hostname() && !isRunning(holder)) return
  const where = holder.host === hostname() ? '' : ` on ${holder.host}`
  throw new DirectoryInUseError(
    `${directory} is in use by process ${holder.pid}${where}. An embedded database has one process at a time: ` +
      `end that one, or use a Postgres server. If it is gone for good, remove ${lock}`,
  )
}

function parse(text: string): Holder {
  try {
    const { pid, host, started } = JSON.parse(text) as Holder
    return { pid, host, started }
  } catch {
    // Not ours: left alone, as that of another machine is.
    return { pid: 0, host: 'an unknown machine', started: '' }
  }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}

function isRunning({ pid, started }: Holder): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    // EPERM: it runs, as another user.
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false
  }
  return startOf(pid) === started
}

/** What tells a process from an earlier one of the same number; empty where the system does not say. */
function startOf(pid: number): string {
  try {
    if (process.platform === 'linux') {
      const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
      // The name, in parentheses, may hold anything; the start is the 20th field after it.
      const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ')
      return `${boot} ${fields?.[19]}`
    }
    if (process.platform === 'win32') return ''
    return execFileSync('ps', ['-o', 'lstart=', '-p', String(pid)], { encoding: 'utf8' }).trim()
  } catch {
    return ''
  }
}
