// Postgres inside the process, for development, tests and single-machine jobs. Chosen by the caller, never a fallback:
// two workers with a private database each would both own a file.

import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { PGlite } from '@electric-sql/pglite'
import { lockDirectory } from './directory-lock.ts'
import { FilemarkError } from './errors.ts'

export { DirectoryInUseError } from './directory-lock.ts'

/** A PGlite with filemark installed: give it to CheckpointManager, query it, and close it in the end. */
export type EmbeddedDatabase = PGlite

export interface EmbeddedOptions {
  /** Where the database is kept; made when missing. Default: in memory, gone when it is closed. */
  dataDir?: string | undefined
}

/**
 * Opens an embedded Postgres with filemark's migrations applied; those it lacks are applied when an existing directory is
 * opened by a newer version. Claims that a process left when it died can be taken over at once. Throws
 * DirectoryInUseError when another process, or this one, has the directory open.
 */
export async function openEmbedded({ dataDir }: EmbeddedOptions = {}): Promise<EmbeddedDatabase> {
  if (dataDir === undefined) return await migrate(await PGlite.create())
  const directory = resolve(dataDir)
  const unlock = lockDirectory(directory)
  try {
    const database = await PGlite.create(join(directory, 'pgdata'))
    const close = database.close.bind(database)
    database.close = async () => {
      try {
        await close()
      } finally {
        unlock()
      }
    }
    await migrate(database)
    // The directory was nobody's: whoever held claims is gone, and nobody need wait for those leases to end.
    await database.exec(`
      update filemark.file_checkpoints
         set lease_expires_at = clock_timestamp(), lease_check_at = clock_timestamp()
       where status = 'processing'`)
    return database
  } catch (error) {
    unlock()
    throw error
  }
}

/** Applies the migrations that are missing, each in a transaction. Closes the database when one fails. */
async function migrate(database: PGlite): Promise<PGlite> {
  try {
    await database.exec(`
      create schema if not exists filemark_embedded;
      create table if not exists filemark_embedded.migrations (
        name text primary key,
        applied_at timestamptz not null default clock_timestamp()
      );`)
    const { rows } = await database.query<{ name: string }>('select name from filemark_embedded.migrations')
    const applied = new Set(rows.map(({ name }) => name))
    for (const { name, text } of migrations()) {
      if (applied.has(name)) continue
      await database.transaction(async (tx) => {
        await tx.exec(text)
        await tx.query('insert into filemark_embedded.migrations (name) values ($1)', [name])
      })
    }
    return database
  } catch (error) {
    await database.close()
    throw error
  }
}

/** The package's migrations in their order; they are at the same place seen from sdk/ and from dist/. */
function migrations(): { name: string; text: string }[] {
  const directory = fileURLToPath(new URL('../supabase/migrations/', import.meta.url))
  if (!existsSync(directory)) {
    throw new FilemarkError(
      `filemark's migrations are not in ${directory}: keep the package out of your bundle (mark it external)`,
      '58P01',
    )
  }
  return readdirSync(directory)
    .filter((name) => name.endsWith('.sql'))
    .sort()
    .map((name) => ({ name, text: readFileSync(join(directory, name), 'utf8') }))
}
