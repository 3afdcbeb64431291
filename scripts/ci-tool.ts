import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

/**
 * The path of a command-line tool that `.ci/tools` installed, below FILEMARK_CI_TOOLS or .cache/ci-tools. Throws when it
 * is not there.
 */
export function findCiTool(name: string): string {
  const directory =
    process.env.FILEMARK_CI_TOOLS ?? fileURLToPath(new URL('../.cache/ci-tools', import.meta.url))
  const tool = `${directory}/node_modules/.bin/${name}`
  if (!existsSync(tool)) throw new Error(`${tool} is missing: install it with .ci/tools`)
  return tool
}
