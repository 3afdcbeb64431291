import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

/** The command line as a process of its own, run from source. */
export interface FilemarkProcess {
  /** All it printed so far on stdout. */
  stdout: () => string
  stderr: () => string
  kill: (signal: NodeJS.Signals) => void
  /** Its exit code, or the signal that killed it. */
  ended: Promise<number | NodeJS.Signals>
}

const running = new Set<FilemarkProcess>()

/** Kills what a failed test has left running. */
export async function endFilemarks(): Promise<void> {
  for (const filemark of running) filemark.kill('SIGKILL')
  await Promise.all([...running].map(({ ended }) => ended))
}

const PROGRAM = fileURLToPath(new URL('../../sdk/cli/main.ts', import.meta.url))

/** Starts `filemark …args` in a directory. */
export function startFilemark(cwd: string, args: readonly string[]): FilemarkProcess {
  const child = spawn(process.execPath, [PROGRAM, ...args], { cwd, stdio: ['ignore', 'pipe', 'pipe'] })
  const printed = { stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    printed.stdout += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    printed.stderr += text
  })
  const filemark: FilemarkProcess = {
    stdout: () => printed.stdout,
    stderr: () => printed.stderr,
    kill: (signal) => child.kill(signal),
    ended: once(child, 'close').then(([code, signal]) => {
      running.delete(filemark)
      return signal ?? code
    }),
  }
  running.add(filemark)
  return filemark
}

/** Runs `filemark …args` to its end. */
export async function runFilemark(cwd: string, args: readonly string[]) {
  const filemark = startFilemark(cwd, args)
  const code = await filemark.ended
  return { code, stdout: filemark.stdout(), stderr: filemark.stderr() }
}
