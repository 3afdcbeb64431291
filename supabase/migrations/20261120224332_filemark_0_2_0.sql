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

DROP FUNCTION "filemark"."claim_next"(text, text, integer, text, uuid);

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

CREATE OR REPLACE FUNCTION filemark.begin_persist (
  p_file_url            text,
  p_claim_token         bigint,
  p_cursor              jsonb,
  p_items_processed     bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq      bigint,
  p_pipeline            text
)
  RETURNS TABLE (
    records_persisted bigint,
    checkpoint_seq    bigint,
    lease_expires_at  timestamp with time zone
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
  v_file record;
begin
  if coalesce(p_cursor, 'null') = 'null' then
    perform filemark.refuse_argument('p_cursor', null, 'the next position to process, as any JSON');
  end if;
  perform filemark.check_number('p_items_processed', p_items_processed, 0, 9223372036854775807),
          filemark.check_number('p_checkpoint_seq', coalesce(p_checkpoint_seq, 1), 1, 9223372036854775807);
  select f.checkpoint_seq, f.items_processed
    into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     and f.claim_token = p_claim_token and f.status = 'processing'
     for no key update;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  elsif p_checkpoint_seq = v_file.checkpoint_seq + 1
        or (p_checkpoint_seq is null and p_items_processed > v_file.items_processed) then
    return;
  end if;
  return query
  select r.records_persisted, r.checkpoint_seq, r.lease_expires_at
    from filemark.repeated_checkpoint(
      p_pipeline, p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results,
      p_checkpoint_seq) r;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.checkpoint_to_resume (
  p_file filemark.file_checkpoints,
  p_from text
)
  RETURNS filemark.checkpoint_history
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_seq bigint;
  v_checkpoint filemark.checkpoint_history;
  v_kept record;
begin
  if p_from is null or p_from !~ '^(checkpoint|start|checkpoint:[1-9][0-9]{0,17})$' then
    perform filemark.refuse_argument('p_from', p_from, 'checkpoint, start or checkpoint:<number>');
  elsif p_from = 'start' or (p_from = 'checkpoint' and p_file.cursor is null) then
    v_checkpoint.checkpoint_seq := 0;
    v_checkpoint.items_processed := 0;
  elsif p_from = 'checkpoint' then
    v_checkpoint.checkpoint_seq := p_file.checkpoint_seq;
    v_checkpoint.items_processed := p_file.items_processed;
    v_checkpoint.cursor := p_file.cursor;
    v_checkpoint.saved_at := p_file.checkpointed_at;
  else
    v_seq := split_part(p_from, ':', 2)::bigint;
    select h.* into v_checkpoint
      from filemark.checkpoint_history h
     where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url and h.checkpoint_seq = v_seq;
    if not found then
      select min(h.checkpoint_seq) as first, max(h.checkpoint_seq) as last
        into v_kept
        from filemark.checkpoint_history h
       where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url;
      perform filemark.refuse_argument(
        'p_from', p_from,
        case when v_kept.first is null then 'checkpoint or start: the file has no history'
             else format('a checkpoint of the file''s history (%s to %s)', v_kept.first, v_kept.last) end);
    end if;
  end if;
  return v_checkpoint;
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
    select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
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

CREATE OR REPLACE FUNCTION filemark.claim_next (
  p_pipeline   text,
  p_worker_id  text,
  p_limit      integer,
  p_file_type  text,
  p_request_id uuid,
  p_is_limited boolean DEFAULT true
)
  RETURNS SETOF filemark.claim
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_now timestamptz;
  v_settings filemark.pipelines;
  v_is_limited boolean;
  v_room int := p_limit;
  v_lost text[];
  v_urls text[];
  v_file filemark.file_checkpoints;
begin
  if p_request_id is not null then
    v_urls := filemark.held_by_request(p_pipeline, p_request_id);
    if v_urls is not null then
      return query select * from filemark.read_claims(p_pipeline, v_urls);
      return;
    end if;
  end if;

  select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  v_is_limited := p_is_limited and v_settings.max_concurrency is not null;
  if v_is_limited then
    -- Locks the pipeline's row, before any file's. It may have been paused meanwhile.
    perform filemark.free_slots(p_pipeline);
    select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  end if;
  if v_settings.paused is not false then
    return;
  end if;
  -- Now that the wait for the locks is over: the leases begin here.
  v_now := clock_timestamp();

  v_lost := filemark.lock_lost_files(
    p_pipeline, p_file_type, p_limit, v_settings.max_attempts, v_now, p_worker_id);
  if v_is_limited then
    -- Counted when the dead letters and the superseded among the lost have left their slots.
    v_room := least(p_limit, filemark.free_slots(p_pipeline));
  end if;
  v_urls := filemark.lock_due_files(p_pipeline, p_file_type, v_room, v_now);
  if v_lost <> '{}' then
    -- A file taken over has its slot already, so only the due ones are bound by v_room.
    v_urls := array(
      select f.file_url::text from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = any (v_lost || v_urls)
       order by f.priority desc, f.available_at, f.file_url
       limit p_limit);
    for v_file in
      select f.* from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = any (v_urls) and f.status = 'processing'
    loop
      perform filemark.end_lost_claim(v_file, v_now, p_worker_id);
    end loop;
  end if;
  if v_urls = '{}' then
    return;
  end if;

  if p_request_id is not null then
    insert into filemark.claim_requests (pipeline, request_id, file_urls, claimed_at)
    values (p_pipeline, p_request_id, v_urls, v_now);
  end if;
  perform filemark.take_files(
    p_pipeline, v_urls, p_worker_id, p_request_id, v_settings.lease_seconds, v_now);
  return query select * from filemark.read_claims(p_pipeline, v_urls);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.complete_files (
  p_pipeline    text,
  p_completions filemark.completion[]
)
  RETURNS TABLE (
    file_url text,
    outcome  text
  )
  LANGUAGE plpgsql
  SET search_path TO ''
  SET enable_hashjoin TO 'off'
  SET enable_mergejoin TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_urls text[] := array(select c.file_url from unnest(p_completions) c);
  v_done text[];
  v_left record;
begin
  if cardinality(p_completions) > 1 then
    -- All of them first, one by one in key order: the update passes over those with newer content, and would
    -- have locked what comes after them.
    perform from unnest(p_completions) c
     cross join lateral (
       select from filemark.file_checkpoints f
        where f.pipeline = p_pipeline and f.file_url = c.file_url and f.claim_token = c.claim_token
          for no key update) locked;
  end if;

  with done as (
    update filemark.file_checkpoints f
       set status = 'completed',
           claim_ended = 'completed',
           lease_expires_at = null,
           lease_check_at = null,
           etag = coalesce(f.etag, c.etag),
           records_total = c.records_total,
           records_filtered = c.records_filtered,
           records_persisted = greatest(f.records_persisted, c.records_persisted),
           processing_time_ms = coalesce(c.processing_time_ms,
                                         greatest(extract(epoch from v_now - f.started_at) * 1000, 0)),
           accumulated_results = coalesce(c.accumulated_results, f.accumulated_results),
           error_message = null,
           error = null,
           completed_at = v_now
      from unnest(p_completions) c
     where f.pipeline = p_pipeline
       -- Said twice: whichever side the planner begins with, it reads by key.
       and f.file_url = any (v_urls)
       and f.file_url = c.file_url
       and f.claim_token = c.claim_token
       and f.status = 'processing'
       and f.superseded_by is null
       and (c.etag is null or f.etag is null or c.etag = f.etag
            or (select p.on_overwrite = 'ignore' from filemark.pipelines p where p.pipeline = p_pipeline))
    returning f.file_url
  )
  select array_agg(d.file_url::text) into v_done from done d;
  return query select unnest(v_done), 'completed';

  -- What is left: content that changed meanwhile, repeats, claims that were lost.
  for v_left in
    select c.file_url, c.claim_token, c.etag from unnest(p_completions) c
     where c.file_url <> all (coalesce(v_done, '{}'))
  loop
    file_url := v_left.file_url;
    outcome := filemark.complete_changed_file(p_pipeline, file_url, v_left.claim_token, v_left.etag, v_now);
    return next;
  end loop;
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

CREATE OR REPLACE FUNCTION filemark.held_by_request (
  p_pipeline   text,
  p_request_id uuid
)
  RETURNS text[]
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_urls text[];
begin
  perform pg_advisory_xact_lock(hashtextextended('filemark ' || p_request_id, 0));
  select r.file_urls into v_urls
    from filemark.claim_requests r
   where r.pipeline = p_pipeline and r.request_id = p_request_id;
  if not found then
    return null;
  end if;
  return array(
    select f.file_url::text
      from unnest(v_urls) with ordinality u (url, position)
      join filemark.file_checkpoints f on f.pipeline = p_pipeline and f.file_url = u.url
     where f.status = 'processing' and f.request_id = p_request_id
     order by u.position);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.insert_records (
  p_target  regclass,
  p_records jsonb
)
  RETURNS bigint
  LANGUAGE plpgsql
  SET search_path TO 'public', 'extensions'
  AS $function$
declare
  v_shape record;
  v_names text;
  v_columns text;
  v_unknown text;
  v_rows bigint;
  v_total bigint := 0;
begin
  -- Records of one shape (the same keys) go in together, in their order.
  for v_shape in
    select s.keys, jsonb_agg(s.record order by s.position) as records
      from (select array(select jsonb_object_keys(e.record)) as keys, e.record, e.position
              from jsonb_array_elements(p_records) with ordinality e (record, position)) s
     group by s.keys
     order by min(s.position)
  loop
    select string_agg(quote_ident(a.attname), ', ' order by k.position),
           string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by k.position),
           min(k.name) filter (where a.attname is null)
      into v_names, v_columns, v_unknown
      from unnest(v_shape.keys) with ordinality k (name, position)
      left join pg_catalog.pg_attribute a
        on a.attrelid = p_target and a.attname = k.name and a.attnum > 0 and not a.attisdropped;
    if v_unknown is not null then
      raise exception 'p_records names a column "%" that % does not have',
        filemark.on_one_line(v_unknown, 100), filemark.on_one_line(p_target::text)
        using errcode = 'PT400';
    end if;
    if v_names is null then
      execute format('insert into %s select from jsonb_array_elements($1) on conflict do nothing', p_target)
        using v_shape.records;
    else
      execute format('insert into %s (%s) select %2$s from jsonb_to_recordset($1) as r (%3$s) on conflict do nothing',
                     p_target, v_names, v_columns)
        using v_shape.records;
    end if;
    get diagnostics v_rows = row_count;
    v_total := v_total + v_rows;
  end loop;
  return v_total;
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
    raise exception 'file "%" is unknown in pipeline "%"',
      filemark.on_one_line(p_file_url), filemark.on_one_line(p_pipeline)
      using errcode = 'PT404';
  end if;
  return v_file;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.note_content (
  p_file         filemark.file_checkpoints,
  p_content      jsonb,
  p_on_overwrite text,
  p_now          timestamp with time zone,
  p_actor        text                      DEFAULT NULL::text
)
  RETURNS boolean
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_etag text := p_content ->> 'etag';
begin
  -- Content that comes back while the file is processed is news too: the holder may have read the other.
  if v_etag is null or v_etag = coalesce(p_file.superseded_by ->> 'etag', p_file.etag) then
    return false;
  elsif p_file.etag is null then
    update filemark.file_checkpoints f
       set etag = v_etag
     where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
    return false;
  elsif p_on_overwrite = 'ignore' then
    return false;
  elsif p_file.status = 'processing' then
    update filemark.file_checkpoints f
       set superseded_by = p_content
     where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
    return true;
  else
    perform filemark.start_generation(p_file.pipeline, p_file.file_url, p_content, p_now, p_actor);
    return true;
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.on_one_line (
  p_text   text,
  p_length integer DEFAULT 3000
)
  RETURNS text
  LANGUAGE plpgsql
  IMMUTABLE
  SET search_path TO ''
  AS $function$
