import { PassThrough } from 'node:stream'
import { describe, expect, it } from 'vitest'
import { openDisplay } from '../../sdk/cli/run-display.ts'

function openOutput(isTTY: boolean) {
  const stream = Object.assign(new PassThrough(), { isTTY, columns: 100, rows: 30, cursorTo: () => true })
  return { output: stream as unknown as NodeJS.WriteStream, written: () => String(stream.read() ?? '') }
}

describe('what a run shows', () => {
  it('is a bar per file in work and one for all of them, in a terminal', () => {
    const { output, written } = openOutput(true)
    const display = openDisplay(output, 4)
    display.event('claimed', 'a.csv')
    display.begin('a.csv', 2000)
    display.progress('a.csv', 1000, 12_345)
    display.settled(1)
    display.event('skipped', 'b.json: a JSON object, not an array of records')
    display.close()
    const text = written()
    expect(text).toMatch(/█+░+ +25% +1 of 4 files/)
    expect(text).toMatch(/█+░+ +50% +12,345 records +a\.csv/)
    expect(text).toContain('skipped    b.json: a JSON object, not an array of records')
  })

  it('is one line per event elsewhere', () => {
    const { output, written } = openOutput(false)
    const display = openDisplay(output, 4)
    display.event('claimed', 'a.csv')
    display.begin('a.csv', 2000)
    display.progress('a.csv', 1000, 12_345)
    display.event('completed', 'a.csv: 20,000 records')
    display.end('a.csv')
    display.settled(1)
    display.close()
    expect(written()).toBe('claimed    a.csv\ncompleted  a.csv: 20,000 records\n')
  })
})
