import { readdirSync, readFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { parse } from 'csv-parse/sync'

/** The records of every list among the CSV, TSV and JSON files of a directory, read whole, by file name. */
export function readSources(directory: string): Map<string, unknown[]> {
  const sources = new Map<string, unknown[]>()
  for (const name of readdirSync(directory)) {
    if (!/\.(csv|tsv|json)$/.test(name)) continue
    const text = readFileSync(join(directory, name), 'utf8')
    const content: unknown = name.endsWith('.json')
      ? JSON.parse(text)
      : parse(text, { columns: true, bom: true, delimiter: name.endsWith('.tsv') ? '\t' : ',' })
    if (Array.isArray(content)) sources.set(basename(name), content)
  }
  return sources
}
