import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { describe, expect, onTestFinished, test } from 'vitest'
import { checkRules, ruleNumbers } from '../../scripts/check-rules.ts'
import { type Lane, type Report, readLane } from '../../scripts/lane-reports.ts'
import { commonName, compareLanes } from '../../scripts/lane-table.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** A test in a report: its full name as `file > describe > title`, and what became of it. */
interface Entry {
  name: string
  status?: string
  line?: number
  excluded?: string
}

function report(entries: Entry[], clone = '/somewhere'): Report {
  return {
    testResults: entries.map(({ name, status = 'passed', line, excluded }) => {
      const [file = '', ...titles] = name.split(' > ')
      return {
        name: `${clone}/test/${file}`,
        assertionResults: [
          {
            ancestorTitles: titles.slice(0, -1),
            title: titles.at(-1) ?? '',
            status,
            location: line ? { line, column: 3 } : null,
            meta: excluded ? { excluded } : {},
          },
        ],
      }
    }),
  }
}

function lane(name: string, entries: Entry[], clone?: string): Lane {
  return readLane(name, report(entries, clone))
}

const one = { name: 'behaviour/a.test.ts > claims > one' }
const two = { name: 'behaviour/a.test.ts > claims > two' }
const twoExcluded = { ...two, status: 'skipped', excluded: 'needs two' }

describe('the table of tests by lane', () => {
  test('has no fault when every test runs, or is excluded with a reason', () => {
    const { text, list, faults } = compareLanes([lane('A', [one, two]), lane('B', [one, twoExcluded])])
    expect(faults).toEqual([])
    expect(text).toMatch(/^ +1 +1 {2}claims > one$/m)
    expect(text).toMatch(/^ +1 +-1 {2}claims > two$/m)
    expect(text).toMatch(/^ +2 +1-1 {2}all$/m)
    expect(text).toContain(
      'Excluded from B, 1 of 2 tests: needs two\n  test/behaviour/a.test.ts > claims > two',
    )
    expect(list).toBe(
      [
        'file\ttest\tA\tB',
        'test/behaviour/a.test.ts\tclaims > one\tpassed\tpassed',
        'test/behaviour/a.test.ts\tclaims > two\tpassed\texcluded: needs two',
        '',
      ].join('\n'),
    )
  })

  test('takes a test of another clone for the same, and leaves out what is not in test/behaviour', () => {
    const lanes = [
      lane('A', [one, { name: 'sdk/b.test.ts > only here' }]),
      lane('B', [one], '/tmp/test/clone'),
      lane('CI tools', [{ name: 'ci/c.test.ts > installs' }]),
    ]
    expect(compareLanes(lanes).faults).toEqual([])
    expect(compareLanes(lanes).text).not.toContain('only here')
  })

  test('fails when a test is missing from a lane', () => {
    expect(compareLanes([lane('A', [one, two]), lane('B', [one])]).faults).toEqual([
      'B: missing: test/behaviour/a.test.ts > claims > two',
    ])
    // Also one of two with the same name.
    expect(compareLanes([lane('A', [one, one]), lane('B', [one])]).faults).toEqual([
      'B: missing: test/behaviour/a.test.ts > claims > one',
    ])
  })

  test('fails when a lane has no test of test/behaviour, or no report', () => {
    expect(compareLanes([lane('A', [one]), lane('B', [])]).faults).toEqual([
      'B: no test of test/behaviour',
      'B: missing: test/behaviour/a.test.ts > claims > one',
    ])
  })

  test.each(['skipped', 'pending', 'todo', 'disabled'])(
    'fails when a test is %s without a reason',
    (status) => {
      const lanes = [lane('A', [one, two]), lane('B', [one, { ...two, status }])]
      expect(compareLanes(lanes).faults).toEqual([
        'B: skipped without a reason: test/behaviour/a.test.ts > claims > two',
      ])
      expect(compareLanes(lanes).text).toContain('Excluded from B, 1 of 2 tests: NO REASON')
    },
  )

  test('fails when any other test is skipped without a reason', () => {
    const skipped = { name: 'ci/c.test.ts > installs', status: 'skipped' }
    expect(compareLanes([lane('A', [one]), lane('CI tools', [skipped])]).faults).toEqual([
      'CI tools: skipped without a reason: test/ci/c.test.ts > installs',
    ])
  })

  test('fails when a test runs in no lane, reason or not', () => {
    expect(compareLanes([lane('A', [one, twoExcluded]), lane('B', [one, twoExcluded])]).faults).toEqual([
      'runs in no lane: test/behaviour/a.test.ts > claims > two',
    ])
  })

  test('shows a failed test, which the lane itself fails for', () => {
    const { text, faults } = compareLanes([lane('A', [one, { ...two, status: 'failed' }])])
    expect(faults).toEqual([])
    expect(text).toMatch(/^ +!1 {2}claims > two$/m)
  })

  test('folds the cases of one test.each into a row', () => {
    const cases = ['by name, takes it', 'out of the queue, takes it'].map((title) => ({
      name: `behaviour/a.test.ts > a takeover > ${title}`,
      line: 7,
    }))
    const { text } = compareLanes([lane('A', [...cases, { ...one, line: 9 }])])
    expect(text).toMatch(/^ +2 {2}a takeover > … takes it$/m)
    expect(text).toMatch(/^ +1 {2}claims > one$/m)
  })

  test.each([
    [[['a b c']], 'a b c'],
    [[['a b c'], ['a x c']], 'a … c'],
    [[['a'], ['a b']], 'a …'],
    [[['a b'], ['c']], '…'],
    [
      [
        ['x', 'says a twice'],
        ['y', 'says b twice'],
      ],
      '… > says … twice',
    ],
  ])('names the cases %j by what they have in common: %s', (names, expected) => {
    expect(commonName(names)).toBe(expected)
  })
})

