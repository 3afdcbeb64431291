import { pipeline, type Readable } from 'node:stream'
import { parse } from 'csv-parse'
import { ignoreResult } from './open-text.ts'
import { MAX_RECORD_LENGTH, type ParsedText } from './record-format.ts'

/**
 * Parses CSV or TSV: the first row names the columns, every value is text. Blank lines are no records. A row
 * with more or fewer values than there are columns, a stray quote or a column name used twice is an error.
 */
export function parseDelimitedText(text: Readable, delimiter: ',' | '\t'): ParsedText {
  const parser = parse({
    delimiter,
    columns: (names: string[]) => {
      const repeated = names.find((name, index) => names.indexOf(name) !== index)
      if (repeated !== undefined) throw new Error(`the column name ${JSON.stringify(repeated)} is used twice`)
      return names
    },
    // Left to itself the parser takes the first line's ending for all, and a file with mixed endings for one line.
    record_delimiter: ['\r\n', '\n', '\r'],
    skip_empty_lines: true,
    max_record_size: MAX_RECORD_LENGTH,
  })
  return {
    records: pipeline(text, parser, ignoreResult),
    explain: (error) => `record ${parser.info.records}: ${error.message}`,
  }
}
