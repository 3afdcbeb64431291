-- filemark 0.2.0: built by `npm run build:migration` from sql/, where what is here is explained.
-- Install with `supabase db push` or with `dbmate up`: both take this file as it is.

-- migrate:up

-- Rather than wait behind a long transaction, and let every worker wait behind it, the migration fails.
set local lock_timeout = '30s';

do $preflight$
declare
  v_foreign text;
begin
  if to_regclass('filemark.file_checkpoints') is null then
    raise exception 'filemark 0.2.0 cannot be installed: the migrations before it have not been applied'
      using errcode = 'undefined_table',
            hint = 'Apply 20261120120000_filemark.sql first: npx filemark init puts it beside this one.';
  end if;
  -- Functions of the names of this version that no version before it installed.
  select string_agg(p.oid::regprocedure::text, ', ' order by p.oid::regprocedure::text)
    into v_foreign
    from pg_catalog.pg_proc p
   where p.pronamespace = 'public'::regnamespace
     and p.proname in (
       'checkpoint_file',
       'claim_file',
       'claim_next_files',
       'complete_and_claim_next',
       'complete_file',
       'extend_claim',
       'fail_file',
       'get_file_checkpoint',
       'list_file_checkpoints',
       'pending_files',
       'persist_records',
       'pipeline_stats',
       'register_files',
       'release_file',
       'requeue_file',
       'skip_file')
     and format('%s(%s)', p.proname, pg_get_function_identity_arguments(p.oid)) not in (
       'checkpoint_file(p_file_url text, p_claim_token bigint, p_cursor jsonb, p_items_processed bigint, p_accumulated_results jsonb, p_checkpoint_seq bigint, p_items_total bigint, p_pipeline text)',
       'claim_file(p_file_url text, p_file_type text, p_file_timestamp timestamp with time zone, p_worker_id text, p_pipeline text, p_etag text, p_request_id uuid)',
       'claim_next_files(p_worker_id text, p_limit integer, p_pipeline text, p_file_type text, p_request_id uuid)',
       'complete_and_claim_next(p_worker_id text, p_completions jsonb, p_limit integer, p_pipeline text, p_file_type text, p_request_id uuid)',
       'complete_file(p_file_url text, p_claim_token bigint, p_records_total bigint, p_records_filtered bigint, p_records_persisted bigint, p_processing_time_ms bigint, p_accumulated_results jsonb, p_etag text, p_pipeline text)',
       'extend_claim(p_file_url text, p_claim_token bigint, p_pipeline text)',
       'fail_file(p_file_url text, p_claim_token bigint, p_error_message text, p_retryable boolean, p_error jsonb, p_retry_after_seconds integer, p_pipeline text)',
       'get_file_checkpoint(p_file_url text, p_pipeline text)',
       'list_file_checkpoints(p_status text, p_limit integer, p_after text, p_pipeline text)',
       'pending_files(p_file_urls text[], p_pipeline text)',
       'persist_records(p_file_url text, p_claim_token bigint, p_target text, p_records jsonb, p_cursor jsonb, p_items_processed bigint, p_accumulated_results jsonb, p_checkpoint_seq bigint, p_pipeline text)',
       'pipeline_stats(p_pipeline text)',
       'register_files(p_files jsonb, p_pipeline text)',
       'release_file(p_file_url text, p_claim_token bigint, p_pipeline text)',
       'requeue_file(p_file_url text, p_from text, p_force boolean, p_reason text, p_actor text, p_pipeline text)');
  if v_foreign is not null then
    raise exception 'filemark 0.2.0 cannot be installed: schema public already has %', v_foreign
      using errcode = 'duplicate_function',
            detail = 'filemark installs functions of these names in public. Nothing has been changed.',
            hint = 'Move yours out of the way first, for example: create schema legacy; alter function '
                   || split_part(v_foreign, ', ', 1) || ' set schema legacy;';
  end if;
end
$preflight$;

SET local check_function_bodies = off;

ALTER TABLE "filemark"."file_checkpoints"
  DROP CONSTRAINT "a_checkpoint_has_a_cursor";