describe('the check of the rules', () => {
  const proved = (rule: string, more: Partial<Entry> = {}) => ({
    name: `behaviour/a.test.ts > rule ${rule}: so it is`,
    ...more,
  })
  const faults = (rules: string[], lanes: Lane[], exceptions: Parameters<typeof checkRules>[2] = []) =>
    checkRules(rules, lanes, exceptions).faults

  test('has no fault when each rule has a passed test in each lane, in whatever directory', () => {
    const lanes = [
      lane('A', [proved('6.1'), { name: 'cost/hot.test.ts > rule 6.2: the updates > are HOT' }]),
      lane('B', [proved('6.1'), proved('6.2')]),
      lane('CI tools', []),
    ]
    expect(faults(['6.1', '6.2'], lanes)).toEqual([])
    expect(checkRules(['6.1', '6.2'], lanes, []).text).toMatch(/^6\.2 +1 +1$/m)
  })

  test('fails for each lane in which a rule has no test', () => {
    expect(
      faults(['6.1', '6.2'], [lane('A', [proved('6.1'), proved('6.2')]), lane('B', [proved('6.1')])]),
    ).toEqual(['B: rule 6.2 has no passed test named "rule 6.2: …"'])
    expect(faults(['6.1'], [lane('A', [])])).toHaveLength(1)
  })

  test.each(['failed', 'skipped', 'todo'])('does not count a test that is %s', (status) => {
    expect(faults(['6.1'], [lane('A', [proved('6.1', { status, excluded: 'for a reason' })])])).toEqual([
      'A: rule 6.1 has no passed test named "rule 6.1: …"',
    ])
  })

  test('does not take rule 6.12 for 6.1, nor a mention for a name', () => {
    const tests = [proved('6.12'), { name: 'behaviour/a.test.ts > as rule 6.1 says' }]
    expect(faults(['6.1', '6.12'], [lane('A', tests)])).toEqual([
      'A: rule 6.1 has no passed test named "rule 6.1: …"',
    ])
  })

  test('fails when a test is named for a rule that there is not', () => {
    expect(faults(['6.1'], [lane('A', [proved('6.1'), proved('6.13')])])).toEqual([
      'A: a test is named for rule 6.13, which docs/rules.md does not have',
    ])
  })

  test('lets a lane off a rule that is declared unprovable there, and only as long as it is', () => {
    const exceptions = [{ lane: 'B', rule: '6.1', reason: 'of one session' }]
    const excluded = proved('6.1', { status: 'skipped', excluded: 'of one session' })
    const lanes = [lane('A', [proved('6.1')]), lane('B', [excluded])]
    expect(faults(['6.1'], lanes, exceptions)).toEqual([])
    expect(checkRules(['6.1'], lanes, exceptions).text).toContain(
      'B is excepted from rule 6.1: of one session',
    )
    expect(faults(['6.1'], [lane('B', [proved('6.1')])], exceptions)).toEqual([
      'B: rule 6.1 is proved, so it is no exception: check-rules.ts',
    ])
  })

  test('fails without rules, or without lanes', () => {
    expect(faults([], [lane('A', [one])])).toEqual(['docs/rules.md has no heading like "## Rule 6.1: …"'])
    expect(faults(['6.1'], [])).toEqual(['no lane has run'])
  })

  test('finds the twelve rules in docs/rules.md', () => {
    const rules = ruleNumbers(readFileSync(`${root}docs/rules.md`, 'utf8'))
    expect(rules).toEqual(Array.from({ length: 12 }, (_, index) => `6.${index + 1}`))
  })
})

