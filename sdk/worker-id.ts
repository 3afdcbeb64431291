/** `worker_<host>_<pid>_<random>`. Where a runtime does not tell its host or process, `unknown` and 0 stand for them. */
export function newWorkerId(): string {
  const { host, pid } = whereAmI()
  return `worker_${host.slice(0, 100)}_${pid}_${crypto.randomUUID().slice(0, 8)}`
}

interface Runtime {
  process?: { pid?: number; getBuiltinModule?(name: string): { hostname(): string } | undefined }
  Deno?: { pid?: number; hostname(): string }
}

/** Asks the runtime without importing from it: the SDK also runs in browsers' and Edge Functions' runtimes. */
function whereAmI(): { host: string; pid: number } {
  const { process, Deno } = globalThis as Runtime
  let host: string | undefined
  try {
    host = Deno ? Deno.hostname() : process?.getBuiltinModule?.('node:os')?.hostname()
  } catch {
    // Not allowed to know.
  }
  return { host: host || 'unknown', pid: Deno?.pid ?? process?.pid ?? 0 }
}
