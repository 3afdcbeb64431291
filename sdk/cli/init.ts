import { mkdir, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { findPackage } from './package-root.ts'

/** What {@link installMigrations} did. */
export interface InstalledMigrations {
  /** Names of the files that were written, in the order they are to be applied. */
  written: string[]
  /** Names of the files that were there already. */
  present: string[]
}

/**
 * Copies the package's migrations into a migrations directory of `supabase db push` or dbmate, which is made if it is
 * not there. Each gets a version later than the newest in the directory and than now, because both tools refuse to
 * apply one that is older than what they applied last, and keeps its own name behind it. One whose own name is in
 * the directory already is left alone; no file is ever overwritten.
 */
export async function installMigrations(
  directory: string,
  { source = join(findPackage().root, 'supabase', 'migrations'), now = new Date() } = {},
): Promise<InstalledMigrations> {
  const originals = (await readdir(source)).filter((name) => MIGRATION.test(name)).sort()
  if (originals.length === 0) throw new Error(`no migration in ${source}: the package is not complete`)
  await mkdir(directory, { recursive: true })
  const existing = (await readdir(directory)).filter((name) => MIGRATION.test(name))
  const result: InstalledMigrations = { written: [], present: [] }
  let newest = [...existing.map(versionOf), formatVersion(now)].sort().at(-1) as string
  for (const original of originals) {
    const present = existing.find((name) => name === original || name.endsWith(`_${original}`))
    if (present) {
      result.present.push(present)
      continue
    }
    newest = nextVersion(newest)
    const name = `${newest}_${original}`
    await writeWhole(join(directory, name), await readFile(join(source, original)))
    result.written.push(name)
  }
  return result
}

/** What `supabase db push` takes for a migration; it skips other names without a word. */
const MIGRATION = /^([0-9]+)_(.*)\.sql$/

function versionOf(name: string): string {
  return MIGRATION.exec(name)?.[1] ?? ''
}

/** `20261121101500`: a time of day in UTC. */
function formatVersion(time: Date): string {
  return time.toISOString().replace(/\D/g, '').slice(0, 14)
}

/** The version one second later. Versions are compared as text, so one that is no time can be beyond every time. */
function nextVersion(version: string): string {
  const part = (start: number, length: number) => Number(version.slice(start, start + length))
  const time = Date.UTC(part(0, 4), part(4, 2) - 1, part(6, 2), part(8, 2), part(10, 2), part(12, 2) + 1)
  const next = formatVersion(new Date(time))
  if (next.length === 14 && next > version) return next
  throw new Error(
    `a new migration cannot be later than version ${version}: versions are compared as text. ` +
      'Rename that file to begin with 14 digits, YYYYMMDDhhmmss',
  )
}

/** All of it or nothing. The name is new: its version is later than all that were listed. */
async function writeWhole(path: string, content: Buffer): Promise<void> {
  const partial = `${path}.${process.pid}.partial`
  try {
    await writeFile(partial, content)
    await rename(partial, path)
  } catch (error) {
    await rm(partial, { force: true })
    throw error
  }
}
