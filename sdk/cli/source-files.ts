import { stat } from 'node:fs/promises'
import { dirname, relative, resolve, sep } from 'node:path'
import { pathToFileURL } from 'node:url'
import { glob, isDynamicPattern } from 'tinyglobby'
import { recogniseFile } from './formats/recognise-file.ts'
import type { RecordFormat } from './formats/record-format.ts'
import { UsageError } from './usage-error.ts'

/** A file to load. */
export interface SourceFile {
  path: string
  /** The path within {@link SourceFiles.directory}. */
  name: string
  url: string
  format: RecordFormat
  sizeBytes: number
}

/** A file that is not loaded, and why. */
export interface RefusedFile {
  name: string
  reason: string
}

export interface SourceFiles {
  /** The deepest directory that holds all of them. */
  directory: string
  /** The largest first: a run should not end waiting for the one that began last. */
  files: SourceFile[]
  /** What is not a list of records. */
  skipped: RefusedFile[]
  /** What could not be read. */
  unreadable: RefusedFile[]
}

/** Which content a path has at this moment, as far as that can be said without reading it. */
export interface FileVersion {
  etag: string
  timestamp: Date
  sizeBytes: number
}

/** Expands paths and glob patterns and looks at the beginning of each file. Throws UsageError when nothing matches. */
export async function findSourceFiles(patterns: readonly string[]): Promise<SourceFiles> {
  const paths = await expandPatterns(patterns)
  const directory = paths.map((path) => dirname(path)).reduce(commonDirectory)
  const found: SourceFiles = { directory, files: [], skipped: [], unreadable: [] }
  const inspect = async (path: string) => {
    const name = relative(directory, path)
    try {
      const recognised = await recogniseFile(path)
      if (recognised.outcome === 'no_records') {
        found.skipped.push({ name, reason: recognised.reason })
      } else {
        const { sizeBytes } = await readFileVersion(path)
        found.files.push({ path, name, url: pathToFileURL(path).href, format: recognised.format, sizeBytes })
      }
    } catch (error) {
      found.unreadable.push({ name, reason: error instanceof Error ? error.message : String(error) })
    }
  }
  for (let start = 0; start < paths.length; start += 32) {
    await Promise.all(paths.slice(start, start + 32).map(inspect))
  }
  found.files.sort((a, b) => b.sizeBytes - a.sizeBytes || compareText(a.path, b.path))
  found.skipped.sort((a, b) => compareText(a.name, b.name))
  found.unreadable.sort((a, b) => compareText(a.name, b.name))
  return found
}

/** Reads a file's size and time of change; together they are its etag, since a local file has no other. */
export async function readFileVersion(path: string): Promise<FileVersion> {
  const { size, mtimeMs, mtime } = await stat(path)
  return { etag: `"${size}-${Math.trunc(mtimeMs)}"`, timestamp: mtime, sizeBytes: size }
}

async function expandPatterns(patterns: readonly string[]): Promise<string[]> {
  const paths = new Set<string>()
  for (const pattern of patterns) {
    // A shell has expanded the pattern already, perhaps to a name with brackets in it: a path that exists is that path.
    const isPath = await stat(pattern).then(
      (stats) => stats.isFile(),
      () => false,
    )
    // Patterns are written with slashes, also where paths are not.
    const matches = isPath ? [pattern] : await glob(pattern.split(sep).join('/'), { absolute: true })
    if (matches.length === 0 && !isDynamicPattern(pattern)) {
      throw new UsageError(`there is no file ${pattern}`)
    }
    for (const match of matches) paths.add(resolve(match))
  }
  if (paths.size === 0) throw new UsageError(`no file matches ${patterns.join(' ')}`)
  return [...paths].sort(compareText)
}

function commonDirectory(a: string, b: string): string {
  let common = a
  while (common !== b && !b.startsWith(common.endsWith(sep) ? common : common + sep)) common = dirname(common)
  return common
}

function compareText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0
}
