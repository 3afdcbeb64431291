import { readFile, writeFile } from 'node:fs/promises'
import { PGlite } from '@electric-sql/pglite'
import { PGLiteSocketServer } from '@electric-sql/pglite-socket'
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

/** Writes the files of an embedded database with `sql/*.sql` applied, for `startPglite`. */
export async function writePgliteTemplate(file: string): Promise<void> {
  const database = await createPglite()
  const dump = await database.dumpDataDir('none')
  await database.close()
  await writeFile(file, Buffer.from(await dump.arrayBuffer()))
}

export interface PgliteServer {
  /** For any Postgres client. */
  readonly url: string
  stop(): Promise<void>
}

/**
 * Starts an embedded database in memory behind a socket: empty, or a copy of a template. It has one session. What its
 * connections send is run message by message; while one of them has a transaction open, the others wait for its end.
 */
export async function startPglite(template?: string): Promise<PgliteServer> {
  const database = await PGlite.create(template ? { loadDataDir: new Blob([await readFile(template)]) } : {})
  const server = new PGLiteSocketServer({ db: database, port: 0, host: '127.0.0.1', maxConnections: 100 })
  await server.start()
  return {
    url: `postgresql://postgres@${server.getServerConn()}/postgres`,
    async stop() {
      await server.stop()
      await database.close()
    },
  }
}
