-- filemark: plans that stay good while the tables grow
--
-- A session keeps the plans it made. One made while a table had a page of rows reads that page whole and sorts
-- it; when a million files are registered, the same plan reads a million rows per claim, until the next
-- analyze. Every statement of these functions has an index that serves it, in its order, so reading and
-- sorting whole tables is forbidden to them, and to what they call; and because one plan is right for all
-- arguments, it is made once a session instead of at each call (half of a claim's time, measured).
-- persist_records is not among them: the caller's table is planned as ever.
--
-- What is forbidden has, where nothing else is left (sorting what a call brought along), costs beyond all measure, and
-- Postgres would compile such a statement: a quarter of a second per call, measured. So that is forbidden too.
--
-- Replacing a function drops these settings: repeat this file's loop then, as that of 99_grants.sql.

do $plans$
declare
  v_function regprocedure;
begin
  foreach v_function in array array[
    'public.register_files(jsonb, text)',
    'public.claim_file(text, text, timestamptz, text, text, text, uuid)',
    'public.claim_next_files(text, int, text, text, uuid)',
    'public.extend_claim(text, bigint, text)',
    'public.complete_file(text, bigint, bigint, bigint, bigint, bigint, jsonb, text, text)',
    'public.fail_file(text, bigint, text, boolean, jsonb, int, text)',
    'public.release_file(text, bigint, text)',
    'public.complete_and_claim_next(text, jsonb, int, text, text, uuid)',
    'public.get_file_checkpoint(text, text)',
    'public.list_file_checkpoints(text, int, text, text)',
    'public.pending_files(text[], text)',
    'public.requeue_file(text, text, boolean, text, text, text)',
    'public.skip_file(text, text, text, text)',
    'filemark.assert_claim(text, bigint, text)',
    'filemark.begin_persist(text, bigint, jsonb, bigint, jsonb, bigint, text)',
    'filemark.save_checkpoint(text, bigint, jsonb, bigint, jsonb, bigint, bigint, bigint, text)',
    'public.pipeline_stats(text)',
    'filemark.reclaim_stale_claims(int, boolean, text)',
    'filemark.truncate_checkpoint_history(int, boolean, text)',
    'filemark.clear_completed_checkpoints(int, boolean, text)',
    'filemark.purge_files(int, boolean, text)',
    'filemark.run_maintenance(int)'
  ]::regprocedure[] loop
    execute format('alter function %s set plan_cache_mode = force_generic_plan', v_function);
    execute format('alter function %s set enable_seqscan = off', v_function);
    execute format('alter function %s set enable_bitmapscan = off', v_function);
    execute format('alter function %s set enable_sort = off', v_function);
    execute format('alter function %s set jit = off', v_function);
  end loop;
end
$plans$;
