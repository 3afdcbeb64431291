import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { createDatabase } from '../database.ts'
import { readmeSnippets, takeSnippet } from '../readme-snippets.ts'
import { startPostgrest } from '../servers/postgrest.ts'
import { createUserProject } from '../user-project.ts'
import { runTool } from './tool.ts'

test('the packed package, installed in an empty project, is initialised, pushed and loads with the README program', async () => {
  await using database = await createDatabase({ filemark: false, supabase: 'new' })
  await using project = await createUserProject({ install: ['@supabase/supabase-js@2.119'] })

  await project.sh('npx filemark init')
  const migrations = await readdir(join(project.dir, 'supabase/migrations'))
  expect(migrations).toEqual([expect.stringMatching(/^\d{14}_\d{14}_filemark\.sql$/)])
  const push = () =>
    runTool('supabase', ['db', 'push', `--remote=${database.url}`, '--yes', '--workdir', project.dir])
  expect(await push()).toContain(`Applying migration ${migrations[0]}`)
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
