import { readFileSync } from 'node:fs'
import postgres, { type Row, type RowList, type Sql } from 'postgres'
import { expect } from 'vitest'

/** A block of SQL in a guide. */
export interface Block {
  /** The heading it stands under. */
  section: string
  line: number
  sql: string
  /** Does it change something? Then it begins with the comment that says so. */
  asOperator: boolean
  /** What the guide says it answers, in the `text` block that follows; undefined if it does not say. */
  answer: string | undefined
}

/** The SQL blocks of a guide, in their order. */
export function readBlocks(file: URL): Block[] {
  const blocks: Block[] = []
  let section = ''
  const text = readFileSync(file, 'utf8')
  for (const match of text.matchAll(/^#+ (?<heading>[^\n]+)$|^```(?<language>\w+)\n(?<body>.*?)^```$/gms)) {
    const { heading, language, body = '' } = match.groups ?? {}
    const last = blocks.at(-1)
    if (heading) {
      section = heading
    } else if (language === 'sql') {
      const line = text.slice(0, match.index).split('\n').length
      const asOperator = body.startsWith('-- as filemark_operator\n')
      blocks.push({ section, line, sql: body, asOperator, answer: undefined })
    } else if (language === 'text' && last?.section === section) {
      last.answer = body
    }
  }
  return blocks
}

/** A connection that gives every value as psql shows it. */
export function connectLikePsql(url: string): Sql {
  const types = { shown: { to: 25, from: [114, 3802], serialize: String, parse: (text: string) => text } }
  return postgres(url, { max: 1, onnotice: () => {}, types })
}

/** What the last statement of `sql` answers: the names of its columns, and its rows. */
export async function answerOf(session: Sql, sql: string): Promise<string[][]> {
  const answered = (await session.unsafe(sql).simple()) as unknown
  const results = answered as RowList<Row[]>[]
  const last = 'command' in results ? (answered as RowList<Row[]>) : results.at(-1)
  const names = last?.columns?.map(({ name }) => name) ?? []
  return [names, ...(last ?? []).map((row) => names.map((name) => shown(row[name])))]
}

function shown(value: unknown): string {
  if (typeof value === 'boolean') return value ? 't' : 'f'
  return String(value ?? '')
}

/** The cells of a table as psql shows it, its header first. */
export function readTable(text: string): string[][] {
  const [header = '', rule, ...rows] = text.trimEnd().split('\n')
  expect(rule).toMatch(/^[-+]+$/)
  return [header, ...rows].map((row) => row.split('|').map((cell) => cell.trim()))
}
