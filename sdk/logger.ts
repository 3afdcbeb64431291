/** A logger of pino's shape: fields first, then the message, which is the event's name. */
export interface Logger {
  debug(fields: Record<string, unknown>, message: string): void
  info(fields: Record<string, unknown>, message: string): void
  warn(fields: Record<string, unknown>, message: string): void
  error(fields: Record<string, unknown>, message: string): void
}

/** Writes one event. */
export type Log = (level: keyof Logger, event: string, fields: Record<string, unknown>) => void

/**
 * Events for that logger, each with the fields common to all; silent without a logger. What a logger throws, at once or
 * later, is dropped: a broken log never breaks a claim.
 */
export function logTo(logger: Logger | undefined, common: Record<string, unknown>): Log {
  return (level, event, fields) => {
    try {
      const written: unknown = logger?.[level]({ event, ...common, ...fields }, event)
      if (written instanceof Promise) written.catch(() => {})
    } catch {
      // See above.
    }
  }
}
