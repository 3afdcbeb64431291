// Writes the one migration that is not released yet: what turns the database of the released migrations into the
// one that sql/ makes.
//   npm run build:migration
// The difference is worked out by the Supabase CLI (pg-delta), which `.ci/tools` installs, between two databases
// on a Postgres of the script's own. What a change of the schema alone cannot bring along, such as rows to fill in, is
// written by hand into sql/upgrade/<version>.sql.
import { execFile } from 'node:child_process'
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import postgres from 'postgres'
import { installFilemark, runSql, sqlDirectory } from '../test/servers/install.ts'
import { startPostgres } from '../test/servers/postgres.ts'
import { findCiTool } from './ci-tool.ts'
import { type Migration, migrationsDirectory, readChecksums, readMigrations } from './migrations.ts'

export interface MigrationOptions {
  /** The migrations that databases out there have. */
  released: Migration[]
  /** Of the migration that is built, for example 0.2.0. */
  version: string
}

/**
 * The text of the migration from `released` to what sqlDirectory() makes; undefined when there is no difference.
 * Throws what the Supabase CLI says when it cannot tell the difference.
 */
export async function buildMigration({ released, version }: MigrationOptions): Promise<string | undefined> {
  await using server = await startPostgres()
  const from = await makeDatabase(server.url(), 'released')
  const to = await makeDatabase(server.url(), 'built')
  await runSql(from, released)
  await installFilemark(to)
  const changes = await diff(from, to)
  const comments = await viewComments(from, to)
  const upgrade = `${sqlDirectory()}/upgrade/${version}.sql`
  const data = existsSync(upgrade) ? readFileSync(upgrade, 'utf8').trim() : undefined
  if (changes === '' && comments === '' && data === undefined) return undefined
  return [
    `-- filemark ${version}: built by \`npm run build:migration\` from sql/, where what is here is explained.
-- Install with \`supabase db push\` or with \`dbmate up\`: both take this file as it is.

-- migrate:up

-- Rather than wait behind a long transaction, and let every worker wait behind it, the migration fails.
set local lock_timeout = '30s';
`,
    preflight(version, released.at(-1)?.name ?? '', await publicFunctions(from), await publicFunctions(to)),
    `${changes}\n`,
    comments && `${comments}\n`,
    data && `-- sql/upgrade/${version}.sql\n\n${data}\n`,
    // Of default privileges that give rights by name, a difference between plain databases knows nothing.
    `-- sql/99_grants.sql\n\n${readFileSync(`${sqlDirectory()}/99_grants.sql`, 'utf8').trim()}\n`,
    `notify pgrst, 'reload schema';\n\n-- migrate:down\n`,
  ]
    .filter((part) => part !== undefined)
    .join('\n')
}

async function makeDatabase(server: string, name: string): Promise<string> {
  await runSql(server, [{ name, text: `create database ${name}` }])
  return Object.assign(new URL(server), { pathname: `/${name}` }).href
}

async function diff(from: string, to: string): Promise<string> {
  const { stdout } = await promisify(execFile)(
    findCiTool('supabase'),
    ['db', 'diff', '--use-pg-delta', `--from=${from}`, `--to=${to}`, '-s', 'public,filemark'],
    { maxBuffer: 64 << 20, timeout: 120_000, env: { ...process.env, PGSSLMODE: 'disable' } },
  )
  return stdout.replaceAll(/[ \t]+$/gm, '').trim()
}

/** What the columns of views mean, where that has changed: pg-delta leaves it out. */
async function viewComments(from: string, to: string): Promise<string> {
  const read = async (url: string): Promise<string[]> => {
    const sql = postgres(url, { max: 1 })
    const rows = await sql<{ statement: string }[]>`
      select format('COMMENT ON COLUMN %s.%I IS %L;', c.oid::regclass, a.attname, col_description(c.oid, a.attnum))
               as statement
        from pg_class c
        join pg_attribute a on a.attrelid = c.oid and a.attnum > 0
       where c.relnamespace = 'filemark'::regnamespace and c.relkind = 'v'
         and col_description(c.oid, a.attnum) is not null
       order by c.oid, a.attnum`
    await sql.end()
    return rows.map(({ statement }) => statement)
  }
  const known = new Set(await read(from))
  return (await read(to)).filter((statement) => !known.has(statement)).join('\n')
}

/** The functions of schema public as `name(arguments)`. */
async function publicFunctions(url: string): Promise<{ name: string; signature: string }[]> {
  const sql = postgres(url, { max: 1 })
  const rows = await sql<{ name: string; signature: string }[]>`
    select proname as name, format('%s(%s)', proname, pg_get_function_identity_arguments(oid)) as signature
      from pg_proc where pronamespace = 'public'::regnamespace order by 2`
  await sql.end()
  return [...rows]
}

/** Stops before anything is changed where the migration cannot be applied, and says what to do. */
function preflight(
  version: string,
  previous: string,
  released: { signature: string }[],
  built: { name: string }[],
): string {
  const list = (texts: string[]) => [...new Set(texts)].map((text) => `\n       '${text}'`).join(',')
  return `do $preflight$
declare
  v_foreign text;
begin
  if to_regclass('filemark.file_checkpoints') is null then
    raise exception 'filemark ${version} cannot be installed: the migrations before it have not been applied'
      using errcode = 'undefined_table',
            hint = 'Apply ${previous} first: npx filemark init puts it beside this one.';
  end if;
  -- Functions of the names of this version that no version before it installed.
  select string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text)
    into v_foreign
    from pg_catalog.pg_proc p
   where p.pronamespace = 'public'::regnamespace
     and p.proname in (${list(built.map(({ name }) => name))})
     and format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) not in (${list(
       released.map(({ signature }) => signature),
     )});
  if v_foreign is not null then
    raise exception 'filemark ${version} cannot be installed: schema public already has %', v_foreign
      using errcode = 'duplicate_function',
            detail = 'filemark installs functions of these names in public. Nothing has been changed.',
            hint = 'Move yours out of the way first, for example: create schema legacy; alter function '
                   || split_part(v_foreign, ', ', 1) || ' set schema legacy;';
  end if;
end
$preflight$;
`
}

async function main(): Promise<void> {
  const { version } = JSON.parse(
    readFileSync(fileURLToPath(new URL('../package.json', import.meta.url)), 'utf8'),
  )
  const checksums = readChecksums()
  const [released, [pending, ...others]] = [
    readMigrations().filter(({ name }) => name in checksums),
    readMigrations().filter(({ name }) => !(name in checksums)),
  ]
  if (others.length > 0) throw new Error('there is more than one migration that is not released')
  const suffix = `_filemark_${version.replaceAll('.', '_')}.sql`
  const released_version = released.find(({ name }) => name.endsWith(suffix))
  if (released_version)
    throw new Error(`${released_version.name} is released: raise the version in package.json`)

  const text = await buildMigration({ released, version })
  const time = pending?.name.slice(0, 14) ?? new Date().toISOString().replaceAll(/\D/g, '').slice(0, 14)
  if (pending) rmSync(migrationsDirectory + pending.name)
  if (text === undefined) {
    console.log('sql/ is what the released migrations make')
  } else {
    writeFileSync(`${migrationsDirectory}${time}${suffix}`, text)
    console.log(`wrote supabase/migrations/${time}${suffix}`)
  }
}

if (import.meta.main) await main()
