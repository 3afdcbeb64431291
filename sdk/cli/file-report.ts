import { formatTable } from './table.ts'

/** How a run left a file. */
export interface FileReport {
  name: string
  outcome:
    | 'completed'
    /** By another worker, or before this run. */
    | 'already completed'
    | 'skipped'
    | 'failed'
    | 'dead letter'
    | 'paused'
    /** The run was stopped while the file was in work. */
    | 'released'
    /** The run was stopped before. */
    | 'not done'
  /** Records of the file, and how many rows they became in the target; null where it is not known. */
  records: number | null
  persisted: number | null
  /** What else is to be said: why, where from, until when. */
  detail: string
}

/** In the order of the table: what needs a look stands last, where one looks first. */
const OUTCOMES: readonly FileReport['outcome'][] = [
  'completed',
  'already completed',
  'skipped',
  'not done',
  'released',
  'paused',
  'failed',
  'dead letter',
]

/** Whether the file makes the run a failed one. */
export function isFailure({ outcome }: FileReport): boolean {
  return outcome === 'failed' || outcome === 'dead letter' || outcome === 'paused'
}

/** The table at the end of a run, with a line of totals under it. */
export function formatReports(reports: readonly FileReport[]): string {
  const groups = OUTCOMES.map((outcome) => reports.filter((report) => report.outcome === outcome))
  const rows = groups
    .flatMap((group) => group.toSorted((a, b) => (a.name < b.name ? -1 : 1)))
    .map(({ name, outcome, records, persisted, detail }) => [
      name,
      outcome,
      records ?? '',
      persisted ?? '',
      detail,
    ])
  const totals = groups.flatMap((group) => (group[0] ? [`${group.length} ${group[0].outcome}`] : []))
  return `${formatTable(['file', 'outcome', 'records', 'persisted', ''], rows)}\n\n${countFiles(reports.length)}: ${totals.join(', ')}\n`
}

/** `1 file`, `3 files`. */
export function countFiles(count: number): string {
  return count === 1 ? '1 file' : `${count} files`
}
