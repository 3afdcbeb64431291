// Writes docs/reference.md from the comments, types, defaults and grants of the database that sql/ makes. With --check it
// writes nothing and fails when the file is stale.
//
//   npm run build:reference [-- --check]

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import postgres from 'postgres'
import { errorOfCode } from '../sdk/errors.ts'
import { installFilemark, runSql } from '../test/servers/install.ts'
import { startPostgres } from '../test/servers/postgres.ts'
import { supabaseRolesSql } from '../test/servers/supabase-roles.ts'
import {
  type DocumentedFunction,
  type Reference,
  type Refusal,
  type Relation,
  readReference,
} from './read-reference.ts'

/** The generated file. */
export const referenceFile = fileURLToPath(new URL('../docs/reference.md', import.meta.url))

/** The text of docs/reference.md. */
export function referenceText({ errors, functions, relations }: Reference): string {
  const text = new Markdown(relations, functions)
  const mayWork = (fn: DocumentedFunction) => fn.callers.includes('filemark_worker')
  const sections: [string, DocumentedFunction[]][] = [
    ['Functions for workers', functions.filter((fn) => fn.writes && mayWork(fn))],
    ['Functions that only read', functions.filter((fn) => !fn.writes)],
    ['Functions for operators', functions.filter((fn) => fn.writes && !mayWork(fn))],
  ]
  return `${[
    '<!-- Generated from the comments in sql/ by scripts/generate-reference.ts: npm run build:reference -->',
    '# Reference',
    `Every function, error, setting and column, as the database says them itself (\`\\df+\` and \`\\d+\` in psql).
Functions in \`public\` are called with \`supabase.rpc\` or in SQL, by the names of their parameters; those in
\`filemark\`, a schema that the API does not show, in SQL. What has a default may be left out.`,
    sections
      .map(
        ([title, members]) =>
          `- ${title}: ${members.map(({ name }) => `[${shortName(name)}](#${anchor(shortName(name))})`).join(', ')}`,
      )
      .concat(
        '- [Errors](#errors)',
        `- Tables and types: ${relations.map(({ name }) => `[${name}](#${anchor(name)})`).join(', ')}`,
      )
      .join('\n'),
    ...sections.flatMap(([title, members]) => [
      `## ${title}`,
      ...members.flatMap((fn) => functionText(fn, text)),
    ]),
    '## Errors',
    errorTable(errors, text),
    '## Tables and types',
    `Nobody writes to the tables but the functions. Settings are changed with \`filemark.configure_pipeline\`; what is
reserved is kept and checked, but nothing reads it yet.`,
    ...relations.flatMap((relation) => relationText(relation, text)),
  ].join('\n\n')}\n`
}

function functionText(fn: DocumentedFunction, text: Markdown): string[] {
  const { meaning } = fn
  const usage = fn.parameters.map(({ name, default: value }) =>
    value === null ? name : `${name} => ${literal(value)}`,
  )
  const parameters = fn.parameters.map((parameter) => [
    `\`${parameter.name}\``,
    parameter.type,
    parameter.default === null ? '' : `\`${literal(parameter.default)}\``,
    text.sentence(meaning.parameters.get(parameter.name)),
  ])
  const list = [
    meaning.errors.length > 0 &&
      `Errors: ${meaning.errors.map(({ code, when }) => `\`${code}\` ${text.of(when)}`).join('; ')}.`,
    `${fn.writes ? 'Read-write' : 'Read-only'}; may be called by ${fn.callers.map((role) => `\`${role}\``).join(', ')}.`,
  ]
  return [
    `### ${shortName(fn.name)}`,
    `\`\`\`sql\n${wrap(`${fn.name}(`, usage, ')')}\n\`\`\``,
    text.of(`${meaning.purpose} ${meaning.details}`),
    table(['parameter', 'type', 'default', 'meaning'], parameters),
    ...returnsText(fn, text),
    list.filter((line) => line !== false).join('\n\n'),
  ]
}

