// Rows on their way out of the database: camelCase, numbers as numbers, times as Date. The types follow the generated
// ones; a file's column may be null where the table's column of that name may.

import type { FunctionName } from './arguments.ts'
import type { Database, Json } from './database.types.ts'
import { FilemarkError } from './errors.ts'
import { functions } from './functions.ts'

type CamelCase<S extends string> = S extends `${infer Head}_${infer Tail}`
  ? `${Head}${Capitalize<CamelCase<Tail>>}`
  : S

type Definitions = typeof functions
type TableRow = Database['filemark']['Tables']['file_checkpoints']['Row']
type Returned<F extends FunctionName> = Database['public']['Functions'][F]['Returns']

/** The functions whose rows are those of the files' table; the columns of others are never null. */
type ReturnsFiles = 'get_file_checkpoint' | 'list_file_checkpoints' | 'claim_file' | 'claim_next_files'
type Nullable<F, K> = F extends ReturnsFiles
  ? K extends keyof TableRow
    ? null extends TableRow[K]
      ? null
      : never
    : never
  : never
type Value<SqlType, T> = SqlType extends 'timestamptz' ? Date : T

/** A row of what function F returns, as the SDK hands it out. */
export type RowOf<F extends FunctionName> = Definitions[F] extends { columns: infer Columns }
  ? Returned<F> extends (infer Row)[]
    ? {
        [K in keyof Row & keyof Columns & string as CamelCase<K>]: Value<Columns[K], Row[K]> | Nullable<F, K>
      }
    : never
  : never

/** What a call of function F comes back with. */
export type Result<F extends FunctionName> = Definitions[F]['returns'] extends 'rows'
  ? RowOf<F>[]
  : Definitions[F]['returns'] extends 'void'
    ? undefined
    : Value<Definitions[F]['returns'], Returned<F>>

/** The JSON answer of a function as the SDK hands it out. Throws FilemarkError for a number beyond 2^53. */
export function decodeResult<F extends FunctionName>(name: F, answer: unknown): Result<F>
export function decodeResult(name: FunctionName, answer: unknown): unknown {
  const { returns, ...rest } = functions[name]
  if (returns === 'void') return undefined
  if (returns !== 'rows') return decodeValue(name, returns, answer)
  if (!Array.isArray(answer)) throw new FilemarkError(`${name} did not answer with rows`, 'UNEXPECTED')
  const columns = 'columns' in rest ? Object.entries<string>(rest.columns) : []
  return answer.map((row: Record<string, unknown>) =>
    Object.fromEntries(
      columns.map(([column, type]) => [camelCase(column), decodeValue(column, type, row[column])]),
    ),
  )
}

function decodeValue(name: string, type: string, value: unknown): unknown {
  if (value === null || value === undefined) return null
  switch (type) {
    case 'bigint':
    case 'integer':
      // A number that JSON.parse has rounded is not a safe integer either.
      if (Number.isSafeInteger(value)) return value
      throw new FilemarkError(`${name} is ${value}: beyond 2^53, a JavaScript number cannot hold it`, '22003')
    case 'timestamptz': {
      const time = new Date(String(value))
      if (!Number.isNaN(time.getTime())) return time
      throw new FilemarkError(`${name} is ${value}: a JavaScript Date cannot hold it`, '22008')
    }
    case 'numeric':
    case 'double precision':
      return Number(value)
    default:
      return value
  }
}

function camelCase(name: string): string {
  return name.replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
}

export type { Json }
