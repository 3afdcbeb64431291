import { execFile } from 'node:child_process'
import { mkdir, mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)
const root = join(import.meta.dirname, '..')

/** A project of somebody who uses filemark: a directory with a package.json and the packed package installed. */
export interface UserProject extends AsyncDisposable {
  readonly dir: string
  /** Writes a file of the project. */
  write(name: string, text: string): Promise<void>
  /**
   * Runs a shell command there, with the project's own programs first in PATH, and answers its output. Rejects with
   * the output when the command fails.
   */
  sh(command: string, env?: Record<string, string>): Promise<string>
}

/** Packs this repository as `npm publish` would, in the directory given, and answers the tarball's path. */
export async function packFilemark(directory: string): Promise<string> {
  const { stdout } = await run('npm', ['pack', '--json', '--pack-destination', directory], { cwd: root })
  // The build's own output may stand before npm's.
  const packed = JSON.parse(stdout.slice(stdout.search(/^[[{]/m))) as
    | { filename: string }[]
    | Record<string, { filename: string }>
  const [first] = Object.values(packed)
  if (!first) throw new Error(`npm pack made no tarball: ${stdout}`)
  return join(directory, first.filename)
}

/**
 * Makes a user's project with the packed filemark. Its other packages are those of this repository, linked, so that
 * nothing is fetched; with `install: true` npm installs the tarball and the packages named, for real.
 */
export async function createUserProject(options: { install?: string[] } = {}): Promise<UserProject> {
  const dir = await mkdtemp(join(tmpdir(), 'filemark-user-'))
  const tarball = await packFilemark(dir)
  await writeFile(join(dir, 'package.json'), JSON.stringify({ name: 'user', private: true, type: 'module' }))
  if (options.install) {
    await run('npm', ['install', '--no-audit', '--no-fund', tarball, ...options.install], { cwd: dir })
  } else {
    const modules = join(dir, 'node_modules')
    await mkdir(join(modules, '.bin'), { recursive: true })
    for (const name of await readdir(join(root, 'node_modules'))) {
      if (!name.startsWith('.')) await symlink(join(root, 'node_modules', name), join(modules, name))
    }
    await run('tar', ['-xzf', tarball, '-C', modules])
    await symlink(join(modules, 'package'), join(modules, 'filemark'))
    await symlink(join(modules, 'filemark/dist/cli/main.js'), join(modules, '.bin/filemark'))
  }
  return {
    dir,
    write: (name, text) => writeFile(join(dir, name), text),
    async sh(command, env = {}) {
      const path = `${join(dir, 'node_modules/.bin')}:${join(root, 'node_modules/.bin')}:${process.env.PATH}`
      try {
        const { stdout, stderr } = await run('sh', ['-ec', command], {
          cwd: dir,
          env: { ...process.env, PATH: path, ...env },
        })
        return stdout + stderr
      } catch (error) {
        const { stdout, stderr } = error as { stdout?: string; stderr?: string }
        throw new Error(`${command}\n${stdout ?? ''}${stderr ?? ''}`, { cause: error })
      }
    },
    [Symbol.asyncDispose]: () => rm(dir, { recursive: true, force: true }),
  }
}
