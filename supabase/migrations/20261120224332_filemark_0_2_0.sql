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

CREATE OR REPLACE FUNCTION filemark.add_claimed_file (
  p_pipeline text,
  p_file_url text,
  p_content  jsonb,
  p_now      timestamp with time zone
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  insert into filemark.file_checkpoints (pipeline, file_url, file_type, file_timestamp, etag, available_at)
  values (p_pipeline, p_file_url, p_content ->> 'file_type', (p_content ->> 'file_timestamp')::timestamptz,
          p_content ->> 'etag', p_now)
      on conflict do nothing;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.apply_settings (
  p_pipeline filemark.pipelines,
  p_settings jsonb
)
  RETURNS filemark.pipelines
  LANGUAGE plpgsql
  IMMUTABLE
  SET search_path TO ''
  AS $function$
begin
  -- 5.0 is a whole number too, but no text of an int.
  return jsonb_populate_record(p_pipeline, (
    select coalesce(jsonb_object_agg(s.key, case jsonb_typeof(s.value)
             when 'number' then to_jsonb(trim_scale(s.value::numeric)) else s.value end), '{}')
      from jsonb_each(p_settings) s));
end
$function$;

CREATE OR REPLACE FUNCTION filemark.claim_by_name (
  p_pipeline   text,
  p_file_url   text,
  p_worker_id  text,
  p_content    jsonb,
  p_request_id uuid
)
  RETURNS text
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_file filemark.file_checkpoints;
  v_slots int;
  v_refusal text;
begin
  perform filemark.ensure_pipeline(p_pipeline);
  select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  if v_settings.max_concurrency is not null then
    v_slots := filemark.free_slots(p_pipeline);
  end if;

  if not exists (select from filemark.file_checkpoints f
                  where f.pipeline = p_pipeline and f.file_url = p_file_url) then
    if v_settings.paused then
      return 'paused';
    elsif v_slots <= 0 then
      return 'busy';
    end if;
    perform filemark.add_claimed_file(p_pipeline, p_file_url, p_content, v_now);
  end if;

  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     for no key update;
  -- Again, now that the wait for the locks is over: the lease begins here.
  v_now := clock_timestamp();
  if v_file.request_id = p_request_id and v_file.status = 'processing' then
    return 'claimed';
  elsif filemark.note_content(v_file, p_content, v_settings.on_overwrite, v_now, p_worker_id) then
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = p_file_url;
  end if;
  if v_file.superseded_by is not null and v_file.lease_expires_at <= v_now then
    -- The claim is lost, and its end starts the next generation, which may have a time of its own.
    perform filemark.end_lost_claim(v_file, v_now, p_worker_id);
    v_slots := v_slots + 1;
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = p_file_url;
  end if;

  v_refusal := filemark.claim_refusal(
    v_file.status, v_file.available_at, v_file.lease_expires_at, v_file.superseded_by is not null,
    v_file.attempts, v_settings.max_attempts, v_now);
  if v_refusal = 'dead_letter' and v_file.status = 'processing' then
    perform filemark.bury_lost_file(v_file, p_worker_id);
  elsif v_refusal is null then
    v_refusal := case
      when v_settings.paused then 'paused'
      when v_slots <= 0 and v_file.status <> 'processing' then 'busy'
    end;
  end if;
  if v_refusal is not null then
    return v_refusal;
  end if;

  if v_file.status = 'processing' then
    perform filemark.end_lost_claim(v_file, v_now, p_worker_id);
  end if;
  perform filemark.take_files(
    p_pipeline, array[p_file_url], p_worker_id, p_request_id, v_settings.lease_seconds, v_now);
  return 'claimed';
end
$function$;

CREATE OR REPLACE FUNCTION filemark.configure_pipeline (
  p_pipeline text,
  p_settings jsonb,
  p_actor    text  DEFAULT NULL::text
)
  RETURNS TABLE (
    pipeline                   text,
    max_attempts               integer,
    lease_seconds              integer,
    backoff_base_seconds       integer,
    backoff_max_seconds        integer,
    backoff_jitter             double precision,
    max_concurrency            integer,
    paused                     boolean,
    on_overwrite               text,
    history_limit              integer,
    keep_checkpoints_days      integer,
    keep_files_days            integer,
    results_limit_bytes        bigint,
    cursor_limit_bytes         bigint,
    stale_after_seconds        integer,
    max_history                bigint,
    max_results_bytes          bigint,
    min_checkpoints_per_minute double precision,
    max_backlog_age_seconds    integer,
    max_failure_ratio          double precision,
    expect_file_every_seconds  integer,
    max_rejected               bigint,
    max_rejected_ratio         double precision,
    created_at                 timestamp with time zone
  )
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_old filemark.pipelines;
  v_new filemark.pipelines;
  v_changed jsonb;
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  perform filemark.check_settings(p_settings);
  perform filemark.check_text('p_actor', coalesce(nullif(p_actor, ''), '-'), 200);
  perform filemark.ensure_pipeline(p_pipeline);

  select p.* into v_old from filemark.pipelines p where p.pipeline = p_pipeline for no key update;
  v_new := filemark.apply_settings(v_old, p_settings);
  select coalesce(jsonb_object_agg(n.key, jsonb_build_array(o.value, n.value)), '{}')
    into v_changed
    from jsonb_each(to_jsonb(v_new)) n
    join jsonb_each(to_jsonb(v_old)) o on o.key = n.key and o.value <> n.value;

  if v_changed <> '{}' then
    update filemark.pipelines p
       set max_attempts = v_new.max_attempts,
           lease_seconds = v_new.lease_seconds,
           backoff_base_seconds = v_new.backoff_base_seconds,
           backoff_max_seconds = v_new.backoff_max_seconds,
           backoff_jitter = v_new.backoff_jitter,
           max_concurrency = v_new.max_concurrency,
           paused = v_new.paused,
           on_overwrite = v_new.on_overwrite,
           history_limit = v_new.history_limit,
           keep_checkpoints_days = v_new.keep_checkpoints_days,
           keep_files_days = v_new.keep_files_days,
           results_limit_bytes = v_new.results_limit_bytes,
           cursor_limit_bytes = v_new.cursor_limit_bytes,
           stale_after_seconds = v_new.stale_after_seconds,
           max_history = v_new.max_history,
           max_results_bytes = v_new.max_results_bytes,
           min_checkpoints_per_minute = v_new.min_checkpoints_per_minute,
           max_backlog_age_seconds = v_new.max_backlog_age_seconds,
           max_failure_ratio = v_new.max_failure_ratio,
           expect_file_every_seconds = v_new.expect_file_every_seconds,
           max_rejected = v_new.max_rejected,
           max_rejected_ratio = v_new.max_rejected_ratio
     where p.pipeline = p_pipeline;
    perform filemark.record_event(p_pipeline, null, 'settings_changed', p_actor, null, v_changed);
  end if;
  return query select v_new.*;
end
$function$;

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

COMMENT ON COLUMN "filemark"."checkpoint_history"."checkpoint_seq" IS 'The checkpoint''s number: 1, 2, 3 and so on in each generation.';

COMMENT ON COLUMN "filemark"."checkpoint_history"."claim_token" IS 'The claim that saved it.';

COMMENT ON COLUMN "filemark"."checkpoint_history"."cursor" IS 'The next position to process from there.';

COMMENT ON COLUMN "filemark"."checkpoint_history"."file_url" IS 'The file.';

COMMENT ON COLUMN "filemark"."checkpoint_history"."items_processed" IS 'Items done in the whole file by then.';

COMMENT ON COLUMN "filemark"."checkpoint_history"."pipeline" IS 'The pipeline the file is in.';

COMMENT ON COLUMN "filemark"."checkpoint_history"."records_persisted" IS 'Records that were written together with this checkpoint.';

COMMENT ON COLUMN "filemark"."checkpoint_history"."saved_at" IS 'When it was saved.';

COMMENT ON COLUMN "filemark"."claim_requests"."claimed_at" IS 'When it was answered.';

COMMENT ON COLUMN "filemark"."claim_requests"."file_urls" IS 'The files it was given.';

COMMENT ON COLUMN "filemark"."claim_requests"."pipeline" IS 'The pipeline that was claimed from.';

COMMENT ON COLUMN "filemark"."claim_requests"."request_id" IS 'The p_request_id of the call.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."accumulated_results" IS 'What was worked out so far, as any JSON.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."attempts" IS 'Claims counted against max_attempts at the file''s position, the running one included.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."available_at" IS 'The file is not claimed before this time: as registered, or when its retry is due.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."checkpoint_seq" IS 'The number of the last checkpoint; 0 before the first.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."checkpointed_at" IS 'When the last checkpoint was saved.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."claim_ended" IS 'How the claim of claim_token ended: ''completed'', ''superseded'', ''failed'', ''released'' or ''lost''; null while it stands. So a repeat of the call that ended it is answered as before.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."claim_token" IS 'The number of the file''s last claim; 0 before the first. Every write presents it.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."completed_at" IS 'When the file was completed; null unless it is.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."created_at" IS 'When the file became known.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."cursor" IS 'The next position to process, as any JSON; null before the first checkpoint.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."error" IS 'The error in detail, as fail_file was given it.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."error_message" IS 'What went wrong at the last failed attempt; null when the file is completed or requeued.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."etag" IS 'The version of the content, 1 to 1024 bytes; null when unknown. Another etag is other content.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."file_timestamp" IS 'When the file was made, as its source says.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."file_type" IS 'A name for the kind of file, 1 to 100 bytes; workers can claim one kind only.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."file_url" IS 'The file''s name in its pipeline: a URL or any stable id, 1 to 2048 bytes.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."generation" IS 'Which content of that name it is: 1, 2, 3 and so on.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."history_length" IS 'How many checkpoints filemark.checkpoint_history has of the file.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."items_processed" IS 'Items done in the whole file so far: a total, never the size of a batch.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."items_total" IS 'How many items the file has; null when unknown.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."lease_expires_at" IS 'Until when the claim cannot be taken over; null unless the file is processing.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."metadata" IS 'What else is known of the file, as a JSON object; each claim hands it on.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."pipeline" IS 'The pipeline the file is in.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."priority" IS 'Files with a higher number are claimed first. Use few different ones.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."processed_by" IS 'The p_worker_id of the last claim.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."processing_time_ms" IS 'How long the completed claim took: as complete_file was told, or measured from the claim.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."records_filtered" IS 'Records left out on purpose, as complete_file was told.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."records_persisted" IS 'Records written: what persist_records counted or complete_file was told, whichever is more.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."records_rejected" IS 'Reserved: records that were refused.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."records_total" IS 'Records in the file, as complete_file was told.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."request_id" IS 'The p_request_id of the last claim.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."size_bytes" IS 'The file''s size; null when unknown.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."started_at" IS 'When the last claim was made.';

COMMENT ON COLUMN "filemark"."file_checkpoints"."status" IS '''pending'', ''processing'', ''completed'', ''failed'' (waiting for its retry), ''dead_letter'' or ''skipped''.';

COMMENT ON COLUMN "filemark"."file_events"."actor" IS 'Who did it: the p_actor or the worker that was named, else the role of the call.';

COMMENT ON COLUMN "filemark"."file_events"."detail" IS 'What else is to be said of such an event, as a JSON object.';

COMMENT ON COLUMN "filemark"."file_events"."event" IS '''failed'', ''lease_expired'', ''dead_lettered'', ''released'', ''requeued'', ''skipped'', ''overwritten'' or ''settings_changed''.';

COMMENT ON COLUMN "filemark"."file_events"."event_id" IS 'Grows with each event.';

COMMENT ON COLUMN "filemark"."file_events"."file_url" IS 'The file; null when it is about the pipeline.';

COMMENT ON COLUMN "filemark"."file_events"."occurred_at" IS 'When it happened.';

COMMENT ON COLUMN "filemark"."file_events"."pipeline" IS 'The pipeline it happened in.';

COMMENT ON COLUMN "filemark"."file_events"."reason" IS 'Why: the p_reason that was given, or a word of ours, such as ''max_attempts_exceeded''.';

COMMENT ON COLUMN "filemark"."pipelines"."backoff_base_seconds" IS 'How long a failed file waits for its second attempt; doubled for each further one. Allowed: 0 to 604800.';

COMMENT ON COLUMN "filemark"."pipelines"."backoff_jitter" IS 'The part of the wait that is random, up or down. Allowed: 0 to 1.';

COMMENT ON COLUMN "filemark"."pipelines"."backoff_max_seconds" IS 'The longest wait between two attempts. Allowed: 0 to 31536000.';

COMMENT ON COLUMN "filemark"."pipelines"."created_at" IS 'When the pipeline was first used.';

COMMENT ON COLUMN "filemark"."pipelines"."cursor_limit_bytes" IS 'The largest cursor that is accepted. Allowed: 1 to 268435456.';

COMMENT ON COLUMN "filemark"."pipelines"."expect_file_every_seconds" IS 'Reserved: alert when no file comes for this long; null for never. Allowed: 1 to 31536000 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."history_limit" IS 'Reserved: checkpoints to keep in a file''s history. Allowed: 1 to 1000000.';

COMMENT ON COLUMN "filemark"."pipelines"."keep_checkpoints_days" IS 'Reserved: how long to keep the history of completed files. Allowed: 0 to 36500.';

COMMENT ON COLUMN "filemark"."pipelines"."keep_files_days" IS 'Reserved: how long to keep completed files; null for ever. Allowed: 0 to 36500 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."lease_seconds" IS 'How long a claim, a checkpoint or extend_claim holds a file. Allowed: 1 to 604800.';

COMMENT ON COLUMN "filemark"."pipelines"."max_attempts" IS 'Claims a file gets at one position, the first included, before it is a dead letter. Allowed: 1 to 1000.';

COMMENT ON COLUMN "filemark"."pipelines"."max_backlog_age_seconds" IS 'Reserved: alert when a file is due for longer; null for never. Allowed: 1 to 31536000 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."max_concurrency" IS 'Files in progress at a time; null for no limit. Allowed: 1 to 100000 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."max_failure_ratio" IS 'Reserved: alert when more of the files fail. Allowed: 0 to 1.';

COMMENT ON COLUMN "filemark"."pipelines"."max_history" IS 'Reserved: alert when a file''s history is longer. Allowed: 1 to 1000000000.';

COMMENT ON COLUMN "filemark"."pipelines"."max_rejected" IS 'Reserved: alert when more records of a file are rejected; null for never. Allowed: 0 to 1000000000 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."max_rejected_ratio" IS 'Reserved: alert when more of a file''s records are rejected; null for never. Allowed: 0 to 1 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."max_results_bytes" IS 'Reserved: alert when a file''s accumulated_results are larger. Allowed: 1 to 268435456.';

COMMENT ON COLUMN "filemark"."pipelines"."min_checkpoints_per_minute" IS 'Reserved: alert when files in progress save less often. Allowed: 0 to 1000000.';

COMMENT ON COLUMN "filemark"."pipelines"."on_overwrite" IS 'What another etag of a known file means: reprocess it as a new generation, or ignore it. Allowed: ''reprocess'' or ''ignore''.';

COMMENT ON COLUMN "filemark"."pipelines"."paused" IS 'Whether claims are refused; files in progress go on. Allowed: true or false.';

COMMENT ON COLUMN "filemark"."pipelines"."pipeline" IS 'The pipeline''s name, 1 to 100 bytes.';

COMMENT ON COLUMN "filemark"."pipelines"."results_limit_bytes" IS 'The largest accumulated_results that is accepted. Allowed: 1 to 268435456.';

COMMENT ON COLUMN "filemark"."pipelines"."stale_after_seconds" IS 'Reserved: alert when a file in progress saves nothing for this long. Allowed: 1 to 31536000.';

COMMENT ON FUNCTION "filemark"."assert_claim"(text, bigint, text) IS 'Locks a claimed file until the transaction ends, or raises that the claim is lost.

Call it first in your own transaction or function: what you write then commits only while the claim stands.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_pipeline: the pipeline of the file.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost.';

COMMENT ON FUNCTION "filemark"."begin_persist"(text, bigint, jsonb, bigint, jsonb, bigint, text) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."configure_pipeline"(text, jsonb, text) IS 'Changes settings of a pipeline.

p_pipeline: the pipeline, 1 to 100 bytes; made on first use.
p_settings: the settings to change, {name: value}, each as in filemark.pipelines; {"paused": true} pauses.
p_actor: who, at most 200 bytes; null for the role of the call.
Returns: one row of filemark.pipelines, as it is now.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "filemark"."insert_records"(regclass, jsonb) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."reclaim_stale_claims"(integer, boolean, text) IS 'Ends claims whose lease is over, without a worker.

Files with budget left become pending again and keep their checkpoint, the others are dead letters. It may run twice at
once.

p_limit: how many claims of a pipeline at most, 1 to 1000000.
p_dry_run: true only to say what would be done.
p_pipeline: the pipeline; null for all.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: ''reclaimed'' or ''dead_lettered''; in a dry run ''would_reclaim'' or ''would_dead_letter''.
Errors: PT400 bad argument; PT404 unknown pipeline.';

COMMENT ON FUNCTION "filemark"."refuse_argument"(text, text, text) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."refuse_size"(text, bigint, bigint, text) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."save_checkpoint"(text, bigint, jsonb, bigint, jsonb, bigint, bigint, bigint, text) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."target_table"(text) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "public"."checkpoint_file"(text, bigint, jsonb, bigint, jsonb, bigint, bigint, text) IS 'Saves the progress of a claimed file and renews the lease.

A higher p_items_processed refills the retry budget. A repeat with the same p_checkpoint_seq and content changes
nothing.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_cursor: the next position to process, as any JSON, at most cursor_limit_bytes.
p_items_processed: items done in the whole file so far: a total, which never falls.
p_accumulated_results: what was worked out so far, as any JSON, at most results_limit_bytes; null keeps what is there,
  {} clears it.
p_checkpoint_seq: the number of this checkpoint, one more than the last one''s; null for the next.
p_items_total: how many items the file has; null keeps what is there.
p_pipeline: the pipeline of the file.
Returns: one row, columns as in filemark.file_checkpoints.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost; PT412 does not follow the last checkpoint;
  PT413 cursor or results too large.';

COMMENT ON FUNCTION "public"."claim_file"(text, text, timestamp with time zone, text, text, text, uuid) IS 'Claims one file by name, known or not.

A refusal takes no lock and writes nothing, unless the call brings an etag to note.

p_file_url: the file: a URL or any stable id, 1 to 2048 bytes.
p_file_type: a name for the kind of file, 1 to 100 bytes; kept when the file or its content is new.
p_file_timestamp: when the file was made, as its source says; kept when the file or its content is new.
p_worker_id: who claims, 1 to 200 bytes.
p_pipeline: the pipeline, 1 to 100 bytes; made on first use.
p_etag: the version of the content, 1 to 1024 bytes; null when unknown. Another one than the file has is other content.
p_request_id: a uuid made for this call. A repeat with it answers with the same claim, and claims nothing when that
  has ended.
Returns: one row of filemark.claim. When outcome is not ''claimed'', only outcome, pipeline and file_url are set.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "public"."claim_next_files"(text, integer, text, text, uuid) IS 'Claims the next files that are due.

Among them are files whose lease is over. It never waits for another claim.

p_worker_id: who claims, 1 to 200 bytes.
p_limit: how many files at most, 1 to 100.
p_pipeline: the pipeline.
p_file_type: only files of this type; null for all.
p_request_id: a uuid made for this call. A repeat with it gets what is left of the first answer, and claims nothing
  more.
Returns: 0 to p_limit rows of filemark.claim, the highest priority first, then the longest available.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "public"."complete_and_claim_next"(text, jsonb, integer, text, text, uuid) IS 'Finishes files and claims the next ones in one transaction.

p_worker_id: who claims, 1 to 200 bytes.
p_completions: array of at most 100 objects {file_url, claim_token, records_total?, …}, each key as in
  filemark.completion and each file_url once.
p_limit: how many files to claim at most, 1 to 100.
p_pipeline: the pipeline.
p_file_type: claim only files of this type; null for all.
p_request_id: a uuid made for this call. A repeat with it completes nothing twice, gets what is left of the first
  answer''s claims, and claims nothing more.
Returns: rows of filemark.claim: one with outcome ''claim_lost'' for each completion whose claim was lost, which undoes
  nothing else, then the new claims, as claim_next_files.
Errors: PT400 bad argument; PT413 more than 100 completions, or results too large.';

COMMENT ON FUNCTION "public"."complete_file"(text, bigint, bigint, bigint, bigint, bigint, jsonb, text, text) IS 'Marks a claimed file as done.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_records_total: records in the whole file.
p_records_filtered: records that were left out on purpose.
p_records_persisted: records that were written; what persist_records counted is never lowered.
p_processing_time_ms: how long it took, in milliseconds; null to measure from the claim.
p_accumulated_results: the results, as any JSON, at most results_limit_bytes; null keeps what is there.
p_etag: the etag that was actually read, 1 to 1024 bytes; null when unknown.
p_pipeline: the pipeline of the file.
Returns: one row.
outcome: ''completed''; ''already_completed'' for a repeat; ''superseded'' when newer content was seen meanwhile or p_etag is
  not the claimed one: the file is then pending again as a new generation.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost; PT413 results too large.';

COMMENT ON FUNCTION "public"."extend_claim"(text, bigint, text) IS 'Renews the lease of a claim, to lease_seconds from now.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_pipeline: the pipeline of the file.
Returns: the new end of the lease.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost.';

COMMENT ON FUNCTION "public"."fail_file"(text, bigint, text, boolean, jsonb, integer, text) IS 'Gives a claimed file back with an error, to be tried again or as a dead letter.

It is a dead letter when its budget is spent or the error is not retryable. When newer content was seen meanwhile, that
is next instead. A repeat is answered as the first call was.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_error_message: what went wrong, 1 to 65536 bytes.
p_retryable: false when more attempts will not help.
p_error: the error in detail, as any JSON, at most 1 MiB.
p_retry_after_seconds: when to try again, 0 to 31536000; null for the backoff.
p_pipeline: the pipeline of the file.
Returns: one row, attempts as in filemark.file_checkpoints.
status: ''failed'', ''dead_letter'', or ''pending'' with newer content.
available_at: when the file is due again; null for a dead letter.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost; PT413 p_error too large.';

COMMENT ON FUNCTION "public"."get_file_checkpoint"(text, text) IS 'Everything known about one file.

p_file_url: the file.
p_pipeline: the pipeline of the file.
Returns: one row of filemark.file_checkpoints, or none when the file is not known.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "public"."list_file_checkpoints"(text, integer, text, text) IS 'Everything known about many files, page by page.

p_status: only files in this status; null for all.
p_limit: how many files at most, 1 to 1000.
p_after: the last file_url of the page before; null for the first page.
p_pipeline: the pipeline.
Returns: rows of filemark.file_checkpoints, by file_url.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "public"."pending_files"(text[], text) IS 'Of the given files, known or not, those that claim_file would get now.

p_file_urls: at most 1,000 file_urls.
p_pipeline: the pipeline.
Returns: a row for each of them, in the order given, file_url as in filemark.file_checkpoints.
Errors: PT400 bad argument; PT413 more than 1,000 file_urls.';

COMMENT ON FUNCTION "public"."persist_records"(text, bigint, text, jsonb, jsonb, bigint, jsonb, bigint, text) IS 'Inserts records and saves the checkpoint in one transaction: exactly-once loading over plain HTTP.

It runs as its caller, whose own INSERT grant on the target decides. Records that meet a unique key of the target are
passed over. What the target itself refuses (a type, a constraint, a trigger) is raised as it is. A repeat inserts
nothing.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_target: the table, as schema.table; without a schema it is in public.
p_records: array of at most 10,000 objects {column: value}; a column that a record lacks takes its default.
p_cursor: the next position to process, as any JSON, at most cursor_limit_bytes.
p_items_processed: items done in the whole file so far: a total, which must grow when p_checkpoint_seq is null.
p_accumulated_results: what was worked out so far, as any JSON, at most results_limit_bytes; null keeps what is there,
  {} clears it.
p_checkpoint_seq: the number of this checkpoint, one more than the last one''s; null for the next.
p_pipeline: the pipeline of the file.
Returns: one row, checkpoint_seq and lease_expires_at as in filemark.file_checkpoints.
records_persisted: records that went in, without those passed over.
Errors: PT400 bad argument, unknown table or column; PT404 unknown file; PT409 claim lost; PT412 does not follow
  the last checkpoint; PT413 records, cursor or results too large; 42501 no INSERT grant on the target.';

COMMENT ON FUNCTION "public"."pipeline_stats"(text) IS 'How many files are in which status, how old the backlog is, what was loaded and what fails.

p_pipeline: the pipeline; null for all.
Returns: one row per pipeline.
pipeline: the pipeline.
pending: files in this status.
processing: files in this status.
completed: files in this status.
failed: files in this status: waiting for their retry.
dead_letter: files in this status.
skipped: files in this status.
total: files in all.
oldest_pending_age_seconds: how long the oldest pending file has been due, in seconds; null when none is due.
records_total: sum over all files.
records_filtered: sum over all files.
records_persisted: sum over all files.
records_rejected: sum over all files.
failure_ratio: failed and dead files among all that are completed, failed or dead; null when there are none.
last_completed_at: when a file was last completed; null when none is.';

COMMENT ON FUNCTION "public"."register_files"(jsonb, text) IS 'Makes files known to a pipeline.

New files become pending. A known file that comes with another etag starts a new generation, now or when its claim ends,
unless on_overwrite is ''ignore''. Of two entries with one file_url the later counts. A repeat changes nothing.

p_files: array of at most 10,000 objects {file_url, file_type, file_timestamp, etag?, size_bytes?, priority?,
  available_at?, metadata?}, each key as in filemark.file_checkpoints.
p_pipeline: the pipeline, 1 to 100 bytes; made on first use.
Returns: one row.
registered: files that were not known.
new_generations: known files that came with other content.
unchanged: the other entries.
Errors: PT400 bad argument; PT413 more than 10,000 files.';

COMMENT ON FUNCTION "public"."release_file"(text, bigint, text) IS 'Gives a claimed file back at once, for a shutdown or a time budget that ends.

It keeps its checkpoint and its place in the queue, and the attempt is not counted. A repeat changes nothing.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_pipeline: the pipeline of the file.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost.';

COMMENT ON FUNCTION "public"."requeue_file"(text, text, boolean, text, text, text) IS 'Puts a file back into the queue with a full budget.

Its results are kept only when it goes on from its last checkpoint. A repeat changes nothing.

p_file_url: the file.
p_from: ''checkpoint'' for the last one, ''start'', or ''checkpoint:<number>'' for one of its history.
p_force: true to take the file from its holder, whose token is dead at once.
p_reason: why, at most 10000 bytes; kept in filemark.file_events.
p_actor: who, at most 200 bytes; null for the role of the call.
p_pipeline: the pipeline of the file.
Returns: one row.
status: ''pending''.
checkpoint_seq: the checkpoint it goes on from; 0 for the start.
Errors: PT400 bad argument; PT404 unknown file; PT422 being processed, and p_force is not true.';

COMMENT ON FUNCTION "public"."skip_file"(text, text, text, text) IS 'Takes a file that nobody is processing out of the queue, until it is requeued or its content changes.

It keeps its checkpoint. A repeat changes nothing.

p_file_url: the file.
p_reason: why, at most 10000 bytes; kept in filemark.file_events.
p_actor: who, at most 200 bytes; null for the role of the call.
p_pipeline: the pipeline of the file.
Errors: PT400 bad argument; PT404 unknown file; PT422 being processed.';

COMMENT ON SCHEMA "filemark" IS 'Checkpoint and resume with exactly-once effects for file pipelines. Not to be exposed over the API.

Errors: PT400 an argument cannot be right: the message names it, its value and what is allowed; PT404 no such file or
  pipeline; PT409 the claim is lost: it ended, was taken over or never was; PT412 the checkpoint does not follow the
  last one: a gap, a step back, or a repeat with other content; PT413 an argument is larger than its limit; PT422 not
  allowed in the state the file is in.';

COMMENT ON TYPE "filemark"."claim" IS 'A claim as workers see it, or why there is none.

Columns: as in filemark.file_checkpoints, and these.
outcome: ''claimed''; or why not: ''held'' (by a live claim), ''completed'', ''waiting'' (not due yet), ''dead_letter'', ''skipped'',
  ''paused'' or ''busy'' (max_concurrency is reached); or ''claim_lost'', of a completion.
max_attempts: the pipeline''s max_attempts: the claim is the last one when attempts is as high.
lease_seconds: the pipeline''s lease_seconds: how long each checkpoint renews the lease.';

COMMENT ON TYPE "filemark"."completion" IS 'What a worker says of a file that it finished.

file_url: the file.
claim_token: the token that the claim was given.
records_total: records in the whole file; 0 when left out.
records_filtered: records that were left out on purpose; 0 when left out.
records_persisted: records that were written, 0 when left out; what persist_records counted is never lowered.
processing_time_ms: how long it took, in milliseconds; measured from the claim when left out.
accumulated_results: the results, as any JSON, at most results_limit_bytes; what is there is kept when left out.
etag: the etag that was actually read, 1 to 1024 bytes.';

REVOKE ALL ON FUNCTION "filemark"."add_claimed_file"(text, text, jsonb, timestamp WITH time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."apply_settings"(filemark.pipelines, jsonb) FROM PUBLIC;

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
