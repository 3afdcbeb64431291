// Prints what .ci/run found out: a table of its steps, and as the last line the number of tests in all lanes.
//   ci-summary.ts <directory with steps.tsv and the lanes' JSON reports>
// A step that failed without a failed test to show for it counts as one failure; so does a lane that ran nothing.
import { existsSync, readFileSync } from 'node:fs'

interface Report {
  numPassedTests: number
  numFailedTests: number
  numPendingTests: number
  numTodoTests: number
}

const directory = process.argv[2]
const total = { passed: 0, failed: 0, skipped: 0 }

function row(name: string, result: string, ...numbers: (number | string)[]): string {
  return name.padEnd(28) + result.padEnd(8) + numbers.map((n) => String(n).padStart(9)).join('')
}

console.log(`\n${row('', '', 'passed', 'failed', 'skipped', 'seconds')}`)
for (const line of readFileSync(`${directory}/steps.tsv`, 'utf8').trim().split('\n')) {
  const [name = '', outcome = '', seconds = ''] = line.split('\t')
  const lane = /^lane (.*)$/.exec(name)?.[1]
  if (lane === undefined) {
    console.log(row(name, outcome, '', outcome === 'ok' ? '' : 1, '', seconds))
    if (outcome !== 'ok') total.failed += 1
    continue
  }
  const file = `${directory}/${lane.replaceAll(' ', '-')}.json`
  const report: Partial<Report> = existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')) : {}
  const passed = report.numPassedTests ?? 0
  const skipped = (report.numPendingTests ?? 0) + (report.numTodoTests ?? 0)
  const good = outcome === 'ok' && passed > 0
  const failed = good ? (report.numFailedTests ?? 0) : Math.max(report.numFailedTests ?? 0, 1)
  total.passed += passed
  total.failed += failed
  total.skipped += skipped
  console.log(
    row(name, failed === 0 ? 'ok' : passed === 0 ? 'NOTHING' : 'FAILED', passed, failed, skipped, seconds),
  )
}
console.log(`\n${total.passed} passed, ${total.failed} failed, ${total.skipped} skipped`)
process.exitCode = total.failed === 0 ? 0 : 1
