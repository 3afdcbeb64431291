import { expect, test } from 'vitest'
import { sqlFiles } from './servers/install.ts'

const files = sqlFiles()

test('each chapter of sql/ can be read in one sitting: 400 lines at most', () => {
  const long = files.map(({ name, text }) => ({ name, lines: text.split('\n').length - 1 }))
  expect(long.filter(({ lines }) => lines > 400)).toEqual([])
})

test('no function in sql/ is longer than 80 lines', () => {
  const functions = files.flatMap(({ text }) => [
    ...text.matchAll(/^create function (\S+?)\([\s\S]*?^\$\$;/gm),
  ])
  const long = functions.map(([text, name]) => ({ name, lines: text.split('\n').length }))
  expect(functions.length).toBeGreaterThan(50)
  expect(long.filter(({ lines }) => lines > 80)).toEqual([])
})
