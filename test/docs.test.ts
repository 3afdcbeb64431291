import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import postgres, { type Row, type RowList, type Sql } from 'postgres'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase, type TestDatabase } from './database.ts'

// Every SQL block of a guide is run, in their order, in one session of a database with filemark in it. A `text` block that
// follows one says what its last statement answers: a table as psql shows it, or ERROR: and the message.

const directory = fileURLToPath(new URL('../docs/', import.meta.url))

/** Documents whose SQL is not run here, and why. */
const others: Record<string, string> = {
  'reference.md': 'its SQL is signatures; test/reference.test.ts compares it with the database',
  'operations.md': 'needs a night with something wrong; the test that plays that night runs it',
}

interface Example {
  line: number
  sql: string
  /** What the guide says it answers, if it says so. */
  answer: string | undefined
}

const guides = readdirSync(directory)
  .filter((name) => name.endsWith('.md') && !(name in others))
  .map((name) => ({ name, examples: readExamples(readFileSync(directory + name, 'utf8')) }))
  .filter(({ examples }) => examples.length > 0)

function readExamples(text: string): Example[] {
  const blocks = [...text.matchAll(/^```(\w+)\n(.*?)^```$/gms)].map(
    ({ index, 1: language, 2: body = '' }) => ({
      language,
      body,
      line: text.slice(0, index).split('\n').length,
    }),
  )
  return blocks.flatMap(({ language, body, line }, index) => {
    const next = blocks[index + 1]
    return language === 'sql'
      ? [{ line, sql: body, answer: next?.language === 'text' ? next.body : undefined }]
      : []
  })
}

/** The cells of a table as psql shows it, its header first. */
function readTable(text: string): string[][] {
  const [header = '', rule, ...rows] = text.trimEnd().split('\n')
  expect(rule).toMatch(/^[-+]+$/)
  return [header, ...rows].map((row) => row.split('|').map((cell) => cell.trim()))
}

/** JSON as the text that psql shows. */
const textTypes = {
  json: { to: 114, from: [114, 3802], serialize: String, parse: (text: string) => text },
}

/** What the last statement of `sql` answers, in the form that the guide has it in. */
async function run(session: Sql, sql: string): Promise<string[][] | string> {
  try {
    const answered = (await session.unsafe(sql).simple()) as unknown
    const results = answered as RowList<Row[]>[]
    const last = 'command' in results ? (answered as RowList<Row[]>) : results.at(-1)
    const names = last?.columns.map(({ name }) => name) ?? []
    return [names, ...(last ?? []).map((row) => names.map((name) => String(row[name] ?? '')))]
  } catch (error) {
    if (error instanceof postgres.PostgresError) return `ERROR: ${error.message}`
    throw error
  }
}

test('each guide with SQL is run, here or where it is said', () => {
  expect(guides.map(({ name }) => name)).toContain('retries.md')
  for (const { name, examples } of guides) {
    expect([name, examples.some(({ answer }) => answer !== undefined)]).toEqual([name, true])
  }
})

describe.each(guides)('docs/$name', ({ examples }) => {
  let db: TestDatabase
  let session: Sql
  beforeAll(async () => {
    db = await createDatabase()
    // As psql has it: every value as text.
    session = postgres(db.url, { max: 1, onnotice: () => {}, types: textTypes })
  })
  afterAll(async () => {
    await session.end()
    await db.drop()
  })

  test.each(examples)('line $line answers what it says', async ({ sql, answer }) => {
    const answered = await run(session, sql)
    if (answer === undefined) expect(answered).toEqual(expect.any(Array))
    else if (answer.startsWith('ERROR:')) expect(answered).toBe(answer.trim())
    else expect(answered).toEqual(readTable(answer))
  })
})
