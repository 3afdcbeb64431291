// Prints which test of test/behaviour ran in which lane, and why a test did not run in one; every test by its full name
// goes to tests-by-lane.tsv.
//   lane-table.ts <directory with steps.tsv and the lanes' JSON reports>
// Fails when a test is missing from a lane, is skipped without a reason, or runs in no lane at all.
import { writeFileSync } from 'node:fs'
import { behaviourLanes, groupBy, isBehaviour, type Lane, type LaneTest, readLanes } from './lane-reports.ts'

/** A test with what became of it in each lane, in the order of the lanes; undefined where it is missing. */
interface Row {
  test: LaneTest
  inLanes: (LaneTest | undefined)[]
}

export interface LaneTable {
  /** To print. */
  text: string
  /** Every test and every lane, as tab-separated values. */
  list: string
  /** What CI fails for. */
  faults: string[]
}

/** Compares the lanes test by test. */
export function compareLanes(all: readonly Lane[]): LaneTable {
  const lanes = behaviourLanes(all)
  const rows = collectRows(lanes)
  const faults = [
    ...lanes
      .filter(({ tests }) => !tests.some(isBehaviour))
      .map(({ name }) => `${name}: no test of test/behaviour`),
    ...all.flatMap(({ name, tests }) =>
      tests
        .filter(({ status, excluded }) => status === 'skipped' && !excluded)
        .map((test) => `${name}: skipped without a reason: ${fullName(test)}`),
    ),
    ...rows.flatMap(({ test, inLanes }) =>
      lanes.filter((_, index) => !inLanes[index]).map(({ name }) => `${name}: missing: ${fullName(test)}`),
    ),
    ...rows
      .filter(({ inLanes }) =>
        inLanes.every((test) => test?.status !== 'passed' && test?.status !== 'failed'),
      )
      .map(({ test }) => `runs in no lane: ${fullName(test)}`),
  ]
  return { text: `${table(lanes, rows)}\n${exclusions(all)}`, list: list(lanes, rows), faults }
}

function fullName({ file, titles }: LaneTest): string {
  return [file, ...titles].join(' > ')
}

/** One row for each test of test/behaviour that any lane has. Of tests with one name the first is paired with the first. */
function collectRows(lanes: readonly Lane[]): Row[] {
  const rows = new Map<string, Row>()
  lanes.forEach(({ tests }, index) => {
    const seen = new Map<string, number>()
    for (const test of tests.filter(isBehaviour)) {
      const name = fullName(test)
      const count = (seen.get(name) ?? 0) + 1
      seen.set(name, count)
      const key = `${name} #${count}`
      const row = rows.get(key) ?? { test, inLanes: lanes.map(() => undefined) }
      row.inLanes[index] = test
      rows.set(key, row)
    }
  })
  return [...rows.values()]
}

/** The cases of one `test.each` together, by their place in the file. */
function groupByPlace(rows: readonly Row[]): Row[][] {
  return [...groupBy(rows, ({ test }) => `${test.file}:${test.place}`).values()]
}

function table(lanes: readonly Lane[], rows: readonly Row[]): string {
  const totals = lanes.map((_, index) => cell(rows.map(({ inLanes }) => inLanes[index])))
  const width = Math.max(...totals.map(({ length }) => length), 6) + 2
  const lines = lanes.map(({ name }, index) => `${String(index + 1).padStart(width)}  ${name}`)
  lines.push(
    '',
    `${lanes.map((_, index) => String(index + 1).padStart(width)).join('')}  tests passed in lane …`,
  )
  for (const [file, inFile] of groupBy(rows, ({ test }) => test.file)) {
    lines.push('', `${' '.repeat(width * lanes.length)}  ${file}`)
    for (const group of groupByPlace(inFile)) {
      const cells = lanes.map((_, index) => cell(group.map(({ inLanes }) => inLanes[index])).padStart(width))
      lines.push(`${cells.join('')}  ${commonName(group.map(({ test }) => test.titles))}`)
    }
  }
  lines.push('', `${totals.map((total) => total.padStart(width)).join('')}  all`)
  lines.push('', '"-n": n tests excluded, below; "!n": n tests failed or missing.')
  return lines.join('\n')
}

function cell(tests: readonly (LaneTest | undefined)[]): string {
  const passed = tests.filter((test) => test?.status === 'passed').length
  const excluded = tests.filter((test) => test?.status === 'skipped').length
  const bad = tests.length - passed - excluded
  return [
    passed || excluded + bad === 0 ? passed : '',
    excluded ? `-${excluded}` : '',
    bad ? `!${bad}` : '',
  ].join('')
}

/** What the names of a test's cases have in common, with … for what differs. */
export function commonName(names: readonly (readonly string[])[]): string {
  const [first = []] = names
  return first.map((_, index) => commonText(names.map((titles) => titles[index] ?? ''))).join(' > ')
}

function commonText(texts: readonly string[]): string {
  const words = texts.map((text) => text.split(' '))
  const [first = []] = words
  const shortest = Math.min(...words.map(({ length }) => length))
  let head = 0
  while (head < shortest && words.every((others) => others[head] === first[head])) head += 1
  if (words.every(({ length }) => length === head)) return texts[0] ?? ''
  let tail = 0
  while (tail < shortest - head && words.every((others) => others.at(-1 - tail) === first.at(-1 - tail)))
    tail += 1
  return [...first.slice(0, head), '…', ...first.slice(first.length - tail)].join(' ')
}

/** Every exclusion: the reason, the lane, the tests. */
function exclusions(lanes: readonly Lane[]): string {
  const lines: string[] = []
  for (const { name, tests } of lanes) {
    const excluded = tests.filter(({ status }) => status === 'skipped')
    for (const [reason, those] of groupBy(excluded, (test) => test.excluded ?? 'NO REASON')) {
      lines.push('', `Excluded from ${name}, ${those.length} of ${tests.length} tests: ${reason}`)
      for (const group of groupBy(those, ({ file, place }) => `${file}:${place}`).values()) {
        const count = group.length > 1 ? `${group.length} x ` : ''
        lines.push(`  ${count}${group[0]?.file} > ${commonName(group.map(({ titles }) => titles))}`)
      }
    }
  }
  return lines.length === 0 ? '\nNothing is excluded.' : lines.join('\n')
}

function list(lanes: readonly Lane[], rows: readonly Row[]): string {
  const lines = [['file', 'test', ...lanes.map(({ name }) => name)]]
  for (const { test, inLanes } of rows) {
    const results = inLanes.map((result) =>
      result?.status === 'skipped'
        ? `excluded: ${result.excluded ?? 'NO REASON'}`
        : (result?.status ?? 'MISSING'),
    )
    lines.push([test.file, test.titles.join(' > '), ...results])
  }
  return lines.map((line) => `${line.map((text) => text.replaceAll(/[\t\r\n]/g, ' ')).join('\t')}\n`).join('')
}

if (import.meta.main) {
  const directory = process.argv[2] ?? '.'
  const { text, list, faults } = compareLanes(readLanes(directory))
  writeFileSync(`${directory}/tests-by-lane.tsv`, list)
  console.log(`${text}\n\nEach test by its full name: ${directory}/tests-by-lane.tsv`)
  for (const fault of faults) console.error(fault)
  process.exitCode = faults.length === 0 ? 0 : 1
}
