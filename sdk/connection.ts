// One way to call a database function over any of the clients. The clients are taken structurally: nothing of them is
// imported.
//
// On a direct connection a call is one statement whose parameters all go as text and whose result comes back as one JSON
// text. So it does not depend on the type parsers the user has set, nor on prepared statements, and works through a
// transaction pooler.

import { type Arguments, encodeArguments, type FunctionName } from './arguments.ts'
import type { Json } from './database.types.ts'
import { errorOfCode, InvalidArgumentError } from './errors.ts'
import { functions } from './functions.ts'
import { NoAnswer, type RetryOptions, untilAnswered } from './retry.ts'
import { decodeResult, type Result } from './rows.ts'

/** A supabase-js client (or one of @supabase/postgrest-js). */
export interface SupabaseClient {
  rpc(name: string, args?: Record<string, unknown>): unknown
}

/** A postgres.js `sql`, or that of a transaction. */
export interface PostgresJsClient {
  unsafe(query: string, parameters?: string[], options?: { prepare?: boolean }): PromiseLike<unknown>
}

/** A node-postgres Pool or Client, a PGlite, or a PGlite transaction. */
export interface QueryClient {
  query(query: string, parameters?: unknown[]): PromiseLike<{ rows: unknown[] }>
}

/** What a CheckpointManager works over. */
export type DatabaseClient = SupabaseClient | PostgresJsClient | QueryClient

/**
 * The caller's open transaction: `tx` of postgres.js `sql.begin(async (tx) => …)`, a node-postgres Client after `begin`,
 * `tx` of PGlite's `db.transaction(async (tx) => …)`.
 */
export type Transaction = PostgresJsClient | QueryClient

export interface CallOptions {
  /** Ends the call and its retries. The call may have taken effect all the same. */
  signal?: AbortSignal | undefined
}

export interface WriteOptions extends CallOptions {
  /**
   * Joins this transaction of a direct connection: the call takes effect when it commits. Such a call is not retried,
   * because an error has ended the transaction. An InvalidArgumentError on supabase-js.
   */
  tx?: Transaction | undefined
}

/** The checkpoint number to save under if the transaction is still that one; otherwise it is p_checkpoint_seq. */
export interface NumberWithin {
  transaction: string
  checkpointSeq: number
}

export interface Connection {
  /**
   * Calls a database function. Throws the FilemarkError of the answer's SQLSTATE, or UnavailableError when no answer
   * came in `retries` tries more.
   */
  call<F extends FunctionName>(name: F, args: Arguments<F>, options?: WriteOptions): Promise<Result<F>>

  /** As call; within `tx` it says in which transaction, whose number is never used again. */
  save<F extends SaveFunction>(
    name: F,
    args: Arguments<F>,
    options: WriteOptions,
    within?: NumberWithin,
  ): Promise<{ rows: Result<F>; transaction: string | undefined }>
}

type SaveFunction = 'checkpoint_file' | 'persist_records'

interface Call {
  name: FunctionName
  args: Record<string, Json>
  within?: NumberWithin | undefined
}

interface Answer {
  value: unknown
  transaction?: string | undefined
}

/** Sends one call. Throws NoAnswer, or the FilemarkError of an answer. */
type Transport = (call: Call, signal: AbortSignal) => Promise<Answer>

/** A connection over any of the clients. */
export function connect(client: DatabaseClient, retry: Required<RetryOptions>): Connection {
  const transport = openTransport(client, false)

  async function send(call: Call, { signal, tx }: WriteOptions): Promise<Answer> {
    const joined = tx === undefined ? transport : joinTransaction(client, tx)
    const tries = { ...retry, ...(tx && { retries: 0 }), signal }
    return await untilAnswered(call.name, (attempt) => joined(call, attempt), tries)
  }

  return {
    async call(name, args, options = {}) {
      const { value } = await send({ name, args: encodeArguments(name, args) }, options)
      return decodeResult(name, value)
    },
    async save(name, args, options, within) {
      const { value, transaction } = await send({ name, args: encodeArguments(name, args), within }, options)
      return { rows: decodeResult(name, value), transaction }
    },
  }
}

function openTransport(client: DatabaseClient, isTransaction: boolean): Transport {
  if ((typeof client === 'object' && client !== null) || typeof client === 'function') {
    if ('rpc' in client) return overHttp(client)
    if ('unsafe' in client) {
      return directly((text, values) => client.unsafe(text, values, { prepare: true }), isTransaction)
    }
    if ('query' in client) {
      return directly(async (text, values) => (await client.query(text, values)).rows, isTransaction)
    }
  }
  throw new InvalidArgumentError(
    'client must be a supabase-js client, a postgres.js sql, a node-postgres Pool or Client, or a PGlite',
  )
}

function joinTransaction(client: DatabaseClient, tx: Transaction): Transport {
  if ('rpc' in client) {
    throw new InvalidArgumentError(
      'tx needs a direct connection: over supabase-js each call is a request and a transaction of its own. ' +
        'Use persistRecords, which loads records and saves the checkpoint in one, or give CheckpointManager ' +
        'a postgres.js, node-postgres or PGlite client.',
    )
  }
  // A pool, or a client that hands out transactions, would run the call outside of the caller's one.
  if ('begin' in tx || 'transaction' in tx || 'totalCount' in tx) {
    throw new InvalidArgumentError(
      'tx must be the open transaction itself: of sql.begin(async (tx) => …) with postgres.js, ' +
        'of db.transaction(async (tx) => …) with PGlite, or the client that ran begin with node-postgres',
    )
  }
  const joined = openTransport(tx, true)
  return async (call, signal) => {
    try {
      return await joined(call, signal)
    } catch (error) {
      // A deadlock or a failed serialization: the caller repeats the whole transaction, and looks at the code for it.
      if (error instanceof NoAnswer && isSqlError(error.cause)) throw errorFrom(error.cause, error.cause)
      throw error
    }
  }
}

