import type { Sql } from 'postgres'

/**
 * Polls `condition` until it gives something truthy, and returns that.
 * Throws when `timeoutMs` (default 10,000) pass first; `what` says in the message what was awaited.
 */
export async function until<T>(
  condition: () => T | Promise<T>,
  { timeoutMs = 10_000, what = String(condition) }: { timeoutMs?: number; what?: string } = {},
): Promise<NonNullable<T>> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const value = await condition()
    if (value) return value as NonNullable<T>
    if (performance.now() > deadline) throw new Error(`waited ${timeoutMs} ms in vain for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

/** Waits until the backend `pid` is blocked by a lock that another session holds. */
export async function untilLocked(sql: Sql, pid: number, timeoutMs = 10_000): Promise<void> {
  await until(
    async () =>
      (await sql`select from pg_stat_activity where pid = ${pid} and wait_event_type = 'Lock'`).length > 0,
    { timeoutMs, what: `backend ${pid} to wait for a lock` },
  )
}
