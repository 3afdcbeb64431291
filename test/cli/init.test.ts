import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { installMigrations } from '../../sdk/cli/init.ts'

const now = new Date('2026-11-21T10:15:00.400Z')
let directory: string
let source: string
let target: string

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'filemark-init-'))
  source = join(directory, 'package')
  target = join(directory, 'project', 'supabase', 'migrations')
  await mkdir(source)
  await writeFile(join(source, '20261120120000_filemark.sql'), '-- first')
})
afterEach(() => rm(directory, { recursive: true, force: true }))

async function put(...names: string[]): Promise<void> {
  await mkdir(target, { recursive: true })
  for (const name of names) await writeFile(join(target, name), '-- mine')
}

describe('filemark init', () => {
  it('makes the directory and stamps the migration later than now, its own name kept', async () => {
    const result = await installMigrations(target, { source, now })
    expect(result).toEqual({ written: ['20261121101501_20261120120000_filemark.sql'], present: [] })
    expect(await readdir(target)).toEqual(result.written)
    expect(await readFile(join(target, result.written[0] as string), 'utf8')).toBe('-- first')
  })

  it('does nothing the second time', async () => {
    const first = await installMigrations(target, { source, now })
    const second = await installMigrations(target, { source, now: new Date('2027-01-01') })
    expect(second).toEqual({ written: [], present: first.written })
    expect(await readdir(target)).toEqual(first.written)
  })

  it('stamps it later than the newest there, also when that is later than now', async () => {
    await put(
      '20250101000000_a.sql',
      '20271231235959_b.sql',
      'notes.txt',
      '99990101000000-not-a-migration.sql',
    )
    const { written } = await installMigrations(target, { source, now })
    expect(written).toEqual(['20280101000000_20261120120000_filemark.sql'])
  })

  it('keeps the order of several, a second apart, across the end of a year', async () => {
    await writeFile(join(source, '20261201000000_filemark_2.sql'), '-- second')
    await writeFile(join(source, '20261202000000_filemark_3.sql'), '-- third')
    const { written } = await installMigrations(target, { source, now: new Date('2026-12-31T23:59:58Z') })
    expect(written).toEqual([
      '20261231235959_20261120120000_filemark.sql',
      '20270101000000_20261201000000_filemark_2.sql',
      '20270101000001_20261202000000_filemark_3.sql',
    ])
  })

  it('after an upgrade of the package adds only what is new', async () => {
    const first = await installMigrations(target, { source, now })
    await writeFile(join(source, '20261201000000_filemark_2.sql'), '-- second')
    await put('20270301000000_mine.sql')
    expect(await installMigrations(target, { source, now: new Date('2027-02-01') })).toEqual({
      written: ['20270301000001_20261201000000_filemark_2.sql'],
      present: first.written,
    })
  })

  it('knows a migration that was copied by hand under its own name', async () => {
    await put('20261120120000_filemark.sql')
    expect((await installMigrations(target, { source, now })).written).toEqual([])
  })

  it('says which file is in the way when its version is later than every time', async () => {
    await put('9_mine.sql')
    await expect(installMigrations(target, { source, now })).rejects.toThrow(/version 9:/)
    expect(await readdir(target)).toEqual(['9_mine.sql'])
  })

  it('is later than a version of another length, or one that is no time', async () => {
    await put('20261399_a.sql', '202612311_b.sql')
    const { written } = await installMigrations(target, { source, now })
    expect([...(await readdir(target))].sort().at(-1)).toBe(written[0])
    expect(written[0]).toMatch(/^[0-9]{14}_20261120120000_filemark\.sql$/)
  })
})
