import { createReadStream } from 'node:fs'
import { addAbortSignal, pipeline, type Readable, Transform } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { PermanentError } from '../../errors.ts'

/** A file's bytes, decompressed. */
export interface OpenBytes {
  content: Readable
  /** Bytes of the file itself (compressed, if it is) read so far. */
  bytesRead: () => number
}

/** A file's text: a stream of strings. */
export interface OpenText extends OpenBytes {
  /** Characters of the text read so far. */
  lengthRead: () => number
}

/** Opens a file, decompressing it when `gzip`. Errors, and the signal's abort, end the content with an error. */
export function openBytes(path: string, gzip: boolean, signal?: AbortSignal): OpenBytes {
  const file = createReadStream(path, { highWaterMark: 128 * 1024 })
  if (signal) addAbortSignal(signal, file)
  const content = gzip ? pipeline(file, createGunzip(), ignoreResult) : file
  return { content, bytesRead: () => file.bytesRead }
}

/** {@link openBytes}, decoded as UTF-8; text in another encoding is an error rather than replacement characters. */
export function openText(path: string, gzip: boolean, signal?: AbortSignal): OpenText {
  const { content, bytesRead } = openBytes(path, gzip, signal)
  // `fatal`: decoded leniently, a Latin-1 file would load with its letters destroyed. A byte-order mark is dropped.
  const decoder = new TextDecoder('utf-8', { fatal: true })
  let lengthRead = 0
  const decode = (done: (error: Error | null, text?: string) => void, chunk?: Buffer) => {
    try {
      const text = decoder.decode(chunk, { stream: chunk !== undefined })
      lengthRead += text.length
      done(null, text)
    } catch (error) {
      done(new PermanentError('the file is not UTF-8 text', { cause: error }))
    }
  }
  const text = new Transform({
    readableObjectMode: true,
    readableHighWaterMark: 1,
    transform: (chunk: Buffer, _encoding, done) => decode(done, chunk),
    flush: (done) => decode(done),
  })
  return { content: pipeline(content, text, ignoreResult), bytesRead, lengthRead: () => lengthRead }
}

/** For `pipeline` where the caller reads the last stream to its end: the error comes out there. */
export function ignoreResult(): void {}