// ---- direct connections

type RunStatement = (text: string, values: string[]) => PromiseLike<unknown>

function directly(run: RunStatement, isTransaction: boolean): Transport {
  return async (call) => {
    const { text, values } = statement(call, isTransaction)
    let rows: unknown
    try {
      rows = await run(text, values)
    } catch (error) {
      if (!isSqlError(error) || isPassing(error.code)) throw new NoAnswer(error)
      throw errorFrom(error, error)
    }
    // By position: the client may have been told to spell columns in another way.
    const columns = Array.from(rows as Iterable<object>, (row) => Object.values(row) as (string | null)[])
    const results = columns.map(([json]) => (json == null ? null : JSON.parse(json)))
    return {
      value: functions[call.name].returns === 'rows' ? results : results[0],
      transaction: columns[0]?.[1] ?? undefined,
    }
  }
}

/** `select to_json(r)::text as r from public.claim_file(p_file_url => $1::text, …) as r` */
function statement({ name, args, within }: Call, isTransaction: boolean): { text: string; values: string[] } {
  const { args: types, returns, ...rest } = functions[name]
  const values: string[] = []
  const given = (value: string) => `$${values.push(value)}::text`
  const list = Object.entries(args).map(([parameter, value]) => {
    if (value === null) return `${parameter} => null`
    const type = (types as Record<string, string>)[parameter]
    const text = given(typeof value === 'string' && type !== 'jsonb' ? value : JSON.stringify(value))
    if (type === 'text[]') return `${parameter} => array(select jsonb_array_elements_text(${text}::jsonb))`
    if (parameter !== 'p_checkpoint_seq' || !within) return `${parameter} => ${text}::${type}`
    return (
      `${parameter} => case when pg_current_xact_id_if_assigned()::text = ${given(within.transaction)} ` +
      `then ${given(String(within.checkpointSeq))}::bigint else ${text}::bigint end`
    )
  })
  const call = `from public.${name}(${list.join(', ')}) as r`
  if (returns === 'void') return { text: `select null::text as r ${call}`, values }
  // A function that returns a table of one column is a scalar to SQL.
  const columns = 'columns' in rest ? Object.keys(rest.columns) : []
  const row = columns.length === 1 ? `json_build_object('${columns[0]}', r)` : 'to_json(r)'
  const transaction = isTransaction ? ', pg_current_xact_id_if_assigned()::text as x' : ''
  return { text: `select ${row}::text as r${transaction} ${call}`, values }
}

// ---- supabase-js

interface HttpResponse {
  data: unknown
  error: { code?: string; message: string; details?: string; hint?: string | undefined } | null
  status?: number
}

function overHttp(client: SupabaseClient): Transport {
  return async ({ name, args }, signal) => {
    let response: HttpResponse
    try {
      response = (await abortable(client.rpc(name, args), signal)) as HttpResponse
    } catch (error) {
      // A client that throws instead of answering, as with throwOnError().
      if (!isCoded(error)) throw new NoAnswer(error)
      response = { data: null, error: { ...error, message: error.message } }
    }
    const { data, error, status = 0 } = response
    if (!error) return { value: data }
    if (error.code ? isPassing(error.code) : isNoAnswer(status, error)) {
      const message = error.code || !status ? error.message : `HTTP ${status}`
      throw new NoAnswer(Object.assign(new Error(message), error, { message, status }))
    }
    throw errorFrom({ ...error, code: error.code || `HTTP${status}`, detail: error.details }, error)
  }
}

function abortable(builder: unknown, signal: AbortSignal): unknown {
  const request = builder as { abortSignal?: (signal: AbortSignal) => unknown }
  return typeof request.abortSignal === 'function' ? request.abortSignal(signal) : request
}

/**
 * Without an error code it is not PostgREST's answer, but that of the network or of something in between; unless the code
 * is there and empty: so PostgREST (12 and others) answers 400 when the server crashes under the call.
 */
function isNoAnswer(status: number, error: { code?: string }): boolean {
  return error.code === '' || status < 400 || status === 408 || status === 429 || status >= 500
}

// ---- errors

interface SqlError {
  code: string
  message: string
  detail?: string | undefined
  hint?: string | undefined
}

/** An error of the server has a severity; a network error may have a code of five letters too (EPIPE). */
function isSqlError(error: unknown): error is SqlError {
  return isCoded(error) && 'severity' in error
}

function isCoded(error: unknown): error is SqlError {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && error.code !== ''
}

/**
 * Connection errors, a server that shuts down or starts, no free connection, a deadlock; PGRST000 to 003 are PostgREST's
 * words for the first of them. The call had no effect, or an unknown one, and may succeed when it is repeated.
 */
function isPassing(code: string): boolean {
  return /^(08...|57P0[123]|40001|40P01|53300|PGRST00[0-3])$/.test(code)
}

function errorFrom({ code, message, detail, hint }: SqlError, cause: unknown): Error {
  return errorOfCode(code, message, { cause, detail, hint })
}
