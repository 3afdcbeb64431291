import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { fileURLToPath } from 'node:url'

/** A `filemark run` of its own process. */
export interface Worker {
  id: string
  pid: number
  /** What it printed so far, line by line. */
  lines: string[]
  kill: (signal: NodeJS.Signals) => void
  /** How it ended: `exit 0`, `SIGKILL`. */
  ended: Promise<string>
}

/** Starts a worker from this repository's source. It is killed when this process exits. */
export function startWorker(id: string, args: readonly string[]): Worker {
  const program = fileURLToPath(new URL('../sdk/cli/main.ts', import.meta.url))
  const child = spawn(process.execPath, [program, 'run', ...args, '--worker-id', id], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const killAtExit = () => child.kill('SIGKILL')
  process.once('exit', killAtExit)
  const lines: string[] = []
  for (const stream of [child.stdout, child.stderr]) collectLines(stream, lines)
  return {
    id,
    pid: child.pid ?? 0,
    lines,
    kill: (signal) => child.kill(signal),
    ended: endOf(child).finally(() => process.off('exit', killAtExit)),
  }
}

async function endOf(child: ChildProcess): Promise<string> {
  // `close`, not `exit`: what it printed last is read by then.
  const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null]
  return signal ?? `exit ${code}`
}

function collectLines(stream: NodeJS.ReadableStream, lines: string[]): void {
  let rest = ''
  stream.setEncoding('utf8')
  stream.on('data', (text: string) => {
    const complete = (rest + text).split('\n')
    rest = complete.pop() ?? ''
    lines.push(...complete)
  })
  stream.on('end', () => {
    if (rest !== '') lines.push(rest)
  })
}
