#!/usr/bin/env node
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander'
import { newWorkerId } from '../worker-id.ts'
import { isFailure } from './file-report.ts'
import { installMigrations } from './init.ts'
import { findPackage } from './package-root.ts'
import { run } from './run.ts'
import { stopOnSignals } from './stop-on-signals.ts'
import { UsageError } from './usage-error.ts'

const DEFAULT_MIGRATIONS = 'supabase/migrations'
const EXIT_FAILED = 1
const EXIT_USAGE = 2

interface RunFlags {
  handler: string
  database?: string
  dataDir: string
  pipeline: string
  concurrency: number
  batchSize: number
  leaseSeconds?: number
  workerId: string
}

async function runCommand(patterns: string[], flags: RunFlags): Promise<void> {
  if (flags.database === '') throw new UsageError('--database is empty: is the variable set?')
  const stopping = stopOnSignals()
  const reports = await run({
    patterns,
    handler: flags.handler,
    database: flags.database === undefined ? { dataDir: flags.dataDir } : { url: flags.database },
    pipeline: flags.pipeline,
    concurrency: flags.concurrency,
    batchSize: flags.batchSize,
    ...(flags.leaseSeconds !== undefined && { leaseSeconds: flags.leaseSeconds }),
    workerId: flags.workerId,
    stop: stopping.signal,
    output: process.stdout,
  })
  process.exitCode = stopping.exitCode() ?? (reports.some(isFailure) ? EXIT_FAILED : 0)
}

async function initCommand({ dir }: { dir: string }): Promise<void> {
  const { written, present } = await installMigrations(dir)
  for (const name of present) console.log(`already there: ${dir}/${name}`)
  for (const name of written) console.log(`written:       ${dir}/${name}`)
  if (written.length === 0) {
    console.log('Nothing to do.')
    return
  }
  console.log('\nNext, apply it to your database:')
  if (dir === DEFAULT_MIGRATIONS) console.log('  supabase db push\nor, without the Supabase command line:')
  console.log(`  dbmate --migrations-dir ${dir} up`)
}

function wholeNumber(from: number, to: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (text.trim() !== '' && Number.isInteger(value) && value >= from && value <= to) return value
    throw new InvalidArgumentError(`A whole number from ${from} to ${to} is needed.`)
  }
}

function buildProgram(): Command {
  const program = new Command('filemark')
    .description('Loads files into Postgres with checkpoint and resume.')
    .version(findPackage().version)
    .exitOverride()
    .showHelpAfterError('(--help says more)')

  program
    .command('run')
    .summary('load files through a handler')
    .description(
      'Loads files of records (CSV, TSV, a JSON array of objects, JSON lines; plain or .gz) through a handler into ' +
        'a table. Any number of workers may run on the same files: each file is worked on by one at a time, and rows ' +
        'and progress are saved in one transaction, so that the file of a worker that dies is continued where it was.',
    )
    .argument('<glob...>', 'files, directories or patterns; quote a pattern to have it expanded here')
    .requiredOption('--handler <module>', 'the handler module, TypeScript or JavaScript')
    .addOption(
      new Option('--database <url>', 'Postgres to work with; without it, an embedded one in --data-dir').env(
        'FILEMARK_DATABASE_URL',
      ),
    )
    .addOption(
      new Option('--data-dir <dir>', 'directory of the embedded Postgres')
        .default('.filemark')
        .conflicts('database'),
    )
    .option('--pipeline <name>', 'the pipeline the files belong to', 'default')
    .option('--concurrency <n>', 'files worked on at a time', wholeNumber(1, 100), 4)
    .option('--batch-size <n>', 'most records given to the handler at once', wholeNumber(1, 10_000), 1000)
    .option(
      '--lease-seconds <n>',
      "set the pipeline's lease, 300 s at first: how long a file claimed from now on waits when its worker dies",
      wholeNumber(1, 86_400),
    )
    .addOption(new Option('--worker-id <id>', 'name of this worker').default(newWorkerId(), 'made up'))
    .addHelpText(
      'after',
      `
The handler module:
  export const target = 'public.events'            the table to load into
  export const setup = 'create table if not …'     optional: SQL to run first
  export function handle(records, context) {       rows for the target, of a batch of records;
    return records                                 may be async, may return more or fewer
  }

Examples:
  filemark run 'data/*.csv' --handler ./handler.ts
  filemark run 'data/**/*.json.gz' --handler ./handler.ts --database "$DATABASE_URL" --concurrency 8

Ctrl-C finishes the batches in work and gives the files back; the next run continues there.

Exit code: 0 when nothing failed (files that are no list of records are skipped, which is no failure),
1 when a file failed or is a dead letter, 2 when the command cannot be followed, 130 or 143 when stopped.`,
    )
    .action(runCommand)

  program
    .command('init')
    .summary('put the migrations among your own')
    .description(
      'Copies the migrations of filemark into your migrations directory, stamped later than the newest there. ' +
        'Does nothing for those that are there already.',
    )
    .option('--dir <dir>', 'the migrations directory', DEFAULT_MIGRATIONS)
    .addHelpText(
      'after',
      `
Examples:
  filemark init                        then: supabase db push
  filemark init --dir db/migrations    then: dbmate up`,
    )
    .action(initCommand)

  return program
}

try {
  await buildProgram().parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    // It has said what is wrong, or it has printed what was asked for.
    process.exitCode = error.exitCode === 0 ? 0 : EXIT_USAGE
  } else {
    process.stderr.write(`filemark: ${error instanceof Error ? error.message : String(error)}\n`)
    process.exitCode = error instanceof UsageError ? EXIT_USAGE : EXIT_FAILED
  }
}
