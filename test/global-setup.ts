import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestProject } from 'vitest/node'
import { hasPgCron, lane } from './behaviour/lane.ts'
import { createTemplates, dropTemplates } from './database.ts'
import { writePgliteTemplate } from './pglite.ts'
import { startPostgres } from './servers/postgres.ts'
import { startWatchdog } from './servers/watchdog.ts'

/** Makes what the databases of the run are copied from, on the one server of the run if the lane has one. */
export function setup(project: TestProject): Promise<() => Promise<void>> {
  return lane === 'pglite' ? setUpPglite(project) : setUpPostgres(project)
}

async function setUpPglite(project: TestProject): Promise<() => Promise<void>> {
  const directory = await mkdtemp(join(tmpdir(), 'filemark-pglite-'))
  const watchdog = startWatchdog('TERM', directory)
  const template = join(directory, 'template.tar')
  await writePgliteTemplate(template)
  project.provide('pgliteTemplate', template)
  return async () => {
    await rm(directory, { recursive: true })
    watchdog.dismiss()
  }
}

/** Starts a server, or takes FILEMARK_TEST_DATABASE_URL's, and makes the template databases. */
async function setUpPostgres(project: TestProject): Promise<() => Promise<void>> {
  const given = process.env.FILEMARK_TEST_DATABASE_URL
  const cronDatabase = hasPgCron && !given ? 'filemark_cron' : ''
  const server = given ? undefined : await startPostgres({ cronDatabase })
  const url = given ?? server?.url() ?? ''
  const prefix = `filemark_template_${randomBytes(4).toString('hex')}_`
  await createTemplates(url, prefix).catch(async (error: unknown) => {
    await server?.[Symbol.asyncDispose]()
    throw error
  })
  project.provide('postgresUrl', url)
  project.provide('templatePrefix', prefix)
  project.provide('cronDatabase', cronDatabase)
  return async () => {
    if (server) await server[Symbol.asyncDispose]()
    else await dropTemplates(url, prefix)
  }
}
