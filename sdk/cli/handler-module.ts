import { access } from 'node:fs/promises'
import { resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import type { FileClaim } from '../index.ts'
import type { FileType, SourceRecord } from './formats/record-format.ts'
import { UsageError } from './usage-error.ts'

/** What a handler is told besides the records. */
export interface HandlerContext {
  fileUrl: string
  fileType: FileType
  /** The number of the batch's first record in its file, counting from 0. */
  firstRecord: number
  /** Aborts when the claim is lost: another worker has the file, and nothing of this batch will be loaded. */
  signal: AbortSignal
  claim: FileClaim
}

/** What the module given as `--handler` exports. */
export interface HandlerModule {
  /** The table the rows go to, `schema.table`. */
  target: string
  /** Makes the rows of the target out of records of the file; as many or as few as it likes. */
  handle: (records: SourceRecord[], context: HandlerContext) => object[] | Promise<object[]>
  /** SQL that is run once before the work begins, in one transaction, by one worker at a time. */
  setup?: string
}

/** Loads a handler module, and says what it lacks. */
export async function loadHandlerModule(path: string): Promise<HandlerModule> {
  const file = resolve(path)
  await access(file).catch(() => {
    throw new UsageError(`there is no handler module ${path}`)
  })
  const module = await importModule(path, file)
  const { target, handle, setup } = module
  const wrong = [
    typeof target !== 'string' || target === ''
      ? `a table to load into: export const target = 'public.events'`
      : '',
    typeof handle !== 'function'
      ? `a function: export function handle(records, context) { return rows }`
      : '',
    setup !== undefined && typeof setup !== 'string'
      ? `SQL as text in its export setup, not ${typeof setup}`
      : '',
  ].filter((problem) => problem !== '')
  if (wrong.length > 0) throw new UsageError(`the handler module ${path} needs ${wrong.join('; and ')}`)
  return module as unknown as HandlerModule
}

async function importModule(path: string, file: string): Promise<Record<string, unknown>> {
  try {
    return await import(pathToFileURL(file).href)
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    throw new UsageError(
      code === 'ERR_UNKNOWN_FILE_EXTENSION'
        ? `the handler module ${path} cannot be loaded: for TypeScript, Node 22.18 or newer is needed (this is ${process.version})`
        : `the handler module ${path} cannot be loaded: ${message}`,
      { cause: error },
    )
  }
}
