import { readdirSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { build } from 'tsdown'
import { expect, test } from 'vitest'

const sdk = join(import.meta.dirname, '../../sdk')

test('the main entry imports nothing but its own files, and stays small', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'filemark-bundle-'))
  try {
    await build({
      config: false,
      entry: { index: join(sdk, 'index.ts') },
      outDir: directory,
      platform: 'neutral',
      minify: true,
      dts: false,
      logLevel: 'error',
    })
    const files = readdirSync(directory)
    expect(files).toHaveLength(1)
    const bundle = readFileSync(join(directory, String(files[0])), 'utf8')
    expect(bundle).not.toMatch(/\bimport\b|\brequire\b/)
    expect(Buffer.byteLength(bundle)).toBeLessThan(30_000)
    // It is whole: another runtime could use it as it is.
    expect(await import(join(directory, String(files[0])))).toHaveProperty('CheckpointManager')
  } finally {
    await rm(directory, { recursive: true })
  }
})

test('only the embedded database and the command line import packages', () => {
  const imports = readdirSync(sdk)
    .filter((name) => name.endsWith('.ts'))
    .flatMap((name) => {
      const text = readFileSync(join(sdk, name), 'utf8')
      return Array.from(
        text.matchAll(/(?:from|import\() ?'([^.'][^']*)'/g),
        ([, module]) => `${name}: ${module}`,
      )
    })
    .filter((line) => !line.includes(': node:'))
  expect(imports).toEqual(['embedded.ts: @electric-sql/pglite'])
})
