import { execFile } from 'node:child_process'
import { createWriteStream } from 'node:fs'
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { createGzip, gzipSync } from 'node:zlib'
import { parse as parseCsv } from 'csv-parse/sync'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type ReadOptions, type RecordBatch, readRecords } from '../../sdk/cli/formats/read-records.ts'
import { recogniseFile } from '../../sdk/cli/formats/recognise-file.ts'
import { PermanentError } from '../../sdk/errors.ts'

let directory: string
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'filemark-formats-'))
})
afterAll(() => rm(directory, { recursive: true, force: true }))

async function file(name: string, content: string | Buffer): Promise<string> {
  const path = join(directory, name)
  await writeFile(path, content)
  return path
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const collected: T[] = []
  for await (const item of items) collected.push(item)
  return collected
}

async function batches(path: string, options?: ReadOptions): Promise<RecordBatch[]> {
  const recognised = await recogniseFile(path)
  if (recognised.outcome !== 'records') throw new Error(`not recognised: ${recognised.reason}`)
  return collect(readRecords(path, recognised.format, options))
}

async function records(path: string, options?: ReadOptions) {
  return (await batches(path, options)).flatMap((batch) => batch.records)
}

const people = [
  { id: '1', name: 'Ada', note: 'a "quoted" word' },
  { id: '2', name: 'Grüße 你好 👋', note: 'two\nlines, one comma' },
  { id: '3', name: '', note: '\u2028 and \u2029 end no line' },
  { id: '4', name: 'tab\there', note: '  blanks  ' },
  { id: '5', name: 'last', note: '\r\n' },
]

function delimited(separator: string, lineEnd: string): string {
  const quote = (value: string) => `"${value.replaceAll('"', '""')}"`
  const rows = [['id', 'name', 'note'], ...people.map((person) => Object.values(person))]
  return rows.map((row) => row.map(quote).join(separator) + lineEnd).join('')
}

const sources: Record<string, string> = {
  'people.csv': delimited(',', '\n'),
  'windows.csv': `\ufeff${delimited(',', '\r\n')}`,
  'people.tsv': delimited('\t', '\n'),
  'people.json': JSON.stringify(people, null, 2),
  'minified.json': `\ufeff${JSON.stringify(people)}`,
  'people.ndjson': people.map((person) => `${JSON.stringify(person)}\n`).join(''),
  'windows.jsonl': people.map((person) => JSON.stringify(person)).join('\r\n\r\n'),
  'lines.json': people.map((person) => JSON.stringify(person)).join('\n'),
}

describe.each(Object.entries(sources))('%s', (name, text) => {
  it.each([
    ['plain', name, text],
    ['gzip', `${name}.gz`, gzipSync(text)],
  ])('%s: gives every record as it was written', async (_, fileName, content) => {
    expect(await records(await file(fileName, content))).toEqual(people)
  })

  it('resumed at any record, gives what is left', async () => {
    const path = await file(`resume-${name}`, text)
    for (let from = 0; from <= people.length; from++) {
      expect(await records(path, { from, batchSize: 2 })).toEqual(people.slice(from))
    }
  })

  it('numbers its batches so that the next one begins where one ends', async () => {
    const path = await file(`batches-${name}`, text)
    const found = await batches(path, { from: 1, batchSize: 2 })
    expect(found.map(({ first, next }) => [first, next])).toEqual([
      [1, 3],
      [3, 5],
    ])
    expect(found.at(-1)?.bytesRead).toBe(Buffer.byteLength(text))
  })

  it('reads the same whatever the pieces it arrives in', async () => {
    // Two records of 200,000 characters around the pieces of 128 KiB in which a file is read.
    const long = { id: '0', name: 'x"\n'.repeat(70_000), note: 'é'.repeat(100_000) }
    const wide = [...people, long, ...people, long]
    const path = await file(`wide-${name}`, render(name, wide))
    expect(await records(path)).toEqual(wide)
  })
})

function render(name: string, rows: (typeof people)[number][]): string {
  if (name.endsWith('.json') && name !== 'lines.json') return JSON.stringify(rows)
  if (!/[ct]sv$/.test(name)) return rows.map((row) => JSON.stringify(row)).join('\n')
  const separator = name.endsWith('.tsv') ? '\t' : ','
  const quote = (value: string) => `"${value.replaceAll('"', '""')}"`
  return [['id', 'name', 'note'], ...rows.map((row) => Object.values(row))]
    .map((row) => row.map(quote).join(separator))
    .join('\r\n')
}

