import { readdirSync } from 'node:fs'
import postgres, { type Sql } from 'postgres'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from './database.ts'
import { answerOf, connectLikePsql, readBlocks, readTable } from './guides.ts'

// Every SQL block of a guide is run, in their order, in one session of a database with filemark in it. A `text` block that
// follows one says what its last statement answers: a table as psql shows it, or ERROR: and the message.

const directory = new URL('../docs/', import.meta.url)

/** Documents whose SQL is not run here, and why. */
const others: Record<string, string> = {
  'reference.md': 'its SQL is signatures; test/reference.test.ts compares it with the database',
  'operations.md': 'needs a night with something wrong; the test that plays that night runs it',
}

const guides = readdirSync(directory)
  .filter((name) => name.endsWith('.md') && !(name in others))
  .map((name) => ({ name, blocks: readBlocks(new URL(name, directory)) }))
  .filter(({ blocks }) => blocks.length > 0)

/** What the last statement of `sql` answers, in the form that the guide has it in. */
async function run(session: Sql, sql: string): Promise<string[][] | string> {
  try {
    return await answerOf(session, sql)
  } catch (error) {
    if (error instanceof postgres.PostgresError) return `ERROR: ${error.message}`
    throw error
  }
}

test('each guide with SQL is run, here or where it is said', () => {
  expect(guides.map(({ name }) => name)).toContain('retries.md')
  for (const { name, blocks } of guides) {
    expect([name, blocks.some(({ answer }) => answer !== undefined)]).toEqual([name, true])
  }
})

describe.each(guides)('docs/$name', ({ blocks }) => {
  let db: TestDatabase
  let session: Sql
  beforeAll(async () => {
    db = await createDatabase()
    session = connectLikePsql(db.url)
  })
  afterAll(async () => {
    await session.end()
    await db.drop()
  })

  test.each(blocks)('line $line answers what it says', async ({ sql, answer }) => {
    const answered = await run(session, sql)
    if (answer === undefined) expect(answered).toEqual(expect.any(Array))
    else if (answer.startsWith('ERROR:')) expect(answered).toBe(answer.trim())
    else expect(answered).toEqual(readTable(answer))
  })
})
