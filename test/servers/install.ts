import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import postgres from 'postgres'

/** The directory of the database package; FILEMARK_TEST_SQL_DIR names another one. */
export function sqlDirectory(): string {
  return process.env.FILEMARK_TEST_SQL_DIR ?? fileURLToPath(new URL('../../sql', import.meta.url))
}

/** The SQL files of the database package in the order in which they are applied. */
export function sqlFiles(): { name: string; text: string }[] {
  const directory = sqlDirectory()
  return readdirSync(directory)
    .filter((name) => name.endsWith('.sql'))
    .sort()
    .map((name) => ({ name, text: readFileSync(`${directory}/${name}`, 'utf8') }))
}

/** Applies `sql/*.sql` to a database, each file in a transaction of its own, as the role the URL names. */
export async function installFilemark(url: string): Promise<void> {
  await runSql(url, sqlFiles())
}

/**
 * Runs SQL texts of several statements each, one transaction per text. An error names the text and, when Postgres
 * gives a position, the line.
 */
export async function runSql(url: string, texts: { name: string; text: string }[]): Promise<void> {
  const sql = postgres(url, { max: 1, onnotice: () => {} })
  try {
    for (const { name, text } of texts) {
      await sql
        .unsafe(text)
        .simple()
        .catch((cause: Error & { position?: string }) => {
          const line = cause.position ? text.slice(0, Number(cause.position)).split('\n').length : '?'
          throw new Error(`${name}:${line}: ${cause.message}`, { cause })
        })
    }
  } finally {
    await sql.end()
  }
}
