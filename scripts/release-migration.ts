// Notes the checksums of all migrations: from now on they never change. Part of a release (`npm version`).
//   npm run release:migration
import { writeFileSync } from 'node:fs'
import { checksum, checksumsFile, readChecksums, readMigrations } from './migrations.ts'

const released = readChecksums()
const migrations = readMigrations()
const changed = Object.entries(released).find(
  ([name, sum]) =>
    !migrations.some((migration) => migration.name === name && checksum(migration.text) === sum),
)
if (changed) throw new Error(`${changed[0]} has been released: it may neither change nor go`)

writeFileSync(checksumsFile, migrations.map(({ name, text }) => `${checksum(text)}  ${name}\n`).join(''))
for (const { name } of migrations) if (!(name in released)) console.log(`released ${name}`)