it('takes lines of CSV that end in different ways in one file', async () => {
  const path = await file('mixed.csv', 'a,b\r\n1,2\n3,4\r5,6\r\n\n')
  expect(await records(path)).toEqual([
    { a: '1', b: '2' },
    { a: '3', b: '4' },
    { a: '5', b: '6' },
  ])
})

it.each(['empty.csv', 'empty.tsv', 'empty.ndjson'])('%s has no records', async (name) => {
  expect(await records(await file(name, ''))).toEqual([])
})

it('a header alone, and an empty array, have no records', async () => {
  expect(await records(await file('header.csv', 'a,b\n'))).toEqual([])
  expect(await records(await file('empty.json', ' [ ] '))).toEqual([])
})

it.each([
  ['numbers.json', (rows: string) => `[${rows}]`],
  ['numbers.ndjson', (rows: string) => rows],
])('%s: a number that JavaScript would change arrives as text', async (name, wrap) => {
  const row =
    '{"id":12345678901234567890,"big":1e999,"safe":9007199254740991,"zero":-0.0,"text":"12345678901234567890","e":1e300}'
  expect(await records(await file(name, wrap(row)))).toEqual([
    {
      id: '12345678901234567890',
      big: '1e999',
      safe: 9007199254740991,
      zero: -0,
      text: '12345678901234567890',
      e: 1e300,
    },
  ])
})

describe('what cannot be read', () => {
  it.each([
    ['short-row.csv', 'a,b\n1,2\n3\n', /^record 1: .* on line 3$/],
    ['quote.csv', 'a,b\n1,2\n3,"x"y\n', /^record 1: .* line 3/],
    ['open-quote.csv', 'a,b\n1,2\n3,"x\n', /^record 1: .* line 3/],
    ['columns.csv', 'a,b,a\n1,2,3\n', /the column name "a" is used twice/],
    ['latin1.csv', Buffer.from('a\nGrüße\n', 'latin1'), /^the file is not UTF-8 text$/],
    ['utf16.csv', Buffer.from('\ufeffa,b\n1,2\n', 'utf16le'), /^the file is not UTF-8 text$/],
    ['element.json', '[{"a":1},{"a":2},3]', /^record 2 is a number, not an object$/],
    ['comma.json', '[{"a":1}\n {"a":2}]', /^line 2, column 2: not JSON, expected ','$/],
    ['cut.json', '[{"a":1},{"a"', /^line 1, column 14: not JSON/],
    ['more.json', '[{"a":1}] []', /^line 1, column 11: not JSON/],
    ['line.ndjson', '{"a":1}\n\n{"a"\n', /^record 1, line 3: /],
    ['array.ndjson', '{"a":1}\n[1]\n', /^record 1 is an array, not an object$/],
    ['cut.csv.gz', gzipSync('a,b\n1,2\n3,4\n').subarray(0, 20), /^the gzip data ends early/],
    ['not.csv.gz', 'a,b\n1,2\n', /^the gzip data is damaged/],
  ])('%s is a permanent error that says where', async (name, content, message) => {
    const failure = await records(await file(name, content)).catch((error) => error)
    expect(failure).toBeInstanceOf(PermanentError)
    expect(failure.message).toMatch(message)
  })

  it('a record without an end is given up before it fills the memory', async () => {
    const endless = 'x'.repeat(17 * 1024 * 1024)
    for (const [name, text] of Object.entries({
      'endless.csv': `a,b\n1,"${endless}`,
      'endless.json': `[{"a":"${endless}`,
      'endless.ndjson': `{"a":"${endless}`,
    })) {
      await expect(records(await file(name, text))).rejects.toThrow(/record 0|Max Record Size/)
    }
  })

  it.each([-1, 1.5, Number.NaN, '3', {}])('a cursor that is no record number: %j', async (from) => {
    const path = await file('cursor.csv', 'a\n1\n')
    await expect(records(path, { from: from as number })).rejects.toThrow(PermanentError)
  })

  it('a cursor behind the last record', async () => {
    const path = await file('short.csv', 'a\n1\n2\n')
    await expect(records(path, { from: 3 })).rejects.toThrow(
      'cannot continue at record 3: the file has only 2 records',
    )
  })

  it('a file that is gone is no permanent error', async () => {
    const format = { fileType: 'csv', gzip: false } as const
    const failure = await collect(readRecords(join(directory, 'gone.csv'), format)).catch((error) => error)
    expect(failure).not.toBeInstanceOf(PermanentError)
    expect(failure.code).toBe('ENOENT')
  })
})

