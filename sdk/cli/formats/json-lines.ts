import type { Readable } from 'node:stream'
import { asRecord, recordTooLong } from './as-record.ts'
import { parseJson } from './exact-number.ts'
import { MAX_RECORD_LENGTH, type ParsedText, type SourceRecord } from './record-format.ts'

/** Parses one JSON object per line. Blank lines are no records. Numbers a JavaScript number cannot hold arrive as text. */
export function parseJsonLines(text: Readable): ParsedText {
  let record = 0
  let line = 0
  // Not node:readline, which also ends lines at U+2028 and U+2029: both may stand inside a JSON string.
  async function* records(): AsyncGenerator<SourceRecord> {
    let rest = ''
    for await (const chunk of text as AsyncIterable<string>) {
      const lines = (rest + chunk).split('\n')
      rest = lines.pop() ?? ''
      for (const complete of lines) {
        line++
        if (isBlank(complete)) continue
        yield asRecord(parseJson(complete), record)
        record++
      }
      if (rest.length > MAX_RECORD_LENGTH) throw recordTooLong(record)
    }
    line++
    if (!isBlank(rest)) yield asRecord(parseJson(rest), record)
  }
  // The parser counts lines too, within the one line it was given.
  const explain = (error: Error) =>
    `record ${record}, line ${line}: ${error.message.replace(/ \(line \d+ column \d+\)/, '')}`
  return { records: records(), explain }
}

function isBlank(line: string): boolean {
  return line.length < 100 && line.trim() === ''
}
