import { PGlite } from '@electric-sql/pglite'
import { sqlFiles } from './servers/install.ts'

/** An embedded database in memory with `sql/*.sql` applied. Close it with `close()`, or declare it `await using`. */
export async function createPglite(): Promise<PGlite> {
  const database = await PGlite.create()
  for (const { name, text } of sqlFiles()) {
    await database.exec(`begin;\n${text}\n;commit`).catch((cause: Error) => {
      throw new Error(`${name}: ${cause.message}`, { cause })
    })
  }
  return database
}