it('ends with the reason of its signal', async () => {
  const path = await file('stop.csv', `a\n${'1\n'.repeat(100_000)}`)
  const stop = new AbortController()
  const reason = new Error('enough')
  const read = async () => {
    for await (const _ of readRecords(
      path,
      { fileType: 'csv', gzip: false },
      { batchSize: 10, signal: stop.signal },
    )) {
      stop.abort(reason)
    }
  }
  await expect(read()).rejects.toBe(reason)
})

describe('what is not a list of records', () => {
  it.each([
    ['object.json', '{"type": "Topology"}', 'a JSON object, not an array of records'],
    ['string.json', '"text"', 'a JSON string, not an array of records'],
    ['blank.json', ' \n', 'empty, not an array of records'],
    ['numbers.json', '[1, 2]', 'an array of numbers, not of records'],
    ['arrays.json', ' [ [1] ]', 'an array of arrays, not of records'],
    ['strings.json', '["a"]', 'an array of strings, not of records'],
    ['page.json', '<html></html>', 'not JSON: it begins with "<html></html>"'],
    ['arrays.ndjson', '[1]\n[2]\n', 'lines of arrays, not of records'],
    ['binary.csv', Buffer.from([0x89, 0x50, 0, 0]), 'binary data, not text'],
    [
      'picture.png',
      '',
      'the name does not end in .csv, .tsv, .json, .ndjson, .jsonl or one of these and .gz',
    ],
    ['object.json.gz', gzipSync('{"a": 1}'), 'a JSON object, not an array of records'],
  ])('%s', async (name, content, reason) => {
    expect(await recogniseFile(await file(name, content))).toEqual({ outcome: 'no_records', reason })
  })
})

describe('the files of vega-datasets', async () => {
  const data = fileURLToPath(new URL('../../node_modules/vega-datasets/data/', import.meta.url))
  const names = (await readdir(data)).filter((name) => /\.(csv|tsv|json)$/.test(name))

  it.each(names)('%s', async (name) => {
    const text = await readFile(join(data, name), 'utf8')
    const whole = name.endsWith('.json')
      ? JSON.parse(text)
      : parseCsv(text, { columns: true, bom: true, delimiter: name.endsWith('.tsv') ? '\t' : ',' })
    const recognised = await recogniseFile(join(data, name))
    if (Array.isArray(whole)) {
      expect(await records(join(data, name))).toEqual(whole)
    } else {
      expect(recognised).toEqual({ outcome: 'no_records', reason: 'a JSON object, not an array of records' })
    }
  })
})

describe('a file many times larger than the memory allowed', () => {
  const SIZE = 220_000_000

  it.concurrent.each([
    ['csv', 'large.csv'],
    ['json', 'large.json'],
    ['ndjson', 'large.ndjson.gz'],
  ])('%s: %s', { timeout: 300_000 }, async (kind, name) => {
    const path = join(directory, name)
    const written = { records: 0 }
    const compression = name.endsWith('.gz') ? [createGzip({ level: 1 })] : []
    await pipeline([Readable.from(largeText(kind, SIZE, written)), ...compression, createWriteStream(path)])
    const program = fileURLToPath(new URL('./count-records.ts', import.meta.url))
    const { stdout } = await promisify(execFile)(process.execPath, [
      '--max-old-space-size=64',
      '--max-semi-space-size=8',
      program,
      path,
    ])
    await rm(path)
    const { records, residentMb } = JSON.parse(stdout) as { records: number; residentMb: number }
    expect(records).toBe(written.records)
    console.log(`${name}: ${records} records, at most ${Math.round(residentMb)} MB resident`)
    expect(residentMb).toBeLessThan(200)
  })
})

function* largeText(kind: string, size: number, written: { records: number }): Generator<string> {
  const row = (id: number) => ({ id, amount: id * 1.25, note: `Grüße, "quoted"\nnew line ${'x'.repeat(80)}` })
  if (kind === 'csv') yield 'id,amount,note\n'
  let length = 0
  let piece = kind === 'json' ? '[' : ''
  for (; length < size; written.records++) {
    const { id, amount, note } = row(written.records)
    const text =
      kind === 'csv'
        ? `${id},${amount},"${note.replaceAll('"', '""')}"\n`
        : `${kind === 'json' && id > 0 ? ',' : ''}${JSON.stringify({ id, amount, note })}\n`
    length += text.length
    piece += text
    if (piece.length > 100_000) {
      yield piece
      piece = ''
    }
  }
  yield piece + (kind === 'json' ? ']' : '')
}