describe('in CI', () => {
  /** Runs a script on a directory as .ci/run leaves it. */
  function run(script: string, reports: Record<string, Entry[]>) {
    const directory = mkdtempSync(join(tmpdir(), 'filemark-lanes-'))
    onTestFinished(() => rmSync(directory, { recursive: true }))
    const steps = ['npm ci', ...Object.keys(reports).map((name) => `lane ${name}`)]
    writeFileSync(`${directory}/steps.tsv`, steps.map((name) => `${name}\tok\t1\n`).join(''))
    for (const [name, entries] of Object.entries(reports)) {
      writeFileSync(`${directory}/${name.replaceAll(' ', '-')}.json`, JSON.stringify(report(entries)))
    }
    const { status, stdout, stderr } = spawnSync(process.execPath, [`scripts/${script}`, directory], {
      cwd: root,
      encoding: 'utf8',
    })
    return { status, stdout, stderr, directory }
  }

  test('the table is printed, its list is written, and a fault is the exit code', () => {
    const good = run('lane-table.ts', { 'Postgres 17': [one, two], PGlite: [one, twoExcluded] })
    expect(good.stderr).toBe('')
    expect(good.status).toBe(0)
    expect(good.stdout).toContain('Excluded from PGlite, 1 of 2 tests: needs two')
    expect(readFileSync(`${good.directory}/tests-by-lane.tsv`, 'utf8').split('\n')).toHaveLength(4)
    const bad = run('lane-table.ts', { 'Postgres 17': [one, two], PGlite: [one] })
    expect(bad.stderr).toBe('PGlite: missing: test/behaviour/a.test.ts > claims > two\n')
    expect(bad.status).toBe(1)
  })

  test('a rule that is not proved is the exit code', () => {
    const rules = Array.from({ length: 12 }, (_, index) => ({
      name: `behaviour/a.test.ts > rule 6.${index + 1}: so it is`,
    }))
    const good = run('check-rules.ts', { 'Postgres 17': rules })
    expect(good.stderr).toBe('')
    expect(good.status).toBe(0)
    const bad = run('check-rules.ts', { 'Postgres 17': rules.slice(1) })
    expect(bad.stderr).toBe('Postgres 17: rule 6.1 has no passed test named "rule 6.1: …"\n')
    expect(bad.status).toBe(1)
  })
})
