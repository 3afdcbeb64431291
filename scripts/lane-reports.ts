import { existsSync, readFileSync } from 'node:fs'

/** A test of a lane. */
export interface LaneTest {
  /** From the repository: `test/behaviour/claims.test.ts`. */
  file: string
  /** The titles of its describes and its own. */
  titles: string[]
  /** Where it stands in the file. The cases of a `test.each` stand at one place. */
  place: string
  status: 'passed' | 'failed' | 'skipped'
  /** Why it does not run in this lane (test/behaviour/lane.ts). */
  excluded: string | undefined
}

export interface Lane {
  name: string
  tests: LaneTest[]
}

/** What is read here of vitest's JSON report. */
export interface Report {
  testResults: {
    name: string
    assertionResults: {
      ancestorTitles: string[]
      title: string
      status: string
      location?: { line: number; column: number } | null
      meta?: { excluded?: string }
    }[]
  }[]
}

/** Lanes without tests of test/behaviour, by name. */
const withoutBehaviour = new Map([['CI tools', 'runs test/ci, which needs tools that npm ci does not bring']])

/** The lanes that .ci/run went through, from steps.tsv and the reports beside it. A lane without a report has no tests. */
export function readLanes(directory: string): Lane[] {
  return readFileSync(`${directory}/steps.tsv`, 'utf8')
    .split('\n')
    .flatMap((line) => /^lane (.*?)\t/.exec(line)?.[1] ?? [])
    .map((name) => {
      const file = `${directory}/${name.replaceAll(' ', '-')}.json`
      return readLane(name, existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : { testResults: [] })
    })
}

/** A lane from its report. */
export function readLane(name: string, report: Report): Lane {
  const tests = report.testResults.flatMap(({ name: path, assertionResults }) =>
    assertionResults.map(({ ancestorTitles, title, status, location, meta }): LaneTest => {
      const titles = [...ancestorTitles, title]
      return {
        file: path.replace(/^.*\/(?=test\/)/, ''),
        titles,
        place: location ? `${location.line}:${location.column}` : titles.join(' > '),
        status: status === 'passed' || status === 'failed' ? status : 'skipped',
        excluded: meta?.excluded || undefined,
      }
    }),
  )
  return { name, tests }
}

/** The lanes that have to run every test of test/behaviour. */
export function behaviourLanes(lanes: readonly Lane[]): Lane[] {
  return lanes.filter(({ name }) => !withoutBehaviour.has(name))
}

export function isBehaviour({ file }: LaneTest): boolean {
  return file.startsWith('test/behaviour/')
}

export function groupBy<T>(items: readonly T[], key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>()
  for (const item of items) {
    const group = groups.get(key(item))
    if (group) group.push(item)
    else groups.set(key(item), [item])
  }
  return groups
}
