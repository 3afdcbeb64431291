// The migrations of supabase/migrations: which of them are released, and so never change again.
import { createHash } from 'node:crypto'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/** Where the migrations stand, with a slash at its end. */
export const migrationsDirectory = fileURLToPath(new URL('../supabase/migrations/', import.meta.url))

/** Lists the released migrations as `sha256sum` does. */
export const checksumsFile = fileURLToPath(new URL('../supabase/migrations.sha256', import.meta.url))

export interface Migration {
  name: string
  text: string
}

/** All migrations in the order in which they are applied. */
export function readMigrations(): Migration[] {
  return readdirSync(migrationsDirectory)
    .filter((name) => name.endsWith('.sql'))
    .sort()
    .map((name) => ({ name, text: readFileSync(migrationsDirectory + name, 'utf8') }))
}

/** The checksum of each released migration by its name. */
export function readChecksums(): Record<string, string> {
  if (!existsSync(checksumsFile)) return {}
  const lines = readFileSync(checksumsFile, 'utf8').trim().split('\n')
  return Object.fromEntries(lines.map((line) => line.split('  ').reverse() as [string, string]))
}

export function checksum(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}
