// What the database says of itself: the comments, types, defaults and grants that docs/reference.md is made of. The form
// of a function's comment is told at the top of sql/10_schema.sql.

import type { Sql } from 'postgres'

export interface Reference {
  /** All errors of ours. */
  errors: Refusal[]
  /** The functions for callers, in the order of sql/. */
  functions: DocumentedFunction[]
  /** The tables and types of schema filemark. */
  relations: Relation[]
}

export interface Refusal {
  /** The SQLSTATE. */
  code: string
  when: string
}

export interface Relation {
  /** With its schema. */
  name: string
  /** False for a composite type. */
  isTable: boolean
  comment: string | null
  columns: Column[]
}

export interface Column {
  name: string
  type: string
  default: string | null
  nullable: boolean
  comment: string | null
}

export interface DocumentedFunction {
  /** With its schema. */
  name: string
  parameters: { name: string; type: string; default: string | null }[]
  /** The type of the one value it returns, or void; null when it returns rows. */
  returns: string | null
  /** The columns of the rows it returns. */
  columns: { name: string; type: string }[]
  /** The roles that are granted it. */
  callers: string[]
  writes: boolean
  meaning: FunctionComment
}

export interface FunctionComment {
  /** One sentence. */
  purpose: string
  /** More of that, or empty. */
  details: string
  parameters: Map<string, string>
  returns: string
  /** Of the columns that have a line of their own. */
  columns: Map<string, string>
  /** The table or type that gives the other columns their meaning. */
  source: Relation | undefined
  errors: Refusal[]
}

type CatalogFunction = Omit<DocumentedFunction, 'meaning'> & { comment: string | null }

/**
 * Reads what the comments say of every table, type and function of filemark that anybody is granted. Throws a list of
 * what lacks its comment or has one out of form. A comment that begins with "Internal:" leaves a function out.
 */
export async function readReference(sql: Sql): Promise<Reference> {
  const problems: string[] = []
  const inCatalog = await readRelations(sql)
  const relations = inCatalog.map((relation) =>
    relation.isTable ? relation : describeType(relation, inCatalog, problems),
  )
  for (const { name, comment, columns } of relations) {
    if (!comment) problems.push(`${name} has no comment`)
    for (const column of columns) {
      if (!column.comment) problems.push(`${name}.${column.name} has no comment`)
    }
  }

  const [schema] = await sql<{ comment: string | null }[]>`
    select obj_description('filemark'::regnamespace, 'pg_namespace') as comment`
  const lines = splitComment(schema?.comment ?? '').lines
  const errors = readErrors(lines.get('Errors') ?? '', 'schema filemark', problems)

  const functions: DocumentedFunction[] = []
  for (const { comment, ...fn } of await readFunctions(sql)) {
    if (comment?.startsWith('Internal: ')) continue
    const meaning = readFunctionComment({ comment, ...fn }, relations, problems)
    for (const { code } of meaning.errors) {
      if (code.startsWith('PT') && !errors.some((known) => known.code === code)) {
        problems.push(`${fn.name}: ${code} is not among the errors of schema filemark`)
      }
    }
    functions.push({ ...fn, meaning })
  }
  if (problems.length > 0)
    throw new Error(`comments in sql/ are missing or out of form:\n${problems.join('\n')}`)
  return { errors, functions, relations }
}

/** A composite type, its columns as its own comment tells them. */
function describeType(type: Relation, relations: Relation[], problems: string[]): Relation {
  const { purpose, details, lines } = splitComment(type.comment ?? '')
  const source = relationNamed(lines.get('Columns') ?? '', relations)
  const columns = type.columns.map((column) => {
    const shared = source?.columns.find(({ name }) => name === column.name)
    return { ...column, comment: lines.get(column.name) ?? shared?.comment ?? null }
  })
  const known = ['Columns', ...columns.map(({ name }) => name)]
  const unknown = [...lines.keys()].filter((label) => !known.includes(label))
  if (unknown.length > 0) problems.push(`${type.name}: says what ${unknown.join(' and ')} is, which it lacks`)
  return { ...type, comment: `${purpose} ${details}`.trim(), columns }
}

