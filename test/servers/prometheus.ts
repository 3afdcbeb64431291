import { type ChildProcess, spawn } from 'node:child_process'
import { cp, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { until } from '../wait.ts'
import { freePort } from './free-port.ts'
import { startWatchdog } from './watchdog.ts'

export interface PrometheusServer extends AsyncDisposable {
  readonly url: string
  /** The `data` of an answer of its HTTP API, for example `/api/v1/query` with `query`. Throws what it refuses. */
  get(path: string, parameters?: Record<string, string>): Promise<unknown>
}

/**
 * Starts the Prometheus that is installed (Debian's package) with a configuration and the files that it names, on a free
 * port and with data of its own. Returns when it answers.
 */
export async function startPrometheus(
  configuration: string,
  files: { path: string; text?: string; copyOf?: string }[],
): Promise<PrometheusServer> {
  const directory = await mkdtemp(join(tmpdir(), 'filemark-prometheus-'))
  const watchdog = startWatchdog('TERM', directory)
  await writeFile(join(directory, 'prometheus.yml'), configuration)
  for (const { path, text, copyOf } of files) {
    if (copyOf) await cp(copyOf, join(directory, path))
    else await writeFile(join(directory, path), text ?? '')
  }
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  let output = ''
  const child: ChildProcess = spawn(
    'prometheus',
    [
      `--config.file=${directory}/prometheus.yml`,
      `--storage.tsdb.path=${directory}/data`,
      `--web.listen-address=127.0.0.1:${port}`,
    ],
    { cwd: directory, detached: true, stdio: ['ignore', 'pipe', 'pipe'] },
  )
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (data: Buffer) => {
      output += data
    })
  }
  const failed = new Promise<Error>((done) => child.once('error', done))
  watchdog.watch(child)
  const ended = (): boolean => child.exitCode !== null || child.signalCode !== null

  async function dispose(): Promise<void> {
    if (child.pid !== undefined && !ended()) {
      child.kill('SIGTERM')
      await until(ended, { what: 'Prometheus to stop' }).catch(() => child.kill('SIGKILL'))
    }
    await rm(directory, { recursive: true, force: true, maxRetries: 10 })
    watchdog.dismiss()
  }

  const isReady = async (): Promise<boolean> =>
    (await fetch(`${url}/-/ready`).catch(() => undefined))?.status === 200
  const outcome = await Promise.race([
    failed,
    until(async () => ended() || (await isReady()), { timeoutMs: 60_000, what: 'Prometheus to be ready' }),
  ])
  if (outcome instanceof Error || ended()) {
    await dispose()
    throw outcome instanceof Error ? outcome : new Error(`Prometheus did not start:\n${output}`)
  }

  return {
    url,
    async get(path, parameters = {}) {
      const answer = await fetch(`${url}${path}?${new URLSearchParams(parameters)}`)
      const { status, data, error } = (await answer.json()) as {
        status: string
        data: unknown
        error?: string
      }
      if (status !== 'success') throw new Error(`${path} ${JSON.stringify(parameters)}: ${error}`)
      return data
    },
    [Symbol.asyncDispose]: dispose,
  }
}
