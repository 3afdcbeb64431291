const SIGNALS = { SIGINT: 130, SIGTERM: 143 } as const

export interface Stopping {
  /** Aborts at the first SIGINT or SIGTERM. */
  signal: AbortSignal
  /** The exit code of a program that was stopped by the signal that came, or undefined when none came. */
  exitCode: () => number | undefined
}

/** Lets the first Ctrl-C (or SIGTERM) end the work in an orderly way; a second one ends the process at once. */
export function stopOnSignals(): Stopping {
  const controller = new AbortController()
  let exitCode: number | undefined
  for (const [name, code] of Object.entries(SIGNALS)) {
    process.on(name, () => {
      if (exitCode !== undefined) {
        // Progress bars hide the cursor.
        if (process.stdout.isTTY) process.stdout.write('\u001b[?25h\n')
        process.exit(code)
      }
      exitCode = code
      process.stderr.write(`\n${name}: finishing the batches in work; once more to stop at once\n`)
      controller.abort(new Error(`stopped by ${name}`))
    })
  }
  return { signal: controller.signal, exitCode: () => exitCode }
}