CREATE OR REPLACE FUNCTION filemark.lock_known_file (
  p_file_url text,
  p_reason   text,
  p_actor    text,
  p_pipeline text
)
  RETURNS filemark.file_checkpoints
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_key(p_pipeline, p_file_url),
          filemark.check_text('p_reason', coalesce(nullif(p_reason, ''), '-'), 10000),
          filemark.check_text('p_actor', coalesce(nullif(p_actor, ''), '-'), 200);
  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     for no key update;
  if not found then
    raise exception 'file "%" is unknown in pipeline "%"', p_file_url, p_pipeline using errcode = 'PT404';
  end if;
  return v_file;
end
$function$;

CREATE OR REPLACE FUNCTION public.requeue_file (
  p_file_url text,
  p_from     text    DEFAULT 'checkpoint'::text,
  p_force    boolean DEFAULT false,
  p_reason   text    DEFAULT NULL::text,
  p_actor    text    DEFAULT NULL::text,
  p_pipeline text    DEFAULT 'default'::text
)
  RETURNS TABLE (
    status         text,
    checkpoint_seq bigint
  )
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_file filemark.file_checkpoints;
  v_checkpoint filemark.checkpoint_history;
begin
  v_file := filemark.lock_known_file(p_file_url, p_reason, p_actor, p_pipeline);
  v_checkpoint := filemark.checkpoint_to_resume(v_file, p_from);
  if v_file.status = 'processing' and p_force is not true then
    raise exception 'file "%" is being processed by %', p_file_url, v_file.processed_by
      using errcode = 'PT422',
            detail = format('Its lease ends at %s.', v_file.lease_expires_at),
            hint = 'To take it from its holder: p_force => true.';
  end if;

  if v_file.superseded_by is not null then
    perform filemark.start_generation(p_pipeline, p_file_url, v_file.superseded_by, v_now, p_actor);
    v_checkpoint.checkpoint_seq := 0;
  elsif v_file.status = 'pending' and v_file.attempts = 0 and v_file.available_at <= v_now
        and v_file.checkpoint_seq = v_checkpoint.checkpoint_seq then
    return query select 'pending', v_file.checkpoint_seq;
    return;
  else
    perform filemark.rewind_file(v_file, v_checkpoint, v_now);
  end if;

  perform filemark.record_event(
    p_pipeline, p_file_url, 'requeued', p_actor, p_reason,
    jsonb_build_object('from', p_from, 'checkpoint_seq', v_checkpoint.checkpoint_seq, 'force', p_force is true,
                       'old_status', v_file.status, 'old_checkpoint_seq', v_file.checkpoint_seq,
                       'old_claim_token', v_file.claim_token, 'old_processed_by', v_file.processed_by,
                       'old_error_message', v_file.error_message));
  return query select 'pending', v_checkpoint.checkpoint_seq;
end
$function$;

CREATE OR REPLACE FUNCTION public.skip_file (
  p_file_url text,
  p_reason   text DEFAULT NULL::text,
  p_actor    text DEFAULT NULL::text,
  p_pipeline text DEFAULT 'default'::text
)
  RETURNS void
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  AS $function$
declare
  v_file filemark.file_checkpoints;
begin
  v_file := filemark.lock_known_file(p_file_url, p_reason, p_actor, p_pipeline);
  if v_file.status = 'skipped' then
    return;
  elsif v_file.status = 'processing' then
    raise exception 'file "%" is being processed by %', p_file_url, v_file.processed_by
      using errcode = 'PT422',
            detail = format('Its lease ends at %s.', v_file.lease_expires_at),
            hint = 'To take it from its holder first: select requeue_file(…, p_force => true).';
  end if;

  update filemark.file_checkpoints f
     set status = 'skipped',
         completed_at = null
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
  perform filemark.record_event(
    p_pipeline, p_file_url, 'skipped', p_actor, p_reason,
    jsonb_build_object('old_status', v_file.status, 'old_completed_at', v_file.completed_at,
                       'old_error_message', v_file.error_message, 'checkpoint_seq', v_file.checkpoint_seq));
end
$function$;

ALTER TABLE "filemark"."file_checkpoints"
  ADD CONSTRAINT "a_checkpoint_has_a_cursor" CHECK (
CASE
    WHEN (checkpoint_seq = 0) THEN (cursor IS NULL)
    ELSE ((cursor IS NOT NULL) OR (status = ANY (ARRAY['completed'::text, 'skipped'::text])))
END);