function readFunctionComment(
  fn: CatalogFunction,
  relations: Relation[],
  problems: string[],
): FunctionComment {
  const complain = (problem: string) => void problems.push(`${fn.name}: ${problem}`)
  const { purpose, details, lines } = splitComment(fn.comment ?? '')
  if (!purpose.endsWith('.')) complain('the comment does not begin with a sentence')

  const returns = lines.get('Returns') ?? ''
  if (fn.returns === 'void' && returns) complain('says what it returns, but returns nothing')
  if (fn.returns !== 'void' && !returns) complain('does not say what it returns')
  const source = relationNamed(returns, relations)

  const parameters = new Map<string, string>()
  for (const { name } of fn.parameters) {
    const meaning = lines.get(name)
    if (meaning) parameters.set(name, meaning)
    else complain(`does not say what ${name} is`)
  }
  const columns = new Map<string, string>()
  for (const { name, type } of fn.columns) {
    const meaning = lines.get(name)
    const shared = source?.columns.find((column) => column.name === name)
    if (meaning) columns.set(name, meaning)
    else if (!shared) complain(`does not say what the column ${name} is`)
    else if (shared.type !== type) complain(`${name} has another type than in ${source?.name}`)
  }

  const known = [...parameters.keys(), 'Returns', ...columns.keys(), 'Errors']
  const labels = [...lines.keys()]
  const unknown = labels.filter((label) => !known.includes(label))
  if (unknown.length > 0) complain(`says what ${unknown.join(' and ')} is, which it lacks`)
  const inOrder = known.filter((label) => labels.includes(label))
  if (unknown.length === 0 && inOrder.join() !== labels.join())
    complain(`${labels.join(', ')} are out of order`)

  const errors = readErrors(lines.get('Errors') ?? '', fn.name, problems)
  return { purpose, details, parameters, returns, columns, source, errors }
}

function relationNamed(text: string, relations: Relation[]): Relation | undefined {
  const [named] = /\bfilemark\.\w+/.exec(text) ?? []
  return relations.find(({ name }) => name === named)
}

/** A comment's first line, its other sentences, and its "label: meaning" lines. */
function splitComment(comment: string): { purpose: string; details: string; lines: Map<string, string> } {
  const [purpose = '', ...rest] = comment.replaceAll(/\n +/g, ' ').split('\n')
  const lines = new Map<string, string>()
  const details: string[] = []
  for (const line of rest) {
    const [, label, meaning = ''] = /^(\w+): (.+)$/.exec(line) ?? []
    if (label) lines.set(label, meaning)
    else details.push(line)
  }
  return { purpose, details: details.join(' ').trim(), lines }
}

/** "PT400 bad argument; PT409 claim lost." */
function readErrors(text: string, name: string, problems: string[]): Refusal[] {
  if (text === '') return []
  const parts = text.replace(/\.$/, '').split(/; (?=[0-9A-Z]{5} )/)
  return parts.flatMap((part) => {
    const [, code, when] = /^([0-9A-Z]{5}) (.+)$/.exec(part) ?? []
    if (code && when) return [{ code, when }]
    problems.push(`${name}: "${part}" is no error`)
    return []
  })
}

async function readRelations(sql: Sql): Promise<Relation[]> {
  return sql<Relation[]>`
    select c.oid::regclass::text as name, c.relkind <> 'c' as "isTable",
           coalesce(obj_description(c.oid, 'pg_class'), obj_description(c.reltype, 'pg_type')) as comment,
           json_agg(json_build_object(
             'name', a.attname,
             'type', replace(format_type(a.atttypid, a.atttypmod), 'timestamp with time zone', 'timestamptz'),
             'default', case when a.attidentity <> '' then 'identity' else pg_get_expr(d.adbin, d.adrelid) end,
             'nullable', not a.attnotnull,
             'comment', col_description(c.oid, a.attnum)) order by a.attnum) as columns
      from pg_class c
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where c.relnamespace = 'filemark'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'f', 'c')
     group by c.oid
     order by c.oid`
}

async function readFunctions(sql: Sql): Promise<CatalogFunction[]> {
  return sql<CatalogFunction[]>`
    select n.nspname || '.' || p.proname as name, obj_description(p.oid, 'pg_proc') as comment,
           arguments.parameters, arguments.columns, granted.callers, p.provolatile = 'v' as writes,
           case when not p.proretset then
             replace(format_type(p.prorettype, null), 'timestamp with time zone', 'timestamptz')
           end as returns
      from pg_proc p
      join pg_namespace n on n.oid = p.pronamespace
     cross join lateral (
       select coalesce(json_agg(a.described order by a.i) filter (where a.mode = 'i'), '[]') as parameters,
              coalesce(json_agg(a.described order by a.i) filter (where a.mode in ('o', 't')), '[]') as columns
         from (select i, coalesce(p.proargmodes[i], 'i') as mode, json_build_object(
                        'name', p.proargnames[i],
                        'type', replace(format_type(coalesce(p.proallargtypes[i], p.proargtypes[i - 1]), null),
                                        'timestamp with time zone', 'timestamptz'),
                        'default', pg_get_function_arg_default(p.oid, i)) as described
                 from generate_series(1, coalesce(cardinality(p.proallargtypes), p.pronargs)) i) a) arguments
     cross join lateral (
       select array_agg(coalesce(r.rolname, 'public')::text order by r.rolname) as callers
         from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
         left join pg_roles r on r.oid = g.grantee
        where g.grantee <> p.proowner) granted
     where granted.callers is not null
       and (n.nspname = 'filemark'
            or (n.nspname = 'public' and not exists (
                  select from pg_depend d
                   where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')))
     order by p.oid`
}
