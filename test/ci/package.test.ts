import { execFileSync } from 'node:child_process'
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createDatabase } from '../database.ts'
import { readmeSnippets, takeSnippet } from '../readme-snippets.ts'
import { startPostgrest } from '../servers/postgrest.ts'
import { createUserProject, packFilemark } from '../user-project.ts'
import { runTool } from './tool.ts'

test('the packed package, installed in an empty project, is initialised, pushed and loads with the README program', async () => {
  await using database = await createDatabase({ filemark: false, supabase: 'new' })
  await using project = await createUserProject({ install: ['@supabase/supabase-js@2.119'] })

  await project.sh('npx filemark init')
  const migrations = await readdir(join(project.dir, 'supabase/migrations'))
  expect(migrations).not.toEqual([])
  const push = () =>
    runTool('supabase', ['db', 'push', `--remote=${database.url}`, '--yes', '--workdir', project.dir])
  const pushed = await push()
  for (const migration of migrations) expect(pushed).toContain(`Applying migration ${migration}`)
  expect(await project.sh('npx filemark init')).toMatch(/nothing/i)
  expect(await push()).toMatch(/up to date/)

  await using postgrest = await startPostgrest({ databaseUrl: database.url })
  const snippets = readmeSnippets()
  await database.sql.unsafe(takeSnippet(snippets, 'sql', 'create table public.events')).simple()
  await postgrest.reloadSchema()
  await project.write('load.ts', takeSnippet(snippets, 'ts', '// load.ts'))
  const records = Array.from({ length: 1500 }, (_, id) => ({ id, kind: 'login' }))
  await project.write('events.json', JSON.stringify(records))
  const output = await project.sh('node load.ts', {
    SUPABASE_URL: postgrest.url,
    SUPABASE_SECRET_KEY: postgrest.secretKey,
  })
  expect(output).toContain('drop/events.json completed')
  const [count] = await database.sql`select count(*)::int, count(distinct id)::int as ids from public.events`
  expect(count).toEqual({ count: 1500, ids: 1500 })
})

describe('the packed package', () => {
  let directory: string
  let tarball: string
  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), 'filemark-pack-'))
    tarball = await packFilemark(directory)
  })
  afterAll(() => rm(directory, { recursive: true }))

  // Where CI is set, tools take the terminal for one with colours.
  const plain = { NO_COLOR: '1' }
  // A package of ES modules: what CommonJS without require(esm) makes of it does not count.
  const linters = [
    {
      name: 'publint',
      lint: (file: string) => runTool('publint', ['run', file, '--strict'], plain),
      praise: 'All good!',
      blame: 'missing.d.ts but the file does not exist',
    },
    {
      name: 'attw',
      lint: (file: string) =>
        runTool('attw', [file, '--profile', 'esm-only', '--no-emoji', '--format', 'ascii'], plain),
      praise: 'node16 (from ESM): OK (ESM)',
      blame: 'node16 (from ESM): Used fallback condition',
    },
  ]

  test.each(linters)('is without fault to $name', async ({ lint, praise }) => {
    expect(await lint(tarball)).toContain(praise)
  })

  test.each(linters)('with types that are not there is refused by $name', async ({ name, lint, blame }) => {
    const copy = join(directory, name)
    await mkdir(copy)
    execFileSync('tar', ['-xzf', tarball, '-C', copy])
    const manifest = join(copy, 'package/package.json')
    const { exports, ...rest } = JSON.parse(await readFile(manifest, 'utf8'))
    exports['.'].types = './dist/missing.d.ts'
    await writeFile(manifest, JSON.stringify({ ...rest, exports }))
    const broken = join(directory, `${name}.tgz`)
    execFileSync('tar', ['-czf', broken, '-C', copy, 'package'])
    await expect(lint(broken)).rejects.toThrow(blame)
  })
})
