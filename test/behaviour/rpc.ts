import type { SupabaseClient } from '@supabase/supabase-js'
import type { Sql } from 'postgres'
import { functions } from '../../sdk/functions.ts'

/** Calls a public function with arguments given without their `p_`; the rows are as postgres.js would give them. */
export type Rpc = (name: string, args: Record<string, unknown>) => Promise<Record<string, unknown>[]>

/** The database refused a call over HTTP, with an SQLSTATE. */
export class RefusedByApi extends Error {
  readonly code: string
  constructor(code: string, message: string) {
    super(message)
    this.code = code
  }
}

const transports = new WeakMap<Sql, Rpc>()

/** How calls on `sql` go over HTTP; undefined where they are direct. */
export function rpcOf(sql: Sql): Rpc | undefined {
  return transports.get(sql)
}

/** From now on `call(sql, …)` of a public function goes through `client`. */
export function useRpc(sql: Sql, client: SupabaseClient): void {
  transports.set(sql, async (name, args) => {
    const named = Object.fromEntries(Object.entries(args).map(([key, value]) => [`p_${key}`, value]))
    const { data, error, status } = await client.rpc(name, named)
    if (error && /^[0-9A-Z]{5}$/.test(error.code)) throw new RefusedByApi(error.code, error.message)
    if (error) throw new Error(`${name}: HTTP ${status} ${error.code} ${error.message}`)
    return asRows(name, data)
  })
}

/** A type of a function's argument or result in sdk/functions.ts. */
interface Definition {
  returns: string
  columns?: Record<string, string>
}

function asRows(name: string, data: unknown): Record<string, unknown>[] {
  const definition = (functions as Record<string, Definition>)[name]
  if (!definition) throw new Error(`sdk/functions.ts does not know ${name}: npm run build:types`)
  const { returns, columns } = definition
  // `select * from f()` gives the one value of a function a column of the function's name.
  if (!columns) return [{ [name]: returns === 'void' ? '' : asValue(returns, data) }]
  return (data as Record<string, unknown>[]).map((row) =>
    Object.fromEntries(
      Object.entries(row).map(([column, value]) => [column, asValue(columns[column], value)]),
    ),
  )
}

function asValue(type: string | undefined, value: unknown): unknown {
  if (type === undefined) throw new Error(`a column that sdk/functions.ts does not know: npm run build:types`)
  if (value === null) return null
  if (type === 'timestamptz') return new Date(value as string)
  if (type !== 'bigint') return value
  if (!Number.isSafeInteger(value)) throw new Error(`${value} has lost digits on its way through JSON`)
  return String(value)
}
