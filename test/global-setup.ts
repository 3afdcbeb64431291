import { randomBytes } from 'node:crypto'
import type { TestProject } from 'vitest/node'
import { createTemplates, dropTemplates } from './database.ts'
import { startPostgres } from './servers/postgres.ts'

/** Starts the one server of the run, or takes FILEMARK_TEST_DATABASE_URL's, and makes the template databases. */
export async function setup(project: TestProject): Promise<() => Promise<void>> {
  const given = process.env.FILEMARK_TEST_DATABASE_URL
  const server = given ? undefined : await startPostgres()
  const url = given ?? server?.url() ?? ''
  const prefix = `filemark_template_${randomBytes(4).toString('hex')}_`
  await createTemplates(url, prefix).catch(async (error: unknown) => {
    await server?.[Symbol.asyncDispose]()
    throw error
  })
  project.provide('postgresUrl', url)
  project.provide('templatePrefix', prefix)
  return async () => {
    if (server) await server[Symbol.asyncDispose]()
    else await dropTemplates(url, prefix)
  }
}
