// Values on their way into the database. What cannot arrive as it is, is refused here, because the clients would change
// it without a word: JSON has no NaN, JavaScript rounds big integers, a Date may be invalid.

import type { Database, Json } from './database.types.ts'
import { InvalidArgumentError } from './errors.ts'
import { functions } from './functions.ts'

export type FunctionName = keyof typeof functions & keyof Database['public']['Functions']

/** A moment: a Date, or a text that Postgres reads as a timestamptz. */
export type Time = Date | string

type ArgumentTypes<F extends FunctionName> = Database['public']['Functions'][F]['Args']
type SqlType<F extends FunctionName, K> = K extends keyof (typeof functions)[F]['args']
  ? (typeof functions)[F]['args'][K]
  : never
type Accepted<S, T> = S extends 'timestamptz' ? Time : S extends 'jsonb' ? unknown : T

/** The arguments of a function; what is undefined is left to the function's default. */
export type Arguments<F extends FunctionName> = {
  [K in keyof ArgumentTypes<F>]: Accepted<SqlType<F, K>, ArgumentTypes<F>[K]> | null | undefined
}

/**
 * The arguments as JSON values, ready to be sent: times as ISO text, whole numbers as they are. Missing ones are left
 * out, or null where the function has no default, so that the database says what it misses.
 */
export function encodeArguments<F extends FunctionName>(name: F, args: Arguments<F>): Record<string, Json> {
  const given: Record<string, unknown> = args
  const encoded: Record<string, Json> = {}
  Object.entries<string>(functions[name].args).forEach(([parameter, type], position) => {
    const value = given[parameter] ?? null
    if (given[parameter] !== undefined || position < functions[name].required) {
      encoded[parameter] = value === null ? null : encode(parameter, type, value)
    }
  })
  return encoded
}

function encode(name: string, type: string, value: unknown): Json {
  switch (type) {
    case 'bigint':
    case 'integer':
      if (Number.isSafeInteger(value)) return value as number
      throw refused(name, value, 'a whole number within ±(2^53 - 1)')
    case 'timestamptz':
      return encodeTime(name, value)
    case 'jsonb':
      // A record's number goes into a column, which takes it from a text as well; elsewhere it would come back as text.
      return encodeJson(name, value, name === 'p_records')
    case 'boolean':
      if (typeof value === 'boolean') return value
      throw refused(name, value, 'true or false')
    case 'text[]':
      return Array.from(value as Iterable<unknown>, String)
    default:
      return String(value)
  }
}

/** A time as text. Throws InvalidArgumentError for a Date that is none. */
export function encodeTime(name: string, value: unknown): string {
  if (value instanceof Date && !Number.isNaN(value.getTime())) return value.toISOString()
  if (typeof value === 'string') return value
  throw refused(name, value, 'a valid Date or an ISO 8601 text')
}

/**
 * The value as JSON keeps it: the very same one when nothing in it needs care. Dates become text; with `numbersAsText`,
 * so do the numbers that JSON has no word for (bigint, NaN, infinity). Throws InvalidArgumentError for what JSON cannot
 * hold and JSON.stringify would drop or change without a word.
 */
export function encodeJson(name: string, value: unknown, numbersAsText = false): Json {
  const path: (string | number)[] = []
  const above = new Set<unknown>()
  return walk(value)

  function walk(value: unknown): Json {
    if (typeof value === 'string' || typeof value === 'boolean' || value === null) return value
    if (typeof value === 'number' || typeof value === 'bigint') {
      if (Number.isFinite(value)) return value as number
      if (numbersAsText) return String(value)
      throw refused(
        where(),
        value,
        typeof value === 'bigint' ? 'a number, or a text for a big one' : 'a finite number',
      )
    }
    if (typeof value !== 'object' || value instanceof Map || value instanceof Set) {
      throw refused(where(), value, 'what JSON can hold')
    }
    if (value instanceof Date && Number.isNaN(value.getTime())) throw refused(where(), value, 'a valid Date')
    if (above.has(value)) throw refused(where(), 'a value that contains itself', 'what JSON can hold')
    if ('toJSON' in value && typeof value.toJSON === 'function') return walk(value.toJSON())
    above.add(value)
    const same = Array.isArray(value) ? walkArray(value) : walkObject(value as Record<string, unknown>)
    above.delete(value)
    return same
  }

  function walkArray(array: unknown[]): Json {
    let copy: Json[] | undefined
    for (let index = 0; index < array.length; index++) {
      path.push(index)
      const encoded = array[index] === undefined ? null : walk(array[index])
      path.pop()
      if (encoded !== array[index]) {
        copy ??= array.slice() as Json[]
        copy[index] = encoded
      }
    }
    return copy ?? (array as Json[])
  }

  function walkObject(object: Record<string, unknown>): Json {
    let copy: Record<string, Json> | undefined
    for (const key of Object.keys(object)) {
      if (object[key] === undefined) continue
      path.push(key)
      const encoded = walk(object[key])
      path.pop()
      if (encoded !== object[key]) {
        copy ??= { ...object } as Record<string, Json>
        copy[key] = encoded
      }
    }
    return copy ?? (object as Record<string, Json>)
  }

  function where(): string {
    return path.reduce<string>((text, key) => text + (typeof key === 'number' ? `[${key}]` : `.${key}`), name)
  }
}

function refused(name: string, value: unknown, allowed: string): InvalidArgumentError {
  return new InvalidArgumentError(`${name} must be ${allowed}, not ${String(value)}`)
}
