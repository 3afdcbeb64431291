import { PermanentError } from '../../errors.ts'
import { MAX_RECORD_LENGTH, type SourceRecord } from './record-format.ts'

/** A JSON value as a record. Throws a PermanentError when it is not an object. */
export function asRecord(value: unknown, number: number): SourceRecord {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as SourceRecord
  const kind = value === null ? 'null' : Array.isArray(value) ? 'an array' : `a ${typeof value}`
  throw new PermanentError(`record ${number} is ${kind}, not an object`)
}

/** For a record that no end was found of. */
export function recordTooLong(number: number): PermanentError {
  return new PermanentError(`record ${number} is longer than ${MAX_RECORD_LENGTH} characters`)
}
