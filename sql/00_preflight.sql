-- filemark: before anything is changed
--
-- What workers call lives in public, so that supabase.rpc('claim_file', …) works without a dashboard
-- setting. A function of one of our names that is already there would make PostgREST answer 300
-- (ambiguous) or would be replaced by ours. Stop, and say how to move it away.

do $preflight$
declare
  v_foreign text;
begin
  if to_regnamespace('filemark') is not null then
    raise exception 'filemark cannot be installed: the schema filemark is already there'
      using errcode = 'duplicate_schema',
            hint = 'If filemark is installed, there is nothing to do. supabase db push and dbmate keep separate '
                   'histories: use one of them.';
  end if;
  select string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text)
    into v_foreign
    from pg_catalog.pg_proc p
   where p.pronamespace = 'public'::regnamespace
     and p.proname in (
       'register_files', 'claim_file', 'claim_next_files', 'checkpoint_file', 'extend_claim',
       'complete_file', 'fail_file', 'release_file', 'complete_and_claim_next', 'persist_records',
       'get_file_checkpoint', 'list_file_checkpoints', 'pending_files', 'pipeline_stats',
       'requeue_file', 'skip_file', 'filemark_metrics'
     );
  if v_foreign is not null then
    raise exception 'filemark cannot be installed: schema public already has %', v_foreign
      using errcode = 'duplicate_function',
            detail = 'filemark installs functions of these names in public. Nothing has been changed.',
            hint = 'Move yours out of the way first, for example: create schema legacy; alter function '
                   || split_part(v_foreign, ', ', 1) || ' set schema legacy;';
  end if;
end
$preflight$;