COMMENT ON FUNCTION "public"."skip_file"(text, text, text, text) IS 'Takes a file that nobody is processing out of the queue until it is requeued or its content changes. Audited.';

REVOKE ALL ON FUNCTION "filemark"."lock_known_file"(text, text, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "public"."skip_file"(text, text, text, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "public"."skip_file"(text, text, text, text) TO "filemark_operator";

-- sql/99_grants.sql

-- filemark: who may do what
--
-- Supabase's default privileges give every new function in public to anon and authenticated by name on some
-- projects, and to nobody, not even service_role, on others. So everything is taken from everyone first, then
-- given by name. Repeat this file's sweep after any function is dropped and created again.

do $grants$
declare
  v_function record;
  v_role text;
begin
  -- From everyone, by name.
  for v_function in
    select p.oid::regprocedure as signature
      from pg_catalog.pg_proc p
     where p.pronamespace = 'filemark'::regnamespace
        or (p.pronamespace = 'public'::regnamespace
            and p.proname in (
              'register_files', 'claim_file', 'claim_next_files', 'checkpoint_file', 'extend_claim',
              'complete_file', 'fail_file', 'release_file', 'complete_and_claim_next', 'persist_records',
              'get_file_checkpoint', 'list_file_checkpoints', 'pending_files', 'pipeline_stats',
              'requeue_file', 'skip_file'))
  loop
    execute format('revoke all on function %s from public', v_function.signature);
    for v_role in
      select r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated', 'service_role')
    loop
      execute format('revoke all on function %s from %I', v_function.signature, v_role);
    end loop;
  end loop;
  for v_role in
    select r.rolname from pg_catalog.pg_roles r where r.rolname in ('anon', 'authenticated', 'service_role')
  loop
    execute format('revoke all on schema filemark from %I', v_role);
    execute format('revoke all on all tables in schema filemark from %I', v_role);
  end loop;

  -- To each role, by name. service_role is an operator.
  for v_role in
    select r.rolname from pg_catalog.pg_roles r
     where r.rolname in ('filemark_worker', 'filemark_monitor', 'filemark_operator', 'service_role')
  loop
    execute format('grant usage on schema filemark to %I', v_role);
    if v_role <> 'filemark_worker' then
      execute format('grant select on all tables in schema filemark to %I', v_role);
      execute format('grant execute on function public.pipeline_stats(text) to %I', v_role);
    end if;
    if v_role <> 'filemark_monitor' then
      execute format(
        'grant execute on function
           public.register_files(jsonb, text),
           public.claim_file(text, text, timestamptz, text, text, text, uuid),
           public.claim_next_files(text, int, text, text, uuid),
           public.checkpoint_file(text, bigint, jsonb, bigint, jsonb, bigint, bigint, text),
           public.extend_claim(text, bigint, text),
           public.complete_file(text, bigint, bigint, bigint, bigint, bigint, jsonb, text, text),
           public.fail_file(text, bigint, text, boolean, jsonb, int, text),
           public.release_file(text, bigint, text),
           public.complete_and_claim_next(text, jsonb, int, text, text, uuid),
           public.persist_records(text, bigint, text, jsonb, jsonb, bigint, jsonb, bigint, text),
           public.get_file_checkpoint(text, text),
           public.list_file_checkpoints(text, int, text, text),
           public.pending_files(text[], text),
           public.pipeline_stats(text),
           filemark.assert_claim(text, bigint, text),
           -- what persist_records, which runs as its caller, is made of
           filemark.begin_persist(text, bigint, jsonb, bigint, jsonb, bigint, text),
           filemark.save_checkpoint(text, bigint, jsonb, bigint, jsonb, bigint, bigint, bigint, text),
           filemark.target_table(text),
           filemark.insert_records(regclass, jsonb),
           filemark.refuse_argument(text, text, text),
           filemark.refuse_size(text, bigint, bigint, text)
         to %I', v_role);
    end if;
    if v_role in ('filemark_operator', 'service_role') then
      execute format(
        'grant execute on function
           public.requeue_file(text, text, boolean, text, text, text),
           public.skip_file(text, text, text, text),
           filemark.configure_pipeline(text, jsonb, text),
           filemark.reclaim_stale_claims(int, boolean, text)
         to %I', v_role);
    end if;
  end loop;
end
$grants$;

notify pgrst, 'reload schema';

-- migrate:down
