import { expect, test } from 'vitest'
import { FUNCTIONS_FILE, generateFunctions, readGenerated } from '../../scripts/generate-types.ts'
import { createDatabase } from '../database.ts'

test('sdk/functions.ts is what the database has; if not: npm run build:types', async () => {
  await using database = await createDatabase()
  expect(readGenerated(FUNCTIONS_FILE)).toBe(await generateFunctions(database.sql))
})
