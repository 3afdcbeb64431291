// Builds the one migration of the unreleased version 0.1.0 from sql/:
//   npm run build:migration              writes it
//   npm run build:migration -- --check   fails when the file is stale
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { relative } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Where the migration stands. */
export const migrationFile = `${root}supabase/migrations/20261120120000_filemark.sql`

const header = `-- filemark 0.1.0: the database package, built from sql/ by \`npm run build:migration\`; edit it there.
-- Install with \`supabase db push\` or with \`dbmate up\`: both take this file as it is.

-- migrate:up
`

/** Ends every migration: dbmate wants the mark, and supabase db push would execute whatever followed it. */
const footer = `notify pgrst, 'reload schema';

-- migrate:down
`

/**
 * The migration made of the SQL files in `directory`, in file-name order. Throws when a line in them would not survive
 * in a migration: a psql command, a transaction statement, a mark of dbmate's.
 */
export function migrationText(directory = `${root}sql`): string {
  const names = readdirSync(directory).filter((name) => name.endsWith('.sql'))
  const chapters = names.sort().map((name) => {
    const text = readFileSync(`${directory}/${name}`, 'utf8').trim()
    text.split('\n').forEach((line, index) => {
      if (/^\\|^(begin|start transaction|commit|rollback)\b[^;]*;|^--\s*migrate:/i.test(line)) {
        throw new Error(`sql/${name}:${index + 1} cannot stand in a migration: ${line}`)
      }
    })
    return `-- sql/${name}\n\n${text}\n`
  })
  return [header, ...chapters, footer].join('\n')
}

if (import.meta.main) {
  const text = migrationText()
  const name = relative(root, migrationFile)
  if (!process.argv.includes('--check')) {
    writeFileSync(migrationFile, text)
    console.log(`wrote ${name}`)
  } else if (text !== readFileSync(migrationFile, 'utf8')) {
    console.error(`${name} is not what sql/ says: run \`npm run build:migration\``)
    process.exitCode = 1
  }
}
