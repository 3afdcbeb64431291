// What a call can fail with. The class follows the SQLSTATE, never the text.

export interface FilemarkErrorOptions {
  cause?: unknown
  /** The database's detail line. */
  detail?: string | undefined
  /** The database's hint line. */
  hint?: string | undefined
}

/** A call that failed. `code` is the SQLSTATE (or PostgREST's code), `cause` the error of the client that was used. */
export class FilemarkError extends Error {
  override readonly name: string = 'FilemarkError'
  readonly code: string
  readonly detail: string | undefined
  readonly hint: string | undefined

  constructor(message: string, code: string, options: FilemarkErrorOptions = {}) {
    super(message, 'cause' in options ? { cause: options.cause } : {})
    this.code = code
    this.detail = options.detail
    this.hint = options.hint
  }
}

/** An argument that cannot be right; the message names it, its value and what is allowed. */
export class InvalidArgumentError extends FilemarkError {
  override readonly name = 'InvalidArgumentError'

  constructor(message: string, options?: FilemarkErrorOptions) {
    super(message, 'PT400', options)
  }
}

/** No file of that URL, or no such pipeline. */
export class UnknownFileError extends FilemarkError {
  override readonly name = 'UnknownFileError'

  constructor(message: string, options?: FilemarkErrorOptions) {
    super(message, 'PT404', options)
  }
}

/** The claim was taken over, ended, or never held. Stop working on the file: another worker does what was not saved. */
export class ClaimLostError extends FilemarkError {
  override readonly name = 'ClaimLostError'

  constructor(message: string, options?: FilemarkErrorOptions) {
    super(message, 'PT409', options)
  }
}

/** The checkpoint does not follow the last one: a gap, a step back, or a repeat with other content. */
export class CheckpointConflictError extends FilemarkError {
  override readonly name = 'CheckpointConflictError'

  constructor(message: string, options?: FilemarkErrorOptions) {
    super(message, 'PT412', options)
  }
}

/** The cursor, the accumulated results or a batch is larger than its limit. */
export class TooLargeError extends FilemarkError {
  override readonly name = 'TooLargeError'

  constructor(message: string, options?: FilemarkErrorOptions) {
    super(message, 'PT413', options)
  }
}

/** Not allowed in the state the file is in, such as a requeue of a file that is being processed. */
export class InvalidStateError extends FilemarkError {
  override readonly name = 'InvalidStateError'

  constructor(message: string, options?: FilemarkErrorOptions) {
    super(message, 'PT422', options)
  }
}

/** No answer came, also not to the retries. Whether the call took effect is unknown; repeating it is safe. */
export class UnavailableError extends FilemarkError {
  override readonly name = 'UnavailableError'

  constructor(message: string, options?: FilemarkErrorOptions) {
    super(message, 'UNAVAILABLE', options)
  }
}

/** Thrown by a handler: more attempts will not help, the file goes to the dead letter at once. */
export class PermanentError extends Error {
  override readonly name = 'PermanentError'
}

/**
 * Thrown by a handler: the next attempt is due after that many seconds (0 to 31,536,000, a year), whatever the backoff
 * says.
 */
export class RetryAfterError extends Error {
  override readonly name = 'RetryAfterError'
  readonly seconds: number

  constructor(message: string, seconds: number, options?: { cause?: unknown }) {
    super(message, options)
    if (!(seconds >= 0 && seconds <= 31_536_000)) {
      throw new InvalidArgumentError(`seconds must be a number from 0 to 31536000, not ${seconds}`)
    }
    this.seconds = seconds
  }
}

const classes: Record<string, new (message: string, options?: FilemarkErrorOptions) => FilemarkError> = {
  PT400: InvalidArgumentError,
  PT404: UnknownFileError,
  PT409: ClaimLostError,
  PT412: CheckpointConflictError,
  PT413: TooLargeError,
  PT422: InvalidStateError,
}

/** The error of that code. */
export function errorOfCode(code: string, message: string, options: FilemarkErrorOptions): FilemarkError {
  const ErrorClass = classes[code]
  return ErrorClass ? new ErrorClass(message, options) : new FilemarkError(message, code, options)
}
