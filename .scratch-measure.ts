import postgres from 'postgres'
import { startPostgres } from './test/servers/postgres.ts'
import { installFilemark } from './test/servers/install.ts'
await using server = await startPostgres()
await installFilemark(server.url())
const sql = postgres(server.url(), { max: 1, onnotice: () => {} })
const time = async (what: string, f: () => Promise<unknown>) => { const s = performance.now(); const r = await f(); console.log(what, Math.round(performance.now()-s), 'ms', JSON.stringify(r)?.slice(0,400)) }
await sql`select filemark.configure_pipeline('default', '{"keep_files_days":30}')`
await sql`insert into filemark.file_checkpoints (pipeline, file_url, file_type, file_timestamp, status, available_at, claim_token, claim_ended, completed_at, kept_since, cursor, checkpoint_seq, checkpointed_at, history_length, items_processed)
 select 'default', 'done/' || n, 'csv', now(), 'completed', now(), 1, 'completed', now() - n * interval '20 seconds', now() - n * interval '20 seconds', '1', 20, now(), 20, 20 from generate_series(1, 200000) n`
await sql`insert into filemark.checkpoint_history select 'default', 'done/' || n, s, '1', s, 0, 1, now() from generate_series(1, 200000) n, generate_series(1,20) s`
await sql`insert into filemark.long_histories (pipeline, file_url) select 'default', 'done/' || n from generate_series(1, 200000) n`
await sql`vacuum analyze`
await time('truncate 1000 (20,000 rows due 10 each)', () => sql`select count(*) from filemark.truncate_checkpoint_history()`)
await time('truncate 10', () => sql`select count(*) from filemark.truncate_checkpoint_history(10)`)
await time('truncate dry 10', () => sql`select count(*) from filemark.truncate_checkpoint_history(10, true)`)
await time('clear 1000', () => sql`select count(*) from filemark.clear_completed_checkpoints()`)
await time('clear dry 1000', () => sql`select count(*) from filemark.clear_completed_checkpoints(1000, true)`)
await time('purge 1000', () => sql`select count(*) from filemark.purge_files()`)
await time('purge 10', () => sql`select count(*) from filemark.purge_files(10)`)
await time('run', () => sql`select * from filemark.run_maintenance()`)
await time('list_long (lower limit)', () => sql`select filemark.configure_pipeline('default', '{"history_limit":5}')`)
await sql`insert into filemark.tallies (pipeline, occurred_at, what, files) select 'default', now() - n * interval '1 s', 'completed', 1 from generate_series(1, 100000) n`
await time('add up 100,000 tallies', () => sql`select filemark.add_up_tallies('default', 100000)`)
await sql`vacuum analyze filemark.purged_files`
console.log(await sql`select count(*), avg(pg_column_size(g.*))::int, pg_relation_size('filemark.purged_files') heap, pg_indexes_size('filemark.purged_files') idx from filemark.purged_files g`)
await time('purge 20000', () => sql`select count(*) from filemark.purge_files(50000)`)
console.log(await sql`select count(*), avg(pg_column_size(g.*))::int, pg_relation_size('filemark.purged_files')/count(*) heap, pg_indexes_size('filemark.purged_files')/count(*) idx from filemark.purged_files g`)
await sql.end()
