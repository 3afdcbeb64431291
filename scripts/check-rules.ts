// Fails unless every rule of docs/rules.md has a passed test named `rule 6.n: …` in every lane that runs test/behaviour.
//   check-rules.ts <directory with steps.tsv and the lanes' JSON reports>
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { behaviourLanes, type Lane, readLanes } from './lane-reports.ts'

/** What a lane cannot prove. Its tests must be excluded there, with their own reasons. */
export const unprovable: { lane: string; rule: string; reason: string }[] = [
  { lane: 'PGlite', rule: '6.10', reason: 'an order of locks shows only between two sessions' },
]

/** The numbers of the rules: `6.1`, `6.2`, … */
export function ruleNumbers(markdown: string): string[] {
  return [...markdown.matchAll(/^## Rule (\d+\.\d+): \S/gm)].map(([, number]) => number ?? '')
}

/** How many passed tests each rule has in each lane, to print, and what CI fails for. */
export function checkRules(
  rules: readonly string[],
  all: readonly Lane[],
  exceptions = unprovable,
): { text: string; faults: string[] } {
  const lanes = behaviourLanes(all)
  const faults: string[] = []
  if (rules.length === 0) faults.push('docs/rules.md has no heading like "## Rule 6.1: …"')
  if (lanes.length === 0) faults.push('no lane has run')
  const lines = [['rule', ...lanes.map(({ name }) => name)]]
  for (const rule of rules) {
    const counts = lanes.map(({ name, tests }) => {
      const passed = tests.filter(
        (test) => test.status === 'passed' && provenRules(test.titles).includes(rule),
      ).length
      const exception = exceptions.find((entry) => entry.lane === name && entry.rule === rule)
      if (passed === 0 && !exception)
        faults.push(`${name}: rule ${rule} has no passed test named "rule ${rule}: …"`)
      if (passed > 0 && exception)
        faults.push(`${name}: rule ${rule} is proved, so it is no exception: check-rules.ts`)
      return passed === 0 && exception ? 'excepted' : String(passed)
    })
    lines.push([rule, ...counts])
  }
  for (const { name, tests } of lanes) {
    const named = new Set(tests.flatMap(({ titles }) => provenRules(titles)))
    for (const rule of [...named].filter((number) => !rules.includes(number))) {
      faults.push(`${name}: a test is named for rule ${rule}, which docs/rules.md does not have`)
    }
  }
  const width = Math.max(...lanes.map(({ name }) => name.length), 8) + 2
  const table = lines.map((line) =>
    line
      .map((value) => value.padEnd(width))
      .join('')
      .trimEnd(),
  )
  const notes = exceptions.map(({ lane, rule, reason }) => `${lane} is excepted from rule ${rule}: ${reason}`)
  return { text: [...table, ...notes].join('\n'), faults }
}

/** The rules that a test is named for, or one of its describes. */
function provenRules(titles: readonly string[]): string[] {
  return titles.flatMap((title) =>
    [...title.matchAll(/\brule (\d+\.\d+):/g)].map(([, number]) => number ?? ''),
  )
}

if (import.meta.main) {
  const rules = ruleNumbers(readFileSync(fileURLToPath(new URL('../docs/rules.md', import.meta.url)), 'utf8'))
  const { text, faults } = checkRules(rules, readLanes(process.argv[2] ?? '.'))
  console.log(text)
  for (const fault of faults) console.error(fault)
  process.exitCode = faults.length === 0 ? 0 : 1
}
