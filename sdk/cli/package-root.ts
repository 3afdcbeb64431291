import { readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

interface Package {
  /** The directory with filemark's package.json. */
  root: string
  version: string
}

/** This package, found from this module upwards: it runs from `sdk/cli/` and, bundled, from somewhere in `dist/`. */
export function findPackage(): Package {
  let directory = dirname(fileURLToPath(import.meta.url))
  while (directory !== dirname(directory)) {
    const manifest = readManifest(directory)
    if (manifest?.name === 'filemark') return { root: directory, version: manifest.version }
    directory = dirname(directory)
  }
  throw new Error(`filemark's package.json is not above ${fileURLToPath(import.meta.url)}`)
}

function readManifest(directory: string): { name: string; version: string } | null {
  try {
    return JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8'))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw error
  }
}
