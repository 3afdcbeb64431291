import { openBytes } from './open-text.ts'
import { formatOfName, KNOWN_EXTENSIONS, type RecordFormat } from './record-format.ts'

/** Whether a file is a list of records, and why not. */
export type Recognised =
  | { outcome: 'records'; format: RecordFormat }
  | { outcome: 'no_records'; reason: string }

const HEAD_BYTES = 64 * 1024

/**
 * Says from a file's name and its first bytes whether it is a list of records. A file that is of a known kind
 * but damaged counts as one: reading it will say what is wrong, and where.
 */
export async function recogniseFile(path: string): Promise<Recognised> {
  const format = formatOfName(path)
  if (!format) return no(`the name does not end in ${KNOWN_EXTENSIONS.join(', ')} or one of these and .gz`)
  const head = await readHead(path, format.gzip)
  if (head === null) return { outcome: 'records', format }
  if (head.includes(0) && !isUtf16(head)) return no('binary data, not text')
  // Lenient, as the last character may be cut.
  const text = new TextDecoder().decode(head).trimStart()
  if (format.fileType === 'json') return recogniseJson(text, format)
  if (format.fileType === 'ndjson') return recogniseJsonLines(text, format)
  return { outcome: 'records', format }
}

/** The first bytes of the content; null when they cannot be decompressed. */
async function readHead(path: string, gzip: boolean): Promise<Buffer | null> {
  const chunks: Buffer[] = []
  let length = 0
  try {
    for await (const chunk of openBytes(path, gzip).content as AsyncIterable<Buffer>) {
      chunks.push(chunk)
      length += chunk.length
      if (length >= HEAD_BYTES) break
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code?.startsWith('Z_')) return null
    throw error
  }
  return Buffer.concat(chunks).subarray(0, HEAD_BYTES)
}

function recogniseJson(text: string, format: RecordFormat): Recognised {
  const kind = firstKind(text)
  if (kind === 'array') {
    const element = firstKind(text.slice(1).trimStart())
    if (element === null || element === 'object') return { outcome: 'records', format }
    return no(`an array of ${element}s, not of records`)
  }
  // Many programs write one object per line and call it .json.
  if (kind === 'object' && isSeveralLines(text)) {
    return { outcome: 'records', format: { ...format, fileType: 'ndjson' } }
  }
  if (kind !== null) return no(`a JSON ${kind}, not an array of records`)
  return no(text === '' ? 'empty, not an array of records' : `not JSON: it begins with ${excerpt(text)}`)
}

function recogniseJsonLines(text: string, format: RecordFormat): Recognised {
  const kind = firstKind(text)
  if (kind === 'object' || text === '') return { outcome: 'records', format }
  return no(kind === null ? `not JSON: it begins with ${excerpt(text)}` : `lines of ${kind}s, not of records`)
}

function firstKind(text: string): 'object' | 'array' | 'string' | 'number' | 'boolean' | 'null' | null {
  if (text.startsWith('{')) return 'object'
  if (text.startsWith('[')) return 'array'
  if (text.startsWith('"')) return 'string'
  if (/^-?\d/.test(text)) return 'number'
  if (/^(true|false)\b/.test(text)) return 'boolean'
  return /^null\b/.test(text) ? 'null' : null
}

/** Whether the first line is a whole JSON value and another object begins after it: no JSON text has two. */
function isSeveralLines(text: string): boolean {
  const end = text.indexOf('\n')
  if (end < 0 || !text.slice(end).trimStart().startsWith('{')) return false
  try {
    JSON.parse(text.slice(0, end))
    return true
  } catch {
    return false
  }
}

function isUtf16(head: Buffer): boolean {
  return (head[0] === 0xff && head[1] === 0xfe) || (head[0] === 0xfe && head[1] === 0xff)
}

function excerpt(text: string): string {
  return JSON.stringify(text.slice(0, 20))
}

function no(reason: string): Recognised {
  return { outcome: 'no_records', reason }
}