/** What it returns: in words, and as a table of the columns unless they are those of a table or type. */
function returnsText({ meaning, columns, returns }: DocumentedFunction, text: Markdown): string[] {
  if (returns === 'void') return ['Returns nothing.']
  if (returns) return [`Returns ${returns}: ${text.of(meaning.returns)}`]
  const { source } = meaning
  const missing = source?.columns.filter((column) => !columns.some(({ name }) => name === column.name)) ?? []
  if (meaning.columns.size === 0 && source && missing.length <= 1) {
    const but = missing.map(({ name }) => ` Without \`${name}\`.`).join('')
    return [`Returns ${text.of(meaning.returns)}${but}`]
  }
  const rows = columns.map(({ name, type }) => [
    `\`${name}\``,
    type,
    text.sentence(
      meaning.columns.get(name) ?? source?.columns.find((column) => column.name === name)?.comment,
    ),
  ])
  return [`Returns ${text.of(meaning.returns)}`, table(['column', 'type', 'meaning'], rows)]
}

function errorTable(errors: Refusal[], text: Markdown): string {
  const rows = errors.map(({ code, when }) => [
    `\`${code}\``,
    code.replace('PT', ''),
    `\`${errorOfCode(code, '', {}).name}\``,
    text.sentence(when),
  ])
  return table(['SQLSTATE', 'HTTP status', 'SDK', 'when'], rows)
}

function relationText({ name, isTable, comment, columns }: Relation, text: Markdown): string[] {
  const rows = columns.map((column) => [
    `\`${column.name}\``,
    column.type + (isTable && column.nullable ? ', null' : ''),
    ...(isTable ? [column.default === null ? '' : `\`${literal(column.default)}\``] : []),
    text.sentence(column.comment),
  ])
  const head = isTable ? ['column', 'type', 'default', 'meaning'] : ['column', 'type', 'meaning']
  return [`### ${name}`, text.of(comment), table(head, rows)]
}

/** Plain words of a comment as Markdown: names set as code, those of this page linked. */
class Markdown {
  readonly #links: Map<string, string>

  constructor(relations: Relation[], functions: DocumentedFunction[]) {
    const names = [...relations, ...functions].map(({ name }) => name)
    this.#links = new Map(names.flatMap((name) => [[name, name] as const, [shortName(name), name] as const]))
  }

  /** With a capital first letter, unless it begins with a name. */
  sentence(words: string | null | undefined): string {
    return this.of(words?.replace(/^[a-z](?=[a-z]*[ ,:;])/, (letter) => letter.toUpperCase()))
  }

  of(words: string | null | undefined): string {
    const code =
      /(?<!\w)'[^']+'(?!\w)|\{[^}]*\}|\b(?:filemark\.)?[a-z]+(?:_[a-z]+)+\b|\bfilemark\.[a-z]+\b|[<|]/g
    return (words ?? '').trim().replaceAll(code, (name) => {
      if (name.length === 1) return `\\${name}`
      const target = this.#links.get(name)
      return target ? `[\`${name}\`](#${anchor(shortName(target))})` : `\`${name}\``
    })
  }
}

function table(head: string[], rows: string[][]): string {
  const line = (cells: string[]) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n')
}

function wrap(start: string, parts: string[], end: string): string {
  const line = start + parts.join(', ') + end
  return line.length <= 100 ? line : `${start}\n  ${parts.join(',\n  ')}\n${end}`
}

/** `'default'::text` as one writes it. */
function literal(expression: string): string {
  const [, value = expression] = /^('(?:[^']|'')*'|[\w.]+)(?:::[\w ]+)?$/.exec(expression) ?? []
  return value === 'NULL' ? 'null' : value
}

function shortName(name: string): string {
  return name.replace(/^public\./, '')
}

/** As GitHub makes them. */
function anchor(heading: string): string {
  return heading
    .toLowerCase()
    .replaceAll(/[^\w -]/g, '')
    .replaceAll(' ', '-')
}

async function main(): Promise<void> {
  await using server = await startPostgres()
  await runSql(server.url(), [{ name: 'supabase-roles.ts', text: supabaseRolesSql('new') }])
  await installFilemark(server.url())
  const sql = postgres(server.url(), { max: 1, onnotice: () => {} })
  const text = referenceText(await readReference(sql))
  await sql.end()

  if (!process.argv.includes('--check')) {
    mkdirSync(dirname(referenceFile), { recursive: true })
    writeFileSync(referenceFile, text)
    console.log('wrote docs/reference.md')
  } else if (readFileSync(referenceFile, 'utf8') !== text) {
    console.error('docs/reference.md is stale: npm run build:reference')
    process.exitCode = 1
  }
}

if (import.meta.main) await main()
