/** The kinds of file that are lists of records; also the `file_type` they are registered with. */
export type FileType = 'csv' | 'tsv' | 'json' | 'ndjson'

/** How a file's bytes become records. */
export interface RecordFormat {
  fileType: FileType
  gzip: boolean
}

/** One record: a row of a CSV file by column name (every value text), or an object of a JSON file. */
export type SourceRecord = Record<string, unknown>

/** What a parser makes of a text. */
export interface ParsedText {
  /** In file order. The iteration throws what is wrong with the text. */
  records: AsyncIterable<SourceRecord>
  /** Puts into words what the iteration threw, and where in the text that is. Records count from 0, lines from 1. */
  explain: (error: Error) => string | Promise<string>
}

/** A record may take this much text: a quote that never closes must not read the rest of a huge file into memory. */
export const MAX_RECORD_LENGTH = 16 * 1024 * 1024

const BY_EXTENSION: ReadonlyMap<string, FileType> = new Map([
  ['csv', 'csv'],
  ['tsv', 'tsv'],
  ['json', 'json'],
  ['ndjson', 'ndjson'],
  ['jsonl', 'ndjson'],
])

/** The endings {@link formatOfName} knows, each of which may be followed by `.gz`. */
export const KNOWN_EXTENSIONS: readonly string[] = [...BY_EXTENSION.keys()].map(
  (extension) => `.${extension}`,
)

/** The format a file's name promises, or null when it promises none of ours. */
export function formatOfName(name: string): RecordFormat | null {
  const match = /\.([a-z]+)(\.gz)?$/i.exec(name)
  const fileType = BY_EXTENSION.get(match?.[1]?.toLowerCase() ?? '')
  return fileType ? { fileType, gzip: match?.[2] !== undefined } : null
}