begin
  return regexp_replace(
    case when length(p_text) > p_length then left(p_text, p_length) || '…' else p_text end,
    '[\u0001-\u001f\u007f]', '�', 'g');
end
$function$;

CREATE OR REPLACE FUNCTION filemark.parse_completions (
  p_completions jsonb,
  p_pipeline    text
)
  RETURNS filemark.completion[]
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_keys constant text[] := array[
    'file_url', 'claim_token', 'records_total', 'records_filtered', 'records_persisted', 'processing_time_ms',
    'accumulated_results', 'etag'];
  v_bad record;
  v_completions filemark.completion[];
begin
  if jsonb_typeof(p_completions) is distinct from 'array' then
    perform filemark.refuse_argument('p_completions', p_completions::text, 'a JSON array of objects');
  elsif jsonb_array_length(p_completions) > 100 then
    perform filemark.refuse_size('p_completions', jsonb_array_length(p_completions), 100, 'completions');
  end if;

  select e.position - 1 as index, e.entry, checked.verdict,
         case when jsonb_typeof(e.entry) = 'object' then
           (select min(k.key) from jsonb_object_keys(e.entry - v_keys) k (key))
         end as unknown_key
    into v_bad
    from jsonb_array_elements(p_completions) with ordinality e (entry, position)
   cross join lateral (
     select case
       when jsonb_typeof(e.entry) <> 'object' or e.entry - v_keys <> '{}' then
         'an object'
       when jsonb_typeof(e.entry -> 'file_url') is distinct from 'string'
            or jsonb_typeof(e.entry -> 'etag') not in ('string', 'null') then
         'an object with texts as file_url and etag'
       when exists (select from jsonb_each_text(e.entry - array['file_url', 'etag', 'accumulated_results']) n (key, value)
                     where case when n.value ~ '^[0-9]{1,19}(\.0+)?$'
                                then n.value::numeric > 9223372036854775807 else n.value is not null end) then
         'an object with a claim_token, and whole numbers of 0 or more as counts and time'
       end
   ) as checked (verdict)
   where checked.verdict is not null
   limit 1;
  if found and v_bad.unknown_key is not null then
    perform filemark.refuse_key(format('p_completions[%s].%s', v_bad.index, v_bad.unknown_key), v_keys);
  elsif found then
    perform filemark.refuse_argument(
      format('p_completions[%s]', v_bad.index), v_bad.entry::text, v_bad.verdict);
  end if;

  if (select count(distinct e.entry ->> 'file_url') from jsonb_array_elements(p_completions) e (entry))
     < jsonb_array_length(p_completions) then
    perform filemark.refuse_argument('p_completions', p_completions::text, 'an array that names each file_url once');
  end if;

  v_completions := array(
    select (c.file_url, c.claim_token, coalesce(c.records_total, 0), coalesce(c.records_filtered, 0),
            coalesce(c.records_persisted, 0), c.processing_time_ms,
            nullif(c.accumulated_results, 'null'), c.etag)::filemark.completion
      from jsonb_to_recordset(p_completions) as c (
             file_url text, claim_token numeric, records_total numeric, records_filtered numeric,
             records_persisted numeric, processing_time_ms numeric, accumulated_results jsonb, etag text)
     order by c.file_url collate "C");
  perform filemark.check_completion(c, p_pipeline, format('p_completions[%s].', c.file_url))
     from unnest(v_completions) c;
  return v_completions;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.reclaim_stale_claims (
  p_limit    integer DEFAULT 1000,
  p_dry_run  boolean DEFAULT false,
  p_pipeline text    DEFAULT NULL::text
)
  RETURNS TABLE (
    pipeline text,
    file_url text,
    action   text
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
  v_settings filemark.pipelines;
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_number('p_limit', p_limit, 1, 1000000);
  if p_dry_run is null then
    perform filemark.refuse_argument('p_dry_run', null, 'true or false');
  end if;
  if p_pipeline is not null and not exists (select from filemark.pipelines p where p.pipeline = p_pipeline) then
    raise exception 'pipeline "%" is unknown', filemark.on_one_line(p_pipeline) using errcode = 'PT404';
  end if;

  for v_settings in
    select p.* from filemark.pipelines p where p_pipeline is null or p.pipeline = p_pipeline order by p.pipeline
  loop
    if p_dry_run then
      return query
      select f.pipeline::text, f.file_url::text,
             case when f.attempts >= v_settings.max_attempts and f.superseded_by is null
                  then 'would_dead_letter' else 'would_reclaim' end
        from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline and f.status = 'processing' and f.lease_check_at <= v_now
         and f.lease_expires_at <= v_now
       order by f.lease_check_at
       limit p_limit;
      continue;
    end if;

    for v_file in
      select f.* from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline and f.status = 'processing' and f.lease_check_at <= v_now
       order by f.lease_check_at
       limit p_limit
         for no key update skip locked
    loop
      pipeline := v_file.pipeline;
      file_url := v_file.file_url;
      if v_file.lease_expires_at > v_now then
        update filemark.file_checkpoints f
           set lease_check_at = v_file.lease_expires_at
         where f.pipeline = v_file.pipeline and f.file_url = v_file.file_url;
        continue;
      elsif v_file.attempts >= v_settings.max_attempts and v_file.superseded_by is null then
        perform filemark.bury_lost_file(v_file, 'reclaim_stale_claims');
        action := 'dead_lettered';
      else
        perform filemark.end_lost_claim(v_file, v_now, 'reclaim_stale_claims');
        update filemark.file_checkpoints f
           set status = 'pending', claim_ended = 'lost', lease_expires_at = null, lease_check_at = null
         where f.pipeline = v_file.pipeline and f.file_url = v_file.file_url;
        action := 'reclaimed';
      end if;
      return next;
    end loop;

    -- A repeat of a batch claim comes within minutes; its request is forgotten after a day.
    delete from filemark.claim_requests r
     where r.pipeline = v_settings.pipeline
       and r.request_id in (select o.request_id from filemark.claim_requests o
                             where o.pipeline = v_settings.pipeline and o.claimed_at < v_now - interval '1 day'
                             limit p_limit
                               for update skip locked);
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.refuse_argument (
  p_name    text,
  p_value   text,
  p_allowed text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  raise exception '% must be %, not %', filemark.on_one_line(p_name), p_allowed,
    coalesce('"' || filemark.on_one_line(p_value, 100) || '"', 'null')
    using errcode = 'PT400';
end
$function$;

CREATE OR REPLACE FUNCTION filemark.refuse_claim (
  p_pipeline    text,
  p_file_url    text,
  p_claim_token bigint
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_file record;
begin
  perform filemark.check_key(p_pipeline, p_file_url);
  if p_claim_token is null or p_claim_token < 1 then
    perform filemark.refuse_argument('p_claim_token', p_claim_token::text, 'the token of a claim');
  end if;
  select f.status, f.claim_token, f.claim_ended, f.processed_by
    into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
  if not found then
    raise exception 'file "%" is unknown in pipeline "%"',
      filemark.on_one_line(p_file_url), filemark.on_one_line(p_pipeline)
      using errcode = 'PT404', hint = 'Claim it with claim_file, or register it with register_files.';
  end if;
  raise exception 'claim % on file "%" is lost', p_claim_token, filemark.on_one_line(p_file_url)
    using errcode = 'PT409',
          detail = case
            when v_file.claim_token > p_claim_token then
              format('It is now %s; the last claim is %s, by %s.',
                     v_file.status, v_file.claim_token, coalesce(v_file.processed_by, 'nobody'))
            when v_file.claim_token < p_claim_token then
              format('There was no such claim: the last one is %s.', v_file.claim_token)
            else
              format('The claim ended (%s); the file is now %s.', v_file.claim_ended, v_file.status)
          end,
          hint = 'Stop working on the file: what was not saved with this token will be done by another worker.';
end
$function$;

CREATE OR REPLACE FUNCTION filemark.refuse_key (
  p_name  text,
  p_known text[]
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  raise exception '% is unknown; known are %',
    filemark.on_one_line(p_name, 100), array_to_string(p_known, ', ')
    using errcode = 'PT400';
end
$function$;

CREATE OR REPLACE FUNCTION filemark.refuse_size (
  p_name  text,
  p_size  bigint,
  p_limit bigint,
  p_unit  text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  raise exception '% has % %, the limit is %', filemark.on_one_line(p_name), p_size, p_unit, p_limit
    using errcode = 'PT413';
end
$function$;

CREATE OR REPLACE FUNCTION filemark.repeated_checkpoint (
  p_pipeline            text,
  p_file_url            text,
  p_claim_token         bigint,
  p_cursor              jsonb,
  p_items_processed     bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq      bigint,
  OUT                   checkpoint_seq bigint,
  OUT                   lease_expires_at timestamp with time zone,
  OUT                   history_length bigint,
  OUT                   records_persisted bigint
)
  RETURNS record
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_file record;
  v_saved record;
begin
  select f.checkpoint_seq, f.items_processed, f.accumulated_results, f.lease_expires_at, f.history_length
    into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     and f.claim_token = p_claim_token and f.status = 'processing'
     for no key update;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;

  if coalesce(p_checkpoint_seq, v_file.checkpoint_seq) = v_file.checkpoint_seq then
    select h.cursor, h.items_processed, h.records_persisted
      into v_saved
      from filemark.checkpoint_history h
     where h.pipeline = p_pipeline and h.file_url = p_file_url
       and h.checkpoint_seq = v_file.checkpoint_seq and h.claim_token = p_claim_token;
    if v_saved.cursor = p_cursor and v_saved.items_processed = p_items_processed
       and coalesce(nullif(p_accumulated_results, 'null') = v_file.accumulated_results,
                    nullif(p_accumulated_results, 'null') is null) then
      checkpoint_seq := v_file.checkpoint_seq;
      lease_expires_at := v_file.lease_expires_at;
      history_length := v_file.history_length;
      records_persisted := v_saved.records_persisted;
      return;
    end if;
  end if;

  if p_checkpoint_seq > v_file.checkpoint_seq + 1 then
    raise exception 'p_checkpoint_seq % leaves a gap: the last checkpoint of file "%" is %',
      p_checkpoint_seq, filemark.on_one_line(p_file_url), v_file.checkpoint_seq using errcode = 'PT412';
  elsif p_checkpoint_seq <= v_file.checkpoint_seq then
    raise exception 'p_checkpoint_seq % of file "%" was saved before, with other content or by another claim; '
      'the last checkpoint is %', p_checkpoint_seq, filemark.on_one_line(p_file_url), v_file.checkpoint_seq
      using errcode = 'PT412';
  else
    raise exception 'p_items_processed % of file "%" %: % are saved already',
      p_items_processed, filemark.on_one_line(p_file_url),
      case when p_items_processed < v_file.items_processed then 'steps back' else 'does not advance' end,
      v_file.items_processed
      using errcode = 'PT412', hint = 'It is the total done in the file so far, not the size of a batch.';
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.save_checkpoint (
  p_file_url            text,
  p_claim_token         bigint,
  p_cursor              jsonb,
  p_items_processed     bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq      bigint,
  p_items_total         bigint,
  p_records_persisted   bigint,
  p_pipeline            text
)
  RETURNS TABLE (
    checkpoint_seq   bigint,
    lease_expires_at timestamp with time zone,
    history_length   bigint
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
  v_settings record;
begin
  select p.lease_seconds, p.cursor_limit_bytes, p.results_limit_bytes
    into v_settings
    from filemark.pipelines p
   where p.pipeline = p_pipeline;
  if coalesce(p_cursor, 'null') = 'null' then
    perform filemark.refuse_argument('p_cursor', null, 'the next position to process, as any JSON');
  end if;
  perform filemark.check_number('p_items_processed', p_items_processed, 0, 9223372036854775807),
          filemark.check_number('p_checkpoint_seq', coalesce(p_checkpoint_seq, 1), 1, 9223372036854775807),
          filemark.check_number('p_items_total', coalesce(p_items_total, 0), 0, 9223372036854775807),
          filemark.check_size('p_cursor', p_cursor, v_settings.cursor_limit_bytes),
          filemark.check_size('p_accumulated_results', p_accumulated_results, v_settings.results_limit_bytes);

  return query
  with saved as (
    update filemark.file_checkpoints f
       set cursor = p_cursor,
           items_processed = p_items_processed,
           items_total = coalesce(p_items_total, f.items_total),
           accumulated_results = coalesce(nullif(p_accumulated_results, 'null'), f.accumulated_results),
           checkpoint_seq = f.checkpoint_seq + 1,
           checkpointed_at = v_now,
           history_length = f.history_length + 1,
           records_persisted = f.records_persisted + p_records_persisted,
           -- Never shorter: this call may have waited for the lock while another renewed the lease.
           lease_expires_at = greatest(f.lease_expires_at, v_now + make_interval(secs => v_settings.lease_seconds)),
           attempts = case when p_items_processed > f.items_processed then 1 else f.attempts end
     where f.pipeline = p_pipeline
       and f.file_url = p_file_url
       and f.claim_token = p_claim_token
       and f.status = 'processing'
       and f.items_processed <= p_items_processed
       and f.checkpoint_seq + 1 = coalesce(p_checkpoint_seq, f.checkpoint_seq + 1)
    returning f.checkpoint_seq, f.lease_expires_at, f.history_length
  ), noted as (
    insert into filemark.checkpoint_history (
      pipeline, file_url, checkpoint_seq, cursor, items_processed, records_persisted, claim_token, saved_at)
    select p_pipeline, p_file_url, s.checkpoint_seq, p_cursor, p_items_processed, p_records_persisted,
           p_claim_token, v_now
      from saved s
  )
  select s.checkpoint_seq, s.lease_expires_at, s.history_length from saved s;

  if not found then
    return query
    select r.checkpoint_seq, r.lease_expires_at, r.history_length
      from filemark.repeated_checkpoint(
        p_pipeline, p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results,
        p_checkpoint_seq) r;
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.target_table (
  p_target text
)
  RETURNS regclass
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
declare
  v_name text[];
  v_table regclass;
begin
  begin
    v_name := parse_ident(p_target);
    v_table := to_regclass(case cardinality(v_name)
      when 1 then format('public.%I', v_name[1])
      when 2 then format('%I.%I', v_name[1], v_name[2])
    end);
  exception
    when invalid_parameter_value or invalid_name or syntax_error then
      v_table := null;
  end;
  if v_table is null
     or not exists (select from pg_catalog.pg_class c where c.oid = v_table and c.relkind in ('r', 'p', 'v', 'f'))
     -- 8: takes inserts, by rules or triggers too
     or pg_relation_is_updatable(v_table, true) & 8 = 0
     -- on conflict knows no keys that are checked later
     or exists (select from pg_catalog.pg_index i where i.indrelid = v_table and not i.indimmediate) then
    perform filemark.refuse_argument(
      'p_target', p_target, 'the name of a table that takes inserts and has no deferrable key, as schema.table');
  end if;
  return v_table;
end
$function$;

CREATE OR REPLACE FUNCTION public.complete_and_claim_next (
  p_worker_id   text,
  p_completions jsonb,
  p_limit       integer DEFAULT 1,
  p_pipeline    text    DEFAULT 'default'::text,
  p_file_type   text    DEFAULT NULL::text,
  p_request_id  uuid    DEFAULT NULL::uuid
)
  RETURNS TABLE (
    outcome             text,
    pipeline            text,
    file_url            text,
    file_type           text,
    file_timestamp      timestamp with time zone,
    etag                text,
    size_bytes          bigint,
    metadata            jsonb,
    generation          bigint,
    claim_token         bigint,
    attempts            integer,
    max_attempts        integer,
    lease_seconds       integer,
    lease_expires_at    timestamp with time zone,
    cursor              jsonb,
    items_processed     bigint,
    items_total         bigint,
    accumulated_results jsonb,
    checkpoint_seq      bigint
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
  v_completions filemark.completion[];
  v_finished record;
  v_is_limited boolean;
begin
  perform filemark.check_text('p_worker_id', p_worker_id, 200),
          filemark.check_number('p_limit', p_limit, 1, 100),
          filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_text('p_file_type', coalesce(p_file_type, '-'), 100);
  v_completions := filemark.parse_completions(p_completions, p_pipeline);

  -- The pipeline's row before any file's, where a limit will have it locked.
  perform from filemark.pipelines p
    where p.pipeline = p_pipeline and p.max_concurrency is not null
      for no key update;
  v_is_limited := found;
  for v_finished in select c.file_url, c.outcome from filemark.complete_files(p_pipeline, v_completions) c loop
    if v_finished.outcome = 'claim_lost' then
      outcome := 'claim_lost';
      pipeline := p_pipeline;
      file_url := v_finished.file_url;
      return next;
    end if;
  end loop;

  -- A limit that was set since counts from the next call on: the pipeline is not locked behind files.
  return query
  select * from filemark.claim_next(p_pipeline, p_worker_id, p_limit, p_file_type, p_request_id, v_is_limited);
end
$function$;

CREATE OR REPLACE FUNCTION public.complete_file (
  p_file_url            text,
  p_claim_token         bigint,
  p_records_total       bigint DEFAULT 0,
  p_records_filtered    bigint DEFAULT 0,
  p_records_persisted   bigint DEFAULT 0,
  p_processing_time_ms  bigint DEFAULT NULL::bigint,
  p_accumulated_results jsonb  DEFAULT NULL::jsonb,
  p_etag                text   DEFAULT NULL::text,
  p_pipeline            text   DEFAULT 'default'::text
)
  RETURNS TABLE (
    outcome text
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
  v_completion filemark.completion := (
    p_file_url, p_claim_token, p_records_total, p_records_filtered, p_records_persisted,
    p_processing_time_ms, nullif(p_accumulated_results, 'null'), p_etag);
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_completion(v_completion, p_pipeline, 'p_');
  select c.outcome into outcome from filemark.complete_files(p_pipeline, array[v_completion]) c;
  if outcome = 'claim_lost' then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;
  return next;
end
$function$;

CREATE OR REPLACE FUNCTION public.pipeline_stats (
  p_pipeline text DEFAULT NULL::text
)
  RETURNS TABLE (
    pipeline                   text,
    pending                    bigint,
    processing                 bigint,
    completed                  bigint,
    failed                     bigint,
    dead_letter                bigint,
    skipped                    bigint,
    total                      bigint,
    oldest_pending_age_seconds double precision,
    records_total              bigint,
    records_filtered           bigint,
    records_persisted          bigint,
    records_rejected           bigint,
    failure_ratio              double precision,
    last_completed_at          timestamp with time zone
  )
  LANGUAGE plpgsql
  STABLE
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
begin
  return query
  select p.pipeline::text, s.pending, s.processing, s.completed, s.failed, s.dead_letter, s.skipped, s.total,
         extract(epoch from v_now - s.oldest_pending)::double precision, s.records_total, s.records_filtered,
         s.records_persisted, s.records_rejected,
         (s.failed + s.dead_letter)::double precision / nullif(s.completed + s.failed + s.dead_letter, 0),
         s.last_completed_at
    from filemark.pipelines p
   cross join lateral (
     select count(*) filter (where f.status = 'pending') as pending,
            count(*) filter (where f.status = 'processing') as processing,
            count(*) filter (where f.status = 'completed') as completed,
            count(*) filter (where f.status = 'failed') as failed,
            count(*) filter (where f.status = 'dead_letter') as dead_letter,
            count(*) filter (where f.status = 'skipped') as skipped,
            count(*) as total,
            min(f.available_at) filter (where f.status = 'pending' and f.available_at <= v_now) as oldest_pending,
            least(coalesce(sum(f.records_total), 0), 9223372036854775807)::bigint as records_total,
            least(coalesce(sum(f.records_filtered), 0), 9223372036854775807)::bigint as records_filtered,
            least(coalesce(sum(f.records_persisted), 0), 9223372036854775807)::bigint as records_persisted,
            least(coalesce(sum(f.records_rejected), 0), 9223372036854775807)::bigint as records_rejected,
            max(f.completed_at) as last_completed_at
       from filemark.file_checkpoints f
      where f.pipeline = p.pipeline
   ) s
   where p_pipeline is null or p.pipeline = p_pipeline
   order by p.pipeline;
end
$function$;

CREATE OR REPLACE FUNCTION public.register_files (
  p_files    jsonb,
  p_pipeline text  DEFAULT 'default'::text
)
  RETURNS TABLE (
    registered      bigint,
    new_generations bigint,
    unchanged       bigint
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
  v_on_overwrite text;
  v_known filemark.file_checkpoints;
  v_content jsonb;
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  perform filemark.check_files(p_files);
  perform filemark.ensure_pipeline(p_pipeline);

  insert into filemark.file_checkpoints (
    pipeline, file_url, file_type, file_timestamp, etag, size_bytes, priority, available_at, metadata, created_at)
  select p_pipeline, e.file_url, e.file_type, e.file_timestamp, e.etag, e.size_bytes::bigint, coalesce(e.priority::int, 0),
         coalesce(e.available_at, v_now), coalesce(nullif(e.metadata, 'null'), '{}'), v_now
    from (
      select distinct on (r.file_url collate "C") r.*
        from rows from (
          jsonb_to_recordset(p_files) as (
            file_url text, file_type text, file_timestamp timestamptz, etag text, size_bytes numeric,
            priority numeric, available_at timestamptz, metadata jsonb)
        ) with ordinality as r (
            file_url, file_type, file_timestamp, etag, size_bytes, priority, available_at, metadata, position)
       order by r.file_url collate "C", r.position desc
    ) e
      on conflict (pipeline, file_url) do nothing;
  get diagnostics registered = row_count;
  new_generations := 0;

  -- Those that were known, and came with an etag that is not the one they have.
  if registered < jsonb_array_length(p_files) then
    select p.on_overwrite into v_on_overwrite from filemark.pipelines p where p.pipeline = p_pipeline;
    for v_content in
      select latest.entry
        from (
          select distinct on ((e.entry ->> 'file_url') collate "C") e.entry
            from jsonb_array_elements(p_files) with ordinality e (entry, position)
           order by (e.entry ->> 'file_url') collate "C", e.position desc
        ) latest
       cross join lateral (
         -- The offset keeps this a look-up per entry, however small the table was when this was planned.
         select coalesce(c.superseded_by ->> 'etag', c.etag) as etag from filemark.file_checkpoints c
          where c.pipeline = p_pipeline and c.file_url = latest.entry ->> 'file_url' offset 0
       ) f
       where latest.entry ->> 'etag' <> coalesce(f.etag, '')
       order by (latest.entry ->> 'file_url') collate "C"
    loop
      select f.* into v_known
        from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = v_content ->> 'file_url'
         for no key update;
      if filemark.note_content(v_known, v_content, v_on_overwrite, v_now) then
        new_generations := new_generations + 1;
      end if;
    end loop;
  end if;

  unchanged := jsonb_array_length(p_files) - registered - new_generations;
  return next;
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
    raise exception 'file "%" is being processed by %',
      filemark.on_one_line(p_file_url), filemark.on_one_line(v_file.processed_by)
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
    raise exception 'file "%" is being processed by %',
      filemark.on_one_line(p_file_url), filemark.on_one_line(v_file.processed_by)
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

COMMENT ON FUNCTION "filemark"."on_one_line"(text, integer) IS 'Internal: what persist_records, which runs as its caller, is made of.';

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

REVOKE ALL ON FUNCTION "filemark"."claim_next"(text, text, integer, text, uuid, boolean) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."held_by_request"(text, uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."lock_known_file"(text, text, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."on_one_line"(text, integer) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."on_one_line"(text, integer) TO "filemark_operator", "filemark_worker";

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
           filemark.on_one_line(text, int),
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
