import { expect, test } from 'vitest'
import { generateTypes, readGenerated, TYPES_FILE } from '../../scripts/generate-types.ts'
import { createDatabase } from '../database.ts'

test('sdk/database.types.ts is what supabase gen types makes of the database; if not: npm run build:types', async () => {
  await using database = await createDatabase()
  expect(readGenerated(TYPES_FILE)).toBe(await generateTypes(database.url))
})
