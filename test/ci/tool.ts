import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { findCiTool } from '../../scripts/ci-tool.ts'

/**
 * Runs a command-line tool that `.ci/tools` installed, and returns all that it printed. Throws when the tool is not
 * there or fails; the message holds what it printed.
 */
export async function runTool(
  name: 'supabase' | 'dbmate' | 'postgres-language-server' | 'publint' | 'attw',
  args: string[],
  env: Record<string, string> = {},
): Promise<string> {
  const tool = findCiTool(name)
  try {
    const { stdout, stderr } = await promisify(execFile)(tool, args, { env: { ...process.env, ...env } })
    return stdout + stderr
  } catch (cause) {
    const { stdout, stderr } = cause as { stdout?: string; stderr?: string }
    throw new Error(`${name} ${args.join(' ')} failed:\n${stdout}${stderr}`, { cause })
  }
}
