import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { promisify } from 'node:util'

/**
 * Runs a command-line tool that `.ci/run` installed below FILEMARK_CI_TOOLS, and returns all that it printed. Throws
 * when the tool is not there or fails; the message holds what it printed.
 */
export async function runTool(
  name: 'supabase' | 'dbmate',
  args: string[],
  env: Record<string, string> = {},
): Promise<string> {
  const tool = `${process.env.FILEMARK_CI_TOOLS}/node_modules/.bin/${name}`
  if (!existsSync(tool)) throw new Error(`${tool} is missing: set FILEMARK_CI_TOOLS as .ci/run does`)
  try {
    const { stdout, stderr } = await promisify(execFile)(tool, args, { env: { ...process.env, ...env } })
    return stdout + stderr
  } catch (cause) {
    const { stdout, stderr } = cause as { stdout?: string; stderr?: string }
    throw new Error(`${name} ${args.join(' ')} failed:\n${stdout}${stderr}`, { cause })
  }
}
