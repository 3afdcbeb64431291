import { MultiBar, Presets, type SingleBar } from 'cli-progress'

/** Where a run shows what it does. */
export interface RunDisplay {
  /** Something happened to a file, or to the run: one line. */
  event: (event: string, text: string) => void
  /** A file of that size is being worked on. */
  begin: (name: string, sizeBytes: number) => void
  progress: (name: string, bytesRead: number, records: number) => void
  end: (name: string) => void
  /** So many of the run's files need no more work. */
  settled: (files: number) => void
  /** Nothing more comes but plain output. */
  close: () => void
}

/** Progress bars in a terminal, one line per event elsewhere. */
export function openDisplay(output: NodeJS.WriteStream, files: number): RunDisplay {
  return output.isTTY ? openBars(output, files) : openLines(output)
}

function openLines(output: NodeJS.WritableStream): RunDisplay {
  return {
    event: (event, text) => output.write(formatEvent(event, text)),
    begin: () => {},
    progress: () => {},
    end: () => {},
    settled: () => {},
    close: () => {},
  }
}

function openBars(output: NodeJS.WriteStream, files: number): RunDisplay {
  const bars = new MultiBar(
    {
      stream: output,
      format: '{bar} {percentage}%  {detail}  {name}',
      barsize: 24,
      hideCursor: true,
      clearOnComplete: true,
      // Ctrl-C is the run's: it ends the bars when the claims are released.
      gracefulExit: false,
      autopadding: true,
    },
    Presets.shades_classic,
  )
  const overall = bars.create(files, 0, { name: '', detail: `0 of ${files} files` })
  const byName = new Map<string, { bar: SingleBar; sizeBytes: number }>()
  return {
    event: (event, text) => {
      // Its bar says that. The escape clears what is left of the bar that stood on the line.
      if (event !== 'claimed') bars.log(formatEvent(event, text).replace('\n', '\u001b[0K\n'))
    },
    begin: (name, sizeBytes) => {
      const total = Math.max(sizeBytes, 1)
      byName.set(name, { bar: bars.create(total, 0, { name, detail: detail(0) }), sizeBytes: total })
    },
    progress: (name, bytesRead, records) => {
      const entry = byName.get(name)
      entry?.bar.update(Math.min(bytesRead, entry.sizeBytes), {
        detail: detail(records),
      })
    },
    end: (name) => {
      const entry = byName.get(name)
      if (entry) bars.remove(entry.bar)
      byName.delete(name)
    },
    settled: (settled) => overall.update(settled, { detail: `${settled} of ${files} files` }),
    close: () => {
      // What was logged since the last redraw is only written by the next one.
      bars.update()
      bars.stop()
    },
  }
}

function detail(records: number): string {
  return `${records.toLocaleString('en-US')} records`.padEnd(18)
}

function formatEvent(event: string, text: string): string {
  return `${event.padEnd(9)}  ${text}\n`
}
