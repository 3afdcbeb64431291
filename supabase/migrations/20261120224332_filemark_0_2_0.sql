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
       'filemark_metrics',
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

DROP INDEX "filemark"."file_checkpoints_queue";

ALTER TABLE "filemark"."file_checkpoints"
  DROP CONSTRAINT "a_checkpoint_has_a_cursor";

DROP FUNCTION "filemark"."claim_next"(text, text, integer, text, uuid);

DROP FUNCTION "filemark"."rewind_file"(filemark.file_checkpoints, filemark.checkpoint_history, timestamp WITH time zone);

DROP FUNCTION "public"."get_file_checkpoint"(text, text);

DROP FUNCTION "public"."list_file_checkpoints"(text, integer, text, text);

CREATE TABLE "filemark"."activity" (
  "pipeline"          text                     COLLATE pg_catalog."C" NOT NULL,
  "hour"              timestamp with time zone NOT NULL,
  "what"              text                     NOT NULL,
  "files"             bigint                   NOT NULL,
  "records_total"     numeric                  NOT NULL,
  "records_filtered"  numeric                  NOT NULL,
  "records_persisted" numeric                  NOT NULL,
  "records_rejected"  numeric                  NOT NULL,
  "last_at"           timestamp with time zone NOT NULL,
  CONSTRAINT "activity_pkey" PRIMARY KEY (pipeline, hour, what)
);

ALTER TABLE "filemark"."activity"
  ENABLE ROW LEVEL SECURITY;

CREATE TABLE "filemark"."alert_log" (
  "pipeline"    text                     COLLATE pg_catalog."C" NOT NULL,
  "alert_id"    bigint                   GENERATED ALWAYS AS IDENTITY NOT NULL,
  "alert"       text                     NOT NULL,
  "file_url"    text                     COLLATE pg_catalog."C",
  "severity"    text                     NOT NULL,
  "value"       double precision,
  "threshold"   double precision,
  "message"     text                     NOT NULL,
  "hint"        text                     NOT NULL,
  "opened_at"   timestamp with time zone NOT NULL,
  "last_seen"   timestamp with time zone NOT NULL,
  "resolved_at" timestamp with time zone,
  CONSTRAINT "alert_log_pkey" PRIMARY KEY (pipeline, alert_id)
);

ALTER TABLE "filemark"."alert_log"
  ENABLE ROW LEVEL SECURITY;

CREATE TABLE "filemark"."alert_webhooks" (
  "pipeline" text  COLLATE pg_catalog."C" NOT NULL,
  "url"      text  NOT NULL,
  "headers"  jsonb NOT NULL,
  CONSTRAINT "alert_webhooks_pkey" PRIMARY KEY (pipeline)
);

ALTER TABLE "filemark"."alert_webhooks"
  ENABLE ROW LEVEL SECURITY;

CREATE TABLE "filemark"."dead_letter_entries" (
  "pipeline"      text                     COLLATE pg_catalog."C" NOT NULL,
  "entry_id"      bigint                   GENERATED ALWAYS AS IDENTITY NOT NULL,
  "file_url"      text                     COLLATE pg_catalog."C" NOT NULL,
  "reason"        text                     NOT NULL,
  "opened_at"     timestamp with time zone NOT NULL,
  "attempts"      integer                  NOT NULL,
  "error_message" text,
  "errors"        jsonb                    NOT NULL,
  "file"          jsonb                    NOT NULL,
  "resolution"    text                     NOT NULL DEFAULT 'pending'::text,
  "notes"         text,
  "resolved_by"   text,
  "resolved_at"   timestamp with time zone,
  CONSTRAINT "a_resolved_entry_says_when_and_by_whom"
    CHECK ((((resolution = 'pending'::text) = (resolved_at IS NULL)) AND ((resolution = 'pending'::text) = (resolved_by IS NULL)))),
  CONSTRAINT "dead_letter_entries_pkey" PRIMARY KEY (pipeline, entry_id),
  CONSTRAINT "reason_is_known" CHECK ((reason = ANY (ARRAY['max_attempts_exceeded'::text, 'not_retryable'::text, 'lease_expired'::text, 'manual'::text]))),
  CONSTRAINT "resolution_is_known" CHECK ((resolution = ANY (ARRAY['pending'::text, 'requeued'::text, 'skipped'::text, 'manually_resolved'::text, 'permanently_failed'::text])))
);

ALTER TABLE "filemark"."dead_letter_entries"
  ENABLE ROW LEVEL SECURITY;

CREATE TABLE "filemark"."long_histories" (
  "pipeline"  text                     COLLATE pg_catalog."C" NOT NULL,
  "file_url"  text                     COLLATE pg_catalog."C" NOT NULL,
  "listed_at" timestamp with time zone NOT NULL DEFAULT clock_timestamp(),
  CONSTRAINT "long_histories_pkey" PRIMARY KEY (pipeline, file_url)
);

ALTER TABLE "filemark"."long_histories"
  ENABLE ROW LEVEL SECURITY;

CREATE TABLE "filemark"."maintenance_runs" (
  "pipeline"    text                     COLLATE pg_catalog."C" NOT NULL,
  "run_id"      bigint                   GENERATED ALWAYS AS IDENTITY NOT NULL,
  "started_at"  timestamp with time zone NOT NULL,
  "finished_at" timestamp with time zone NOT NULL,
  "affected"    jsonb                    NOT NULL,
  CONSTRAINT "maintenance_runs_pkey" PRIMARY KEY (pipeline, run_id)
);

ALTER TABLE "filemark"."maintenance_runs"
  ENABLE ROW LEVEL SECURITY;

CREATE TABLE "filemark"."purged_files" (
  "pipeline"       text                     COLLATE pg_catalog."C" NOT NULL,
  "file_hash"      bytea                    NOT NULL,
  "etag_hash"      bytea,
  "generation"     bigint                   NOT NULL,
  "claim_token"    bigint                   NOT NULL,
  "file_timestamp" timestamp with time zone NOT NULL,
  "file_type"      text                     NOT NULL,
  CONSTRAINT "purged_files_pkey" PRIMARY KEY (pipeline, file_hash)
);

ALTER TABLE "filemark"."purged_files"
  ENABLE ROW LEVEL SECURITY;

CREATE TABLE "filemark"."tallies" (
  "pipeline"          text                     COLLATE pg_catalog."C" NOT NULL,
  "tally_id"          bigint                   GENERATED ALWAYS AS IDENTITY NOT NULL,
  "occurred_at"       timestamp with time zone NOT NULL,
  "what"              text                     NOT NULL,
  "files"             bigint                   NOT NULL,
  "records_total"     bigint                   NOT NULL DEFAULT 0,
  "records_filtered"  bigint                   NOT NULL DEFAULT 0,
  "records_persisted" bigint                   NOT NULL DEFAULT 0,
  "records_rejected"  bigint                   NOT NULL DEFAULT 0,
  CONSTRAINT "tallies_pkey" PRIMARY KEY (pipeline, tally_id),
  CONSTRAINT "tally_is_known"
    CHECK
    ((what = ANY (ARRAY['registered'::text, 'overwritten'::text, 'completed'::text, 'superseded'::text, 'failed'::text, 'released'::text, 'lost'::text, 'taken'::text,
    'reopened'::text, 'purged'::text])))
);

ALTER TABLE "filemark"."tallies"
  ENABLE ROW LEVEL SECURITY;

ALTER TABLE "filemark"."file_checkpoints"
  ADD COLUMN "kept_since" timestamp WITH time zone;

ALTER TABLE "filemark"."file_checkpoints"
  ADD COLUMN "results_bytes" bigint NOT NULL DEFAULT 0;

CREATE DOMAIN "filemark"."text/plain" AS text;

CREATE OR REPLACE FUNCTION filemark.actor_of (
  p_actor text
)
  RETURNS text
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return coalesce(nullif(p_actor, ''), nullif(current_setting('role', true), 'none'), session_user);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.add_claimed_file (
  p_settings filemark.pipelines,
  p_slots    integer,
  p_content  jsonb,
  p_now      timestamp with time zone
)
  RETURNS text
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_url text := p_content ->> 'file_url';
begin
  if filemark.note_purged(p_settings.pipeline, jsonb_build_array(p_content), p_now) = '[]' then
    return 'completed';
  elsif exists (select from filemark.file_checkpoints f
                 where f.pipeline = p_settings.pipeline and f.file_url = v_url) then
    -- It has come back, with its new content to note.
    return null;
  elsif p_settings.paused then
    return 'paused';
  elsif p_slots <= 0 then
    return 'busy';
  end if;
  insert into filemark.file_checkpoints (pipeline, file_url, file_type, file_timestamp, etag, available_at)
  values (p_settings.pipeline, v_url, p_content ->> 'file_type', (p_content ->> 'file_timestamp')::timestamptz,
          p_content ->> 'etag', p_now)
      on conflict do nothing;
  if found and filemark.stays_purged(p_settings.pipeline, v_url, null) then
    -- The insert waited for a purge.
    delete from filemark.file_checkpoints f where f.pipeline = p_settings.pipeline and f.file_url = v_url;
  elsif found then
    perform filemark.tally(p_settings.pipeline, 'registered');
  end if;
  return null;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.add_files (
  p_pipeline text,
  p_files    jsonb,
  p_now      timestamp with time zone
)
  RETURNS bigint
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_added text[];
  v_purged text[];
begin
  with added as (
    insert into filemark.file_checkpoints as f (
      pipeline, file_url, file_type, file_timestamp, etag, size_bytes, priority, available_at, metadata, created_at)
    select p_pipeline, e.file_url, e.file_type, e.file_timestamp, e.etag, e.size_bytes::bigint,
           coalesce(e.priority::int, 0), coalesce(e.available_at, p_now), coalesce(nullif(e.metadata, 'null'), '{}'),
           p_now
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
        on conflict (pipeline, file_url) do nothing
    returning f.file_url
  )
  select coalesce(array_agg(a.file_url::text), '{}') into v_added from added a;

  if v_added <> '{}' and exists (select from filemark.purged_files g where g.pipeline = p_pipeline) then
    -- The insert may have waited for a purge that note_purged came too early to see.
    v_purged := array(
      select u.url from unnest(v_added) u (url)
        join filemark.purged_files g on g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(u.url));
  end if;
  if v_purged <> '{}' then
    delete from filemark.file_checkpoints f where f.pipeline = p_pipeline and f.file_url = any (v_purged);
    return cardinality(v_added) - cardinality(v_purged) + filemark.add_files(
      p_pipeline,
      filemark.note_purged(
        p_pipeline,
        (select jsonb_agg(e.entry) from jsonb_array_elements(p_files) e (entry)
          where e.entry ->> 'file_url' = any (v_purged)),
        p_now),
      p_now);
  end if;
  return cardinality(v_added);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.add_up_tallies (
  p_pipeline text,
  p_limit    integer
)
  RETURNS bigint
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_added bigint;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('filemark tallies ' || p_pipeline, 0)) then
    -- Another run is at it. Two would wait for each other at the rows of the same hours.
    return 0;
  end if;
  with tallied as (
    delete from filemark.tallies t
     where t.pipeline = p_pipeline
       and t.tally_id = any (array(
         select o.tally_id from filemark.tallies o
          where o.pipeline = p_pipeline
          order by o.tally_id
          limit p_limit
            for update skip locked))
    returning t.*
  ), added as (
    insert into filemark.activity as a (
      pipeline, hour, what, files, records_total, records_filtered, records_persisted, records_rejected, last_at)
    select p_pipeline, h.hour, t.what, sum(t.files), sum(t.records_total), sum(t.records_filtered),
           sum(t.records_persisted), sum(t.records_rejected), max(t.occurred_at)
      from tallied t
     cross join lateral (values ('epoch'::timestamptz), (date_trunc('hour', t.occurred_at, 'UTC'))) h (hour)
     group by h.hour, t.what
     order by h.hour, t.what
        on conflict (pipeline, hour, what) do update
       set files = a.files + excluded.files,
           records_total = a.records_total + excluded.records_total,
           records_filtered = a.records_filtered + excluded.records_filtered,
           records_persisted = a.records_persisted + excluded.records_persisted,
           records_rejected = a.records_rejected + excluded.records_rejected,
           last_at = greatest(a.last_at, excluded.last_at)
  )
  select count(*) into v_added from tallied;

  delete from filemark.activity a
   where a.pipeline = p_pipeline and a.hour < clock_timestamp() - interval '90 days' and a.hour > 'epoch';
  return v_added;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.alert_count()
  RETURNS bigint
  LANGUAGE plpgsql
  STABLE
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
begin
  return (select count(*) from filemark.current_alerts());
end
$function$;

CREATE OR REPLACE FUNCTION filemark.alert_limits()
  RETURNS TABLE (
    infrequent_after_seconds    integer,
    failure_minimum             integer,
    reclaim_within_seconds      integer,
    maintenance_overdue_seconds integer,
    held_snapshot_seconds       integer,
    held_dead_rows              bigint
  )
  LANGUAGE plpgsql
  IMMUTABLE
  ROWS 1
  SET search_path TO ''
  AS $function$
begin
  return query select 300, 10, 120, 3600, 900, 10000::bigint;
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

CREATE OR REPLACE FUNCTION filemark.assert_claim (
  p_file_url    text,
  p_claim_token bigint,
  p_pipeline    text   DEFAULT 'default'::text
)
  RETURNS void
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
begin
  perform from filemark.file_checkpoints f
    where f.pipeline = p_pipeline and f.file_url = p_file_url
      and f.claim_token = p_claim_token and f.status = 'processing'
      for no key update;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;
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
  SET jit TO 'off'
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

CREATE OR REPLACE FUNCTION filemark.bury_file (
  p_file        filemark.file_checkpoints,
  p_reason      text,
  p_message     text,
  p_error       jsonb,
  p_claim_ended text,
  p_actor       text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_buried filemark.file_checkpoints;
begin
  update filemark.file_checkpoints f
     set status = 'dead_letter',
         claim_ended = p_claim_ended,
         lease_expires_at = null,
         lease_check_at = null,
         error_message = p_message,
         error = p_error
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url
  returning f.* into v_buried;

  perform filemark.open_dead_letter(v_buried, p_reason, clock_timestamp());

  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'dead_lettered', p_actor, p_reason,
    jsonb_build_object('attempts', p_file.attempts, 'error_message', p_message));
end
$function$;

CREATE OR REPLACE FUNCTION filemark.bury_lost_file (
  p_file  filemark.file_checkpoints,
  p_actor text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  perform filemark.record_lost_lease(p_file, p_actor);
  perform filemark.bury_file(
    p_file, 'lease_expired',
    format('attempt %s ended with its lease, without progress; the holder was %s', p_file.attempts, p_file.processed_by),
    null, 'lost', p_actor);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.check_alerts (
  p_resolve_after_seconds integer DEFAULT 300
)
  RETURNS TABLE (
    event     text,
    alert_id  bigint,
    alert     text,
    severity  text,
    pipeline  text,
    file_url  text,
    value     double precision,
    threshold double precision,
    message   text,
    hint      text
  )
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz;
  v_changes jsonb := jsonb_build_array();
  v_change record;
begin
  perform filemark.check_number('p_resolve_after_seconds', p_resolve_after_seconds, 0, 86400),
          pg_advisory_xact_lock(hashtextextended('filemark check_alerts', 0));
  v_now := clock_timestamp();

  for v_change in
    with seen as materialized (
      select * from filemark.current_alerts()
    ), again as (
      update filemark.alert_log l
         set severity = s.severity, value = s.value, threshold = s.threshold, message = s.message, hint = s.hint,
             last_seen = v_now
        from seen s
       where l.pipeline = s.pipeline and l.alert = s.alert and l.file_url is not distinct from s.file_url
         and l.resolved_at is null
      returning l.pipeline, l.alert, l.file_url
    ), opened as (
      insert into filemark.alert_log (
        pipeline, alert, file_url, severity, value, threshold, message, hint, opened_at, last_seen)
      select s.pipeline, s.alert, s.file_url, s.severity, s.value, s.threshold, s.message, s.hint, v_now, v_now
        from seen s
       where not exists (select from again a
                          where a.pipeline = s.pipeline and a.alert = s.alert
                            and a.file_url is not distinct from s.file_url)
      returning alert_log.*
    ), resolved as (
      update filemark.alert_log l
         set resolved_at = v_now
       where l.resolved_at is null and l.last_seen <= v_now - make_interval(secs => p_resolve_after_seconds)
         and not exists (select from seen s
                          where s.pipeline = l.pipeline and s.alert = l.alert
                            and s.file_url is not distinct from l.file_url)
      returning l.*
    )
    select c.*
      from (select 'opened' as event, o.* from opened o union all select 'resolved', r.* from resolved r) c
     order by c.event, c.pipeline, c.alert, c.file_url
  loop
    event := v_change.event;
    alert_id := v_change.alert_id;
    alert := v_change.alert;
    severity := v_change.severity;
    pipeline := v_change.pipeline;
    file_url := v_change.file_url;
    value := v_change.value;
    threshold := v_change.threshold;
    message := v_change.message;
    hint := v_change.hint;
    v_changes := v_changes || jsonb_build_object(
      'event', event, 'alert_id', alert_id, 'alert', alert, 'severity', severity, 'pipeline', pipeline,
      'file_url', file_url, 'value', value, 'threshold', threshold, 'message', message, 'hint', hint);
    return next;
  end loop;

  if v_changes <> '[]' then
    perform filemark.notify_alert(c.change) from jsonb_array_elements(v_changes) c (change);
    perform filemark.post_alerts(v_changes);
  end if;
  delete from filemark.alert_log l where l.resolved_at < v_now - interval '90 days';
end
$function$;

CREATE OR REPLACE FUNCTION filemark.check_pipeline (
  p_pipeline text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  if not exists (select from filemark.pipelines p where p.pipeline = p_pipeline) then
    raise exception 'pipeline "%" is unknown', filemark.on_one_line(p_pipeline) using errcode = 'PT404';
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.check_task (
  p_limit    integer,
  p_dry_run  boolean,
  p_pipeline text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  perform filemark.check_number('p_limit', p_limit, 1, 1000000);
  if p_dry_run is null then
    perform filemark.refuse_argument('p_dry_run', null, 'true or false');
  elsif p_pipeline is not null then
    perform filemark.check_pipeline(p_pipeline);
  end if;
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

  loop
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = p_file_url
       for no key update;
    exit when found;
    v_refusal := filemark.add_claimed_file(v_settings, v_slots, p_content, v_now);
    if v_refusal is not null then
      return v_refusal;
    end if;
  end loop;
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
    -- A file taken over has its slot already, so only the due ones were bound by v_room.
    v_urls := filemark.first_in_queue(p_pipeline, v_lost || v_urls, p_limit);
    perform filemark.end_lost_claims(p_pipeline, v_urls, v_now, p_worker_id);
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

CREATE OR REPLACE FUNCTION filemark.clear_completed_checkpoints (
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
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_until timestamptz;
begin
  perform filemark.check_task(p_limit, p_dry_run, p_pipeline);
  for v_settings in
    select p.* from filemark.pipelines p where p_pipeline is null or p.pipeline = p_pipeline order by p.pipeline
  loop
    v_until := v_now - make_interval(days => v_settings.keep_checkpoints_days);
    if p_dry_run then
      return query
      select f.pipeline::text, f.file_url::text, 'would_clear'
        from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline and f.kept_since <= v_until
       order by f.kept_since
       limit p_limit;
      continue;
    end if;

    action := 'cleared';
    for pipeline, file_url in
      select f.pipeline, f.file_url from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline and f.kept_since <= v_until
       order by f.kept_since
       limit p_limit
         for no key update skip locked
    loop
      delete from filemark.checkpoint_history h
       where h.pipeline = v_settings.pipeline and h.file_url = clear_completed_checkpoints.file_url;
      delete from filemark.long_histories l
       where l.pipeline = v_settings.pipeline and l.file_url = clear_completed_checkpoints.file_url;
      update filemark.file_checkpoints f
         set cursor = null,
             accumulated_results = null,
             results_bytes = 0,
             history_length = 0,
             kept_since = null
       where f.pipeline = v_settings.pipeline and f.file_url = clear_completed_checkpoints.file_url;
      return next;
    end loop;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.close_dead_letter (
  p_pipeline   text,
  p_file_url   text,
  p_resolution text,
  p_notes      text,
  p_actor      text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  update filemark.dead_letter_entries d
     set resolution = p_resolution,
         notes = p_notes,
         resolved_by = filemark.actor_of(p_actor),
         resolved_at = clock_timestamp()
   where d.pipeline = p_pipeline and d.file_url = p_file_url and d.resolution = 'pending';
end
$function$;

CREATE OR REPLACE FUNCTION filemark.complete_changed_file (
  p_pipeline    text,
  p_file_url    text,
  p_claim_token bigint,
  p_etag        text,
  p_now         timestamp with time zone
)
  RETURNS text
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_file filemark.file_checkpoints;
begin
  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url and f.claim_token = p_claim_token
     for no key update;
  if not found then
    return case
      when exists (select from filemark.purged_files g
                    where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url)
                      and g.claim_token = p_claim_token) then 'already_completed'
      else 'claim_lost'
    end;
  elsif v_file.status = 'processing' then
    perform filemark.start_generation(
      p_pipeline, p_file_url, coalesce(v_file.superseded_by, jsonb_build_object('etag', p_etag)), p_now,
      v_file.processed_by, 'superseded');
    perform filemark.tally(p_pipeline, 'superseded');
    return 'superseded';
  else
    return case v_file.claim_ended
      when 'completed' then 'already_completed'
      when 'superseded' then 'superseded'
      else 'claim_lost'
    end;
  end if;
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
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_given filemark.completion;
  v_done record;
  v_files int := 0;
  v_total numeric := 0;
  v_filtered numeric := 0;
  v_persisted numeric := 0;
  v_rejected numeric := 0;
begin
  -- One by one, in key order: each by its key, however small the table was when this was planned (97_plans.sql).
  foreach v_given in array p_completions loop
    update filemark.file_checkpoints f
       set status = 'completed',
           claim_ended = 'completed',
           lease_expires_at = null,
           lease_check_at = null,
           etag = coalesce(f.etag, v_given.etag),
           records_total = v_given.records_total,
           records_filtered = v_given.records_filtered,
           records_persisted = greatest(f.records_persisted, v_given.records_persisted),
           processing_time_ms = coalesce(v_given.processing_time_ms,
                                         greatest(extract(epoch from v_now - f.started_at) * 1000, 0)),
           accumulated_results = coalesce(v_given.accumulated_results, f.accumulated_results),
           results_bytes = coalesce(octet_length(v_given.accumulated_results::text), f.results_bytes),
           error_message = null,
           error = null,
           completed_at = v_now,
           kept_since = case when f.checkpoint_seq > 0 or f.accumulated_results is not null
                               or v_given.accumulated_results is not null then v_now end
     where f.pipeline = p_pipeline
       and f.file_url = v_given.file_url
       and f.claim_token = v_given.claim_token
       and f.status = 'processing'
       and f.superseded_by is null
       and (v_given.etag is null or f.etag is null or v_given.etag = f.etag
            or (select p.on_overwrite = 'ignore' from filemark.pipelines p where p.pipeline = p_pipeline))
    returning f.records_total, f.records_filtered, f.records_persisted, f.records_rejected into v_done;
    file_url := v_given.file_url;
    if found then
      outcome := 'completed';
      v_files := v_files + 1;
      v_total := v_total + v_done.records_total;
      v_filtered := v_filtered + v_done.records_filtered;
      v_persisted := v_persisted + v_done.records_persisted;
      v_rejected := v_rejected + v_done.records_rejected;
    else
      outcome := filemark.complete_changed_file(
        p_pipeline, v_given.file_url, v_given.claim_token, v_given.etag, v_now);
    end if;
    return next;
  end loop;
  if v_files > 0 then
    perform filemark.tally(p_pipeline, 'completed', v_files, v_total, v_filtered, v_persisted, v_rejected);
  end if;
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
    perform filemark.list_long_histories(p_pipeline, v_new.history_limit)
      where v_new.history_limit < v_old.history_limit;
  end if;
  return query select v_new.*;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.cron_hint()
  RETURNS text
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_calls constant text := 'select from filemark.run_maintenance(); select from filemark.check_alerts();';
  v_here constant text := current_database();
  v_home text;
begin
  begin
    v_home := current_setting('cron.database_name', true);
  exception
    when insufficient_privilege then
      -- It is loaded; where it works is a secret of superusers.
      null;
  end;
  return case
    when v_home <> v_here then
      format('pg_cron works in database %I. Run there: select cron.schedule_in_database(%L, ''* * * * *'', %L, %L);',
             v_home, 'filemark@' || v_here, v_calls, v_here)
    when exists (select from pg_catalog.pg_available_extensions e where e.name = 'pg_cron') then
      'Run: create extension pg_cron; (on Supabase: Integrations, Cron) and then: '
      'select * from filemark.schedule_maintenance(); or have any scheduler run every minute: ' || v_calls
    else
      'Have any scheduler run every minute: ' || v_calls
  end;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.current_alerts()
  RETURNS TABLE (
    alert     text,
    severity  text,
    pipeline  text,
    file_url  text,
    value     double precision,
    threshold double precision,
    since     timestamp with time zone,
    message   text,
    hint      text
  )
  LANGUAGE plpgsql
  STABLE
  SECURITY DEFINER
  SET search_path TO ''
  SET jit TO 'off'
  SET enable_seqscan TO 'off'
  AS $function$
begin
  return query
  select f.alert, 'warning', f.pipeline, f.file_url, f.value, f.threshold, f.since, f.message, f.hint
    from (select a.*, row_number() over (partition by a.alert, a.pipeline order by a.file_url collate "C") as place
            from filemark.file_alerts() a) f
   where f.place <= 20
  union all
  select p.alert, p.severity, p.pipeline, null, p.value, p.threshold, p.since, p.message, p.hint
    from filemark.pipeline_alerts() p
  union all
  select s.alert, s.severity, s.pipeline, null, s.value, s.threshold, s.since, s.message, s.hint
    from filemark.surrounding_alerts() s;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.dead_letter_file (
  p_file_url text,
  p_reason   text DEFAULT NULL::text,
  p_actor    text DEFAULT NULL::text,
  p_pipeline text DEFAULT 'default'::text
)
  RETURNS void
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_file filemark.file_checkpoints;
begin
  v_file := filemark.lock_known_file(p_file_url, p_reason, p_actor, p_pipeline);
  if v_file.status = 'dead_letter' then
    return;
  elsif v_file.status not in ('pending', 'failed') then
    raise exception 'file "%" is %', filemark.on_one_line(p_file_url), v_file.status
      using errcode = 'PT422',
            detail = 'Only a pending or failed file can be made a dead letter by hand.';
  end if;
  perform filemark.bury_file(
    v_file, 'manual', coalesce(nullif(p_reason, ''), v_file.error_message), v_file.error, v_file.claim_ended, p_actor);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.end_lost_claims (
  p_pipeline  text,
  p_file_urls text[],
  p_now       timestamp with time zone,
  p_actor     text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_url text;
  v_file filemark.file_checkpoints;
begin
  foreach v_url in array p_file_urls loop
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = v_url;
    if v_file.status = 'processing' then
      perform filemark.end_lost_claim(v_file, p_now, p_actor);
    end if;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.errors_of_attempts (
  p_pipeline text,
  p_file_url text,
  p_attempts integer
)
  RETURNS jsonb
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return (
    select coalesce(jsonb_agg(ended.attempt order by ended.event_id), '[]')
      from (
        select e.event_id,
               jsonb_build_object('event', e.event, 'occurred_at', e.occurred_at) || (e.detail - 'items_processed')
               || jsonb_build_object('processed_by', coalesce(e.detail ->> 'processed_by', e.actor)) as attempt
          from filemark.file_events e
         where e.pipeline = p_pipeline and e.file_url = p_file_url and e.event in ('failed', 'lease_expired')
         order by e.event_id desc
         limit least(p_attempts, 100)
      ) ended);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.estimate_storage (
  p_active_files     bigint,
  p_history_entries  bigint,
  p_results_bytes    bigint,
  p_checkpoint_bytes bigint DEFAULT 5120
)
  RETURNS bigint
  LANGUAGE plpgsql
  IMMUTABLE
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_max constant bigint := 1000000000000;
begin
  perform filemark.check_number('p_active_files', p_active_files, 0, v_max),
          filemark.check_number('p_history_entries', p_history_entries, 0, v_max),
          filemark.check_number('p_results_bytes', p_results_bytes, 0, v_max),
          filemark.check_number('p_checkpoint_bytes', p_checkpoint_bytes, 0, v_max);
  return least(
    p_active_files::numeric * (p_checkpoint_bytes + p_history_entries::numeric * 100 + p_results_bytes),
    9223372036854775807);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.file_alerts()
  RETURNS TABLE (
    alert     text,
    pipeline  text,
    file_url  text,
    value     double precision,
    threshold double precision,
    since     timestamp with time zone,
    message   text,
    hint      text
  )
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return query
  select 'stale_checkpoint', s.pipeline, s.file_url, s.checkpoint_age_seconds,
         s.stale_after_seconds::double precision,
         s.since + make_interval(secs => s.stale_after_seconds),
         format('pipeline "%s", file "%s": nothing was saved for %s seconds; %s has it, attempt %s of %s',
                s.pipeline, s.file_url, round(s.checkpoint_age_seconds), s.holder, s.attempts, s.max_attempts),
         format('How it stands: select * from filemark.files where pipeline = %1$L and file_url = %2$L; When its '
                'worker hangs, take the file from it: select * from public.requeue_file(%2$L, p_force => true, '
                'p_reason => ''its worker hangs'', p_pipeline => %1$L);', s.pipeline, s.file_url)
    from filemark.stale_checkpoints s
  union all
  select 'large_history', w.pipeline, w.file_url, w.history_length, w.max_history,
         -- When the first checkpoint too many was saved: their numbers have no gaps.
         (select h.saved_at from filemark.checkpoint_history h
           where h.pipeline = w.pipeline and h.file_url = w.file_url
             and h.checkpoint_seq = w.checkpoint_seq - w.history_length + w.max_history + 1),
         format('pipeline "%s", file "%s": %s checkpoints in its history, more than %s; maintenance keeps %s',
                w.pipeline, w.file_url, w.history_length, w.max_history, w.history_limit),
         format('select * from filemark.truncate_checkpoint_history(p_pipeline => %1$L); If it comes back, save less '
                'often, or expect more: select * from filemark.configure_pipeline(%1$L, ''{"max_history": %2$s}'');',
                w.pipeline, 2 * w.max_history)
    from filemark.watched_histories w
   where w.history_length > w.max_history
  union all
  select 'large_results', f.pipeline, f.file_url, f.results_bytes, p.max_results_bytes, f.checkpointed_at,
         format('pipeline "%s", file "%s": its accumulated_results have %s, more than %s', f.pipeline, f.file_url,
                pg_size_pretty(f.results_bytes), pg_size_pretty(p.max_results_bytes)),
         format('Write results to a table with persist_records instead of accumulating them, or expect more: '
                'select * from filemark.configure_pipeline(%L, ''{"max_results_bytes": %s}'');',
                f.pipeline, least(2 * p.max_results_bytes, 268435456))
    from filemark.pipelines p
   cross join lateral (
     select c.* from filemark.file_checkpoints c
      where c.pipeline = p.pipeline and c.lease_check_at is not null offset 0
   ) f
   where f.results_bytes > p.max_results_bytes
  union all
  select 'infrequent_checkpoints', i.pipeline, i.file_url, i.checkpoints_per_minute, i.min_checkpoints_per_minute,
         i.started_at + make_interval(secs => c.infrequent_after_seconds),
         format('pipeline "%s", file "%s": %s saves %s times a minute, less than %s', i.pipeline, i.file_url,
                i.holder, round(i.checkpoints_per_minute::numeric, 2), i.min_checkpoints_per_minute),
         format('Have the worker call checkpoint_file more often, or expect less: select * from '
                'filemark.configure_pipeline(%L, ''{"min_checkpoints_per_minute": %s}'');',
                i.pipeline, i.min_checkpoints_per_minute / 2)
    from filemark.infrequent_checkpoints i
   cross join filemark.alert_limits() c;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.first_in_queue (
  p_pipeline  text,
  p_file_urls text[],
  p_limit     integer
)
  RETURNS text[]
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return array(
    select f.file_url
      from unnest(p_file_urls) given (url)
     cross join lateral (
       select c.file_url::text, c.priority, c.available_at
         from filemark.file_checkpoints c
        where c.pipeline = p_pipeline and c.file_url = given.url offset 0
     ) f
     order by f.priority desc, f.available_at, f.file_url
     limit p_limit);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.forget_cron_runs()
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  -- Of a run that failed to begin, no time is known: it is as old as its number says.
  execute format(
    'with ours as (
       select d.runid, d.status, d.end_time
         from %1$s d
         join filemark.maintenance_jobs() m on m.command = d.command
        where d.username = current_user and d.database = current_database()
     )
     delete from %1$s d
      where d.runid = any (array(
        select o.runid from ours o
         where (o.status = ''succeeded'' and o.end_time < now() - interval ''1 day'')
            or o.runid <= (select max(w.runid) from ours w where w.end_time < now() - interval ''7 days'')
         order by o.runid
         limit 10000))', 'cron.job_run_details');
end
$function$;

CREATE OR REPLACE FUNCTION filemark.has_cron()
  RETURNS boolean
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return exists (
    select from pg_catalog.pg_proc p
     where p.pronamespace = to_regnamespace('cron') and p.proname = 'schedule' and p.pronargs = 3);
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
    select f.file_url
      from unnest(v_urls) with ordinality u (url, position)
     cross join lateral (
       -- The offset keeps this a look-up per file, however small the table was when this was planned.
       select c.file_url::text, c.status, c.request_id
         from filemark.file_checkpoints c
        where c.pipeline = p_pipeline and c.file_url = u.url offset 0
     ) f
     where f.status = 'processing' and f.request_id = p_request_id
     order by u.position);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.held_snapshots()
  RETURNS TABLE (
    kind         text,
    name         text,
    held_by      text,
    since        timestamp with time zone,
    transactions bigint
  )
  LANGUAGE plpgsql
  STABLE
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
begin
  return query
  select h.*
    from (
      select 'session', a.pid::text,
             concat_ws(', ', a.usename, nullif(a.application_name, ''), host(a.client_addr), a.state), a.xact_start,
             greatest(age(a.backend_xmin), age(a.backend_xid))::bigint
        from pg_catalog.pg_stat_activity a
       where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid()
         and (a.datname = current_database() or a.datname is null)
         -- What a vacuum looks at holds nothing back.
         and a.backend_type <> 'autovacuum worker' and a.query !~* '^\s*vacuum'
      union all
      select 'prepared transaction', x.gid, x.owner::text, x.prepared, age(x.transaction)::bigint
        from pg_catalog.pg_prepared_xacts x
       where x.database = current_database()
      union all
      -- Since when a slot is left alone, Postgres says from version 17 on.
      select 'replication slot', s.slot_name::text, case when s.active then 'in use' else 'left alone' end,
             (to_jsonb(s) ->> 'inactive_since')::timestamptz, age(s.xmin)::bigint
        from pg_catalog.pg_replication_slots s
       where s.xmin is not null
    ) h (kind, name, held_by, since, transactions)
   order by h.since, h.transactions desc;
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

CREATE OR REPLACE FUNCTION filemark.list_long_histories (
  p_pipeline text,
  p_limit    bigint
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  insert into filemark.long_histories (pipeline, file_url)
  select h.pipeline, h.file_url
    from filemark.checkpoint_history h
   where h.pipeline = p_pipeline
   group by h.pipeline, h.file_url
  having count(*) > p_limit
      on conflict do nothing;
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
    perform filemark.revive_file(p_pipeline, p_file_url, null, clock_timestamp());
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = p_file_url
       for no key update;
  end if;
  if v_file.file_url is null then
    raise exception 'file "%" is unknown in pipeline "%"',
      filemark.on_one_line(p_file_url), filemark.on_one_line(p_pipeline)
      using errcode = 'PT404';
  end if;
  return v_file;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.maintain (
  p_limit   integer,
  p_seconds double precision
)
  RETURNS TABLE (
    task     text,
    pipeline text,
    affected bigint
  )
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_until timestamptz := clock_timestamp() + make_interval(secs => p_seconds);
  v_started timestamptz;
  v_done jsonb;
begin
  for pipeline in
    select p.pipeline from filemark.pipelines p
     order by (select r.run_id from filemark.maintenance_runs r
                where r.pipeline = p.pipeline order by r.run_id desc limit 1) nulls first,
              p.pipeline
  loop
    v_started := clock_timestamp();
    v_done := '{}';
    -- Last comes what locks the rows of files in progress.
    foreach task in array array[
      'clear_completed_checkpoints', 'purge_files', 'add_up_tallies', 'reclaim_stale_claims',
      'truncate_checkpoint_history'
    ] loop
      affected := case task
        when 'clear_completed_checkpoints' then
          (select count(*) from filemark.clear_completed_checkpoints(p_limit, false, pipeline))
        when 'purge_files' then
          (select count(*) from filemark.purge_files(p_limit, false, pipeline))
        when 'add_up_tallies' then
          filemark.add_up_tallies(pipeline, p_limit * 100)
        when 'reclaim_stale_claims' then
          (select count(*) from filemark.reclaim_stale_claims(p_limit, false, pipeline))
        else
          (select count(*) from filemark.truncate_checkpoint_history(p_limit, false, pipeline))
      end;
      v_done := v_done || jsonb_build_object(task, affected);
      return next;
    end loop;

    insert into filemark.maintenance_runs (pipeline, started_at, finished_at, affected)
    values (maintain.pipeline, v_started, clock_timestamp(), v_done);
    delete from filemark.maintenance_runs r
     where r.pipeline = maintain.pipeline
       and r.finished_at < v_started - interval '1 day'
       and r.run_id = any (array(
         select o.run_id from filemark.maintenance_runs o
          where o.pipeline = maintain.pipeline
          order by o.run_id
          limit 100
            for update skip locked));
    exit when clock_timestamp() > v_until;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.maintenance_jobs()
  RETURNS TABLE (
    job      text,
    schedule text,
    command  text
  )
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  return query values
    ('filemark:maintenance', '30 seconds', 'select from filemark.run_maintenance()'),
    ('filemark:alerts', '* * * * *', 'select from filemark.check_alerts()'),
    ('filemark:cron-log', '17 * * * *', 'select filemark.forget_cron_runs()');
end
$function$;

CREATE OR REPLACE FUNCTION filemark.metric_families()
  RETURNS TABLE (
    metric text,
    type   text,
    help   text
  )
  LANGUAGE plpgsql
  IMMUTABLE
  SET search_path TO ''
  AS $function$
begin
  return query
  select f.*
    from (values
      ('filemark_files', 'gauge', 'Files by status. Purged files count as completed.'),
      ('filemark_oldest_pending_age_seconds', 'gauge', 'How long the oldest pending file that is due has waited.'),
      ('filemark_pipeline_paused', 'gauge', '1 while claims are refused.'),
      ('filemark_checkpoint_age_seconds', 'gauge', 'Longest time since a file in progress was claimed or last saved.'),
      ('filemark_checkpoint_history_size', 'gauge', 'Checkpoints in the longest history.'),
      ('filemark_results_bytes', 'gauge', 'Accumulated results of files in progress.'),
      ('filemark_largest_results_bytes', 'gauge', 'Accumulated results of the file in progress that has most.'),
      ('filemark_expired_claims', 'gauge', 'Claims whose lease is over and that nobody has taken over.'),
      ('filemark_claims_total', 'counter', 'Claims.'),
      ('filemark_completions_total', 'counter', 'Claims that ended with the file completed.'),
      ('filemark_failures_total', 'counter', 'Claims that ended with an error.'),
      ('filemark_lost_leases_total', 'counter', 'Claims that ended with their lease.'),
      ('filemark_releases_total', 'counter', 'Claims that were given back.'),
      ('filemark_registrations_total', 'counter', 'Files that became known.'),
      ('filemark_overwrites_total', 'counter', 'Files that came with new content.'),
      ('filemark_records_total', 'counter', 'Records in completed files.'),
      ('filemark_records_filtered_total', 'counter', 'Records of completed files that were left out on purpose.'),
      ('filemark_records_persisted_total', 'counter', 'Records of completed files that were written.'),
      ('filemark_records_rejected_total', 'counter', 'Records of completed files that were rejected.'),
      ('filemark_dead_letters', 'gauge', 'Dead letters that nobody has resolved, by reason.'),
      ('filemark_alerts', 'gauge', 'Alerts by name and severity; the pipeline is empty for the whole database.'),
      ('filemark_last_maintenance_timestamp_seconds', 'gauge', 'When maintenance was last done.'),
      ('filemark_oldest_snapshot_age_seconds', 'gauge', 'How long dead rows have been kept from being removed.'),
      ('filemark_dead_rows', 'gauge', 'Dead rows of a table, as estimated.'),
      ('filemark_table_bytes', 'gauge', 'Size of a table with its indexes.')
    ) f (metric, type, help);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.metric_label (
  p_name  text,
  p_value text
)
  RETURNS text
  LANGUAGE plpgsql
  IMMUTABLE
  SET search_path TO ''
  AS $function$
begin
  return format('%s="%s"', p_name,
                replace(replace(replace(p_value, '\', '\\'), '"', '\"'), chr(10), '\n'));
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

CREATE OR REPLACE FUNCTION filemark.note_contents (
  p_pipeline text,
  p_files    jsonb,
  p_now      timestamp with time zone
)
  RETURNS bigint
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_on_overwrite text;
  v_content jsonb;
  v_known filemark.file_checkpoints;
  v_count bigint := 0;
begin
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
    for attempt in 1 .. 2 loop
      select f.* into v_known
        from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = v_content ->> 'file_url'
         for no key update;
      exit when found;
      -- It was purged meanwhile.
      perform filemark.note_purged(p_pipeline, jsonb_build_array(v_content), p_now);
    end loop;
    if v_known.file_url is not null and filemark.note_content(v_known, v_content, v_on_overwrite, p_now) then
      v_count := v_count + 1;
    end if;
  end loop;
  return v_count;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.note_purged (
  p_pipeline text,
  p_files    jsonb,
  p_now      timestamp with time zone
)
  RETURNS jsonb
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_on_overwrite text;
begin
  if not exists (select from filemark.purged_files g where g.pipeline = p_pipeline) then
    return p_files;
  end if;
  select p.on_overwrite into v_on_overwrite from filemark.pipelines p where p.pipeline = p_pipeline;

  perform filemark.note_purged_etag(p_pipeline, seen.file_url, seen.etag, v_on_overwrite, p_now)
     from (
       select latest.file_url, latest.etag
         from (
           select distinct on ((e.entry ->> 'file_url') collate "C")
                  e.entry ->> 'file_url' as file_url, e.entry ->> 'etag' as etag
             from jsonb_array_elements(p_files) with ordinality e (entry, position)
            order by (e.entry ->> 'file_url') collate "C", e.position desc
         ) latest
         join filemark.purged_files g on g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(latest.file_url)
        where latest.etag is not null and g.etag_hash is distinct from filemark.short_hash(latest.etag)
        order by latest.file_url collate "C"
     ) seen;

  return (
    select coalesce(jsonb_agg(e.entry order by e.position), '[]')
      from jsonb_array_elements(p_files) with ordinality e (entry, position)
     where not exists (
       select from filemark.purged_files g
        where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(e.entry ->> 'file_url')));
end
$function$;

CREATE OR REPLACE FUNCTION filemark.note_purged_etag (
  p_pipeline     text,
  p_file_url     text,
  p_etag         text,
  p_on_overwrite text,
  p_now          timestamp with time zone
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_purged filemark.purged_files;
begin
  select g.* into v_purged
    from filemark.purged_files g
   where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url)
     for update;
  if v_purged.etag_hash is null then
    update filemark.purged_files g
       set etag_hash = filemark.short_hash(p_etag)
     where g.pipeline = v_purged.pipeline and g.file_hash = v_purged.file_hash;
  elsif v_purged.etag_hash <> filemark.short_hash(p_etag) and p_on_overwrite = 'reprocess' then
    -- No etag is empty: whatever comes is another.
    perform filemark.revive_file(p_pipeline, p_file_url, '', p_now);
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.notify_alert (
  p_change jsonb
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_payload jsonb := p_change;
  v_key text;
begin
  foreach v_key in array array['hint', 'message', 'file_url'] loop
    exit when octet_length(v_payload::text) < 8000;
    v_payload := v_payload - v_key;
  end loop;
  perform pg_notify('filemark_alerts', v_payload::text);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.oldest_available_at (
  p_pipeline text
)
  RETURNS timestamp WITH time zone
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
declare
  v_first record;
  v_oldest timestamptz;
  -- Above every priority.
  v_priority bigint := 2147483648;
begin
  for v_round in 1 .. 100 loop
    select f.priority, f.available_at into v_first
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.status in ('pending', 'failed') and f.priority < v_priority
     order by f.priority desc, f.available_at
     limit 1;
    if not found then
      return v_oldest;
    end if;
    v_priority := v_first.priority;
    v_oldest := least(v_oldest, v_first.available_at);
  end loop;
  return (select min(f.available_at) from filemark.file_checkpoints f
           where f.pipeline = p_pipeline and f.status in ('pending', 'failed'));
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

CREATE OR REPLACE FUNCTION filemark.open_dead_letter (
  p_file      filemark.file_checkpoints,
  p_reason    text,
  p_opened_at timestamp with time zone
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  -- Large results stay in the file's row alone: an entry that is too large to be made would keep the file, and whoever
  -- claims next, from going on.
  if octet_length(p_file.accumulated_results::text) > 1048576 then
    p_file.accumulated_results := null;
  end if;
  insert into filemark.dead_letter_entries (
    pipeline, file_url, reason, opened_at, attempts, error_message, errors, file)
  values (p_file.pipeline, p_file.file_url, p_reason, p_opened_at, p_file.attempts, p_file.error_message,
          filemark.errors_of_attempts(p_file.pipeline, p_file.file_url, p_file.attempts), to_jsonb(p_file));
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

CREATE OR REPLACE FUNCTION filemark.pipeline_alerts()
  RETURNS TABLE (
    alert     text,
    severity  text,
    pipeline  text,
    value     double precision,
    threshold double precision,
    since     timestamp with time zone,
    message   text,
    hint      text
  )
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return query
  select 'dead_letters', 'warning', p.pipeline, d.files, 0, d.since,
         format('pipeline "%s": %s dead letter(s): %s', p.pipeline, d.files, d.named),
         format('Which and why: select * from filemark.dead_letters where pipeline = %1$L; When the cause is gone: '
                'select * from filemark.requeue_dead_letters(%1$L, p_dry_run => false);', p.pipeline)
    from filemark.pipelines p
   cross join lateral (
     select count(*) as files, min(e.opened_at) as since,
            string_agg(e.file_url || coalesce(' (' || left(e.error_message, 200) || ')', ''), ', ' order by e.place)
              filter (where e.place <= 3) as named
       from (select l.file_url, l.error_message, l.opened_at, row_number() over (order by l.entry_id desc) as place
               from filemark.dead_letter_entries l
              where l.pipeline = p.pipeline and l.resolution = 'pending') e
   ) d
   where d.files > 0
  union all
  select 'expired_claims', 'critical', p.pipeline, x.files, 0, x.since,
         format('pipeline "%s": %s claim(s) ended with their lease and nobody took them over: %s', p.pipeline, x.files,
                x.named),
         format('select * from filemark.reclaim_stale_claims(p_pipeline => %L); Then see that maintenance runs.',
                p.pipeline)
    from filemark.pipelines p
    join filemark.maintenance_due m on m.pipeline = p.pipeline
   cross join filemark.alert_limits() c
   cross join lateral (
     select count(*) as files, min(e.lease_expires_at) as since,
            string_agg(format('%s (%s)', e.file_url, e.processed_by), ', ' order by e.place)
              filter (where e.place <= 3) as named
       from (select f.file_url, f.processed_by, f.lease_expires_at,
                    row_number() over (order by f.lease_expires_at, f.file_url) as place
               from filemark.file_checkpoints f
              where f.pipeline = p.pipeline and f.lease_check_at <= statement_timestamp()
                and f.lease_expires_at <= statement_timestamp() - make_interval(secs => case
                  when m.last_run_at > statement_timestamp() - make_interval(secs => c.reclaim_within_seconds)
                  then c.reclaim_within_seconds else 0 end)) e
   ) x
   where x.files > 0
  union all
  select 'backlog_age', 'critical', p.pipeline,
         extract(epoch from statement_timestamp() - q.oldest)::double precision, p.max_backlog_age_seconds,
         q.oldest + make_interval(secs => p.max_backlog_age_seconds),
         format('pipeline "%s": a file has been waiting for %s seconds, longer than %s', p.pipeline,
                round(extract(epoch from statement_timestamp() - q.oldest)), p.max_backlog_age_seconds),
         format('Start workers, or allow more than max_concurrency: '
                'select * from filemark.backlog where pipeline = %L;', p.pipeline)
    from filemark.pipelines p
   cross join lateral (
     select filemark.oldest_available_at(p.pipeline) as oldest
      where p.max_backlog_age_seconds is not null and not p.paused offset 0
   ) q
   where q.oldest < statement_timestamp() - make_interval(secs => p.max_backlog_age_seconds)
  union all
  select 'failure_ratio', 'critical', p.pipeline, e.failed::double precision / e.ended, p.max_failure_ratio, r.since,
         format('pipeline "%s": %s of %s attempts failed in this hour and the last, more than %s %%', p.pipeline,
                e.failed, e.ended, round(100 * p.max_failure_ratio)),
         format('What failed: select detail ->> ''error_message'' as error, count(*) from filemark.file_events '
                'where pipeline = %1$L and event = ''failed'' and occurred_at > now() - interval ''2 hours'' '
                'group by 1 order by 2 desc; To stop it: '
                'select * from filemark.configure_pipeline(%1$L, ''{"paused": true}'');', p.pipeline)
    from filemark.pipelines p
    join filemark.recent_activity r on r.pipeline = p.pipeline
   cross join filemark.alert_limits() c
   cross join lateral (
     values (r.failures + r.lost_leases, r.files_completed + r.failures + r.lost_leases)
   ) e (failed, ended)
   where e.ended >= c.failure_minimum and e.failed > p.max_failure_ratio * e.ended;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.pipeline_numbers (
  p_pipeline text
)
  RETURNS TABLE (
    pipeline          text,
    pending           bigint,
    failed            bigint,
    first_pending_at  timestamp with time zone,
    processing        bigint,
    dead_letter       bigint,
    skipped           bigint,
    completed         bigint,
    records_total     numeric,
    records_filtered  numeric,
    records_persisted numeric,
    records_rejected  numeric,
    tallied           jsonb
  )
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return query
  select p.pipeline::text, q.pending, q.failed, q.first_pending_at, w.processing, k.dead_letter, k.skipped, t.completed,
         t.records_total, t.records_filtered, t.records_persisted, t.records_rejected, t.tallied
    from filemark.pipelines p
   cross join lateral (
     -- As few comparisons per file as will do: most of the time goes into these.
     select count(*) - count(*) filter (where f.status = 'failed') as pending,
            count(*) filter (where f.status = 'failed') as failed,
            min(f.available_at) filter (where f.status = 'pending') as first_pending_at
       from filemark.file_checkpoints f
      where f.pipeline = p.pipeline and f.status in ('pending', 'failed')
   ) q
   cross join lateral (
     select count(*) as processing
       from filemark.file_checkpoints f
      where f.pipeline = p.pipeline and f.lease_check_at is not null
   ) w
   cross join lateral (
     select count(*) filter (where f.status = 'dead_letter') as dead_letter,
            count(*) filter (where f.status = 'skipped') as skipped
       from filemark.file_checkpoints f
      where f.pipeline = p.pipeline and f.status in ('dead_letter', 'skipped')
   ) k
   cross join lateral (
     select coalesce(sum(s.files * s.sign), 0)::bigint as completed,
            coalesce(sum(s.records_total::numeric * s.sign), 0) as records_total,
            coalesce(sum(s.records_filtered::numeric * s.sign), 0) as records_filtered,
            coalesce(sum(s.records_persisted::numeric * s.sign), 0) as records_persisted,
            coalesce(sum(s.records_rejected::numeric * s.sign), 0) as records_rejected,
            coalesce(jsonb_object_agg(s.what, to_jsonb(s)), '{}') as tallied
       from (select n.*, case n.what when 'completed' then 1 when 'reopened' then -1 end as sign
               from filemark.totals(p.pipeline) n) s
   ) t
   where p_pipeline is null or p.pipeline = p_pipeline
   order by p.pipeline;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.pipeline_samples()
  RETURNS TABLE (
    metric text,
    labels text,
    value  numeric
  )
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return query
  select v.metric, filemark.metric_label('pipeline', s.pipeline) || coalesce(',' || v.label, ''), coalesce(v.value, 0)
    from filemark.pipeline_numbers(null) s
    join filemark.pipelines p on p.pipeline = s.pipeline
   cross join lateral (
     select max(extract(epoch from statement_timestamp() - greatest(f.checkpointed_at, f.started_at))) as age,
            sum(f.results_bytes) as results_bytes, max(f.results_bytes) as largest,
            count(*) filter (where f.lease_expires_at <= statement_timestamp()) as expired
       from filemark.file_checkpoints f
      where f.pipeline = s.pipeline and f.lease_check_at is not null
   ) w
   cross join lateral (
     select max(h.history_length) as longest from filemark.watched_histories h where h.pipeline = s.pipeline
   ) l
   cross join lateral (
     select sum((e.value ->> 'files')::numeric) as ended
       from jsonb_each(s.tallied) e
      where e.key in ('completed', 'superseded', 'failed', 'released', 'lost', 'taken')
   ) c
   cross join lateral (values
     ('filemark_files', 'status="pending"', s.pending::numeric),
     ('filemark_files', 'status="processing"', s.processing),
     ('filemark_files', 'status="completed"', s.completed),
     ('filemark_files', 'status="failed"', s.failed),
     ('filemark_files', 'status="dead_letter"', s.dead_letter),
     ('filemark_files', 'status="skipped"', s.skipped),
     ('filemark_oldest_pending_age_seconds', null,
      greatest(extract(epoch from statement_timestamp() - s.first_pending_at), 0)),
     ('filemark_pipeline_paused', null, p.paused::int),
     ('filemark_checkpoint_age_seconds', null, greatest(w.age, 0)),
     ('filemark_checkpoint_history_size', null, l.longest),
     ('filemark_results_bytes', null, w.results_bytes),
     ('filemark_largest_results_bytes', null, w.largest),
     ('filemark_expired_claims', null, w.expired),
     ('filemark_claims_total', null, s.processing + coalesce(c.ended, 0)),
     ('filemark_completions_total', null, (s.tallied -> 'completed' ->> 'files')::numeric),
     ('filemark_failures_total', null, (s.tallied -> 'failed' ->> 'files')::numeric),
     ('filemark_lost_leases_total', null, (s.tallied -> 'lost' ->> 'files')::numeric),
     ('filemark_releases_total', null, (s.tallied -> 'released' ->> 'files')::numeric),
     ('filemark_registrations_total', null, (s.tallied -> 'registered' ->> 'files')::numeric),
     ('filemark_overwrites_total', null, (s.tallied -> 'overwritten' ->> 'files')::numeric),
     ('filemark_records_total', null, (s.tallied -> 'completed' ->> 'records_total')::numeric),
     ('filemark_records_filtered_total', null, (s.tallied -> 'completed' ->> 'records_filtered')::numeric),
     ('filemark_records_persisted_total', null, (s.tallied -> 'completed' ->> 'records_persisted')::numeric),
     ('filemark_records_rejected_total', null, (s.tallied -> 'completed' ->> 'records_rejected')::numeric)
   ) v (metric, label, value);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.post_alerts (
  p_changes jsonb
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_webhook record;
begin
  for v_webhook in
    select w.url, w.headers, c.changes, c.text
      from filemark.alert_webhooks w
     cross join lateral (
       select jsonb_agg(e.change order by e.position) as changes,
              string_agg(format('%s: %s', e.change ->> 'event', e.change ->> 'message'), chr(10) order by e.position)
                as text
         from jsonb_array_elements(p_changes) with ordinality e (change, position)
        where w.pipeline = coalesce(
                (select o.pipeline from filemark.alert_webhooks o where o.pipeline = e.change ->> 'pipeline'), '')
     ) c
     where c.changes is not null
  loop
    if to_regprocedure('net.http_post(text, jsonb, jsonb, jsonb, integer)') is null then
      raise warning 'filemark: alerts are not posted: the extension pg_net is not installed';
      return;
    end if;
    begin
      execute format('select %s(url := $1, body := $2, headers := $3)', 'net.http_post')
        using v_webhook.url,
              jsonb_build_object('text', v_webhook.text, 'database', current_database(), 'alerts', v_webhook.changes),
              filemark.webhook_headers(v_webhook.headers);
    exception
      when others then
        raise warning 'filemark: alerts could not be posted: %', sqlerrm;
    end;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.purge_file (
  p_file filemark.file_checkpoints
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  insert into filemark.purged_files as g (
    pipeline, file_hash, etag_hash, generation, claim_token, file_timestamp, file_type)
  values (p_file.pipeline, filemark.short_hash(p_file.file_url), filemark.short_hash(p_file.etag), p_file.generation,
          p_file.claim_token, p_file.file_timestamp, p_file.file_type)
      -- A repeatable read transaction that began before a purge may have registered the file anew.
      on conflict (pipeline, file_hash) do update
     set etag_hash = excluded.etag_hash,
         generation = greatest(g.generation, excluded.generation),
         claim_token = greatest(g.claim_token, excluded.claim_token),
         file_timestamp = excluded.file_timestamp,
         file_type = excluded.file_type;
  delete from filemark.checkpoint_history h where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url;
  delete from filemark.long_histories l where l.pipeline = p_file.pipeline and l.file_url = p_file.file_url;
  delete from filemark.dead_letter_entries d where d.pipeline = p_file.pipeline and d.file_url = p_file.file_url;
  delete from filemark.file_events e where e.pipeline = p_file.pipeline and e.file_url = p_file.file_url;
  delete from filemark.file_checkpoints f where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.purge_files (
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
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_file filemark.file_checkpoints;
  v_until timestamptz;
  v_purged bigint;
begin
  perform filemark.check_task(p_limit, p_dry_run, p_pipeline);
  for v_settings in
    select p.* from filemark.pipelines p
     where (p_pipeline is null or p.pipeline = p_pipeline) and p.keep_files_days is not null
     order by p.pipeline
  loop
    v_until := v_now - make_interval(days => v_settings.keep_files_days);
    if p_dry_run then
      return query
      select f.pipeline::text, f.file_url::text, 'would_purge'
        from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline and f.completed_at <= v_until
       order by f.completed_at
       limit p_limit;
      continue;
    end if;

    action := 'purged';
    v_purged := 0;
    for v_file in
      select f.* from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline and f.completed_at <= v_until
       order by f.completed_at
       limit p_limit
         for update skip locked
    loop
      pipeline := v_file.pipeline;
      file_url := v_file.file_url;
      perform filemark.purge_file(v_file);
      v_purged := v_purged + 1;
      return next;
    end loop;
    if v_purged > 0 then
      perform filemark.tally(v_settings.pipeline, 'purged', v_purged);
    end if;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.put_back (
  p_file       filemark.file_checkpoints,
  p_checkpoint filemark.checkpoint_history,
  p_from       text,
  p_force      boolean,
  p_reason     text,
  p_actor      text
)
  RETURNS bigint
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_seq bigint := p_checkpoint.checkpoint_seq;
begin
  if p_file.superseded_by is not null then
    perform filemark.start_generation(p_file.pipeline, p_file.file_url, p_file.superseded_by, v_now, p_actor);
    v_seq := 0;
  elsif p_file.status = 'pending' and p_file.attempts = 0 and p_file.available_at <= v_now
        and p_file.checkpoint_seq = v_seq then
    return v_seq;
  else
    perform filemark.rewind_file(p_file, p_checkpoint, v_now, p_reason, p_actor);
  end if;
  if p_file.status = 'processing' then
    perform filemark.tally(p_file.pipeline, 'taken');
  end if;

  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'requeued', p_actor, p_reason,
    jsonb_build_object('from', p_from, 'checkpoint_seq', v_seq, 'force', p_force is true,
                       'old_status', p_file.status, 'old_checkpoint_seq', p_file.checkpoint_seq,
                       'old_claim_token', p_file.claim_token, 'old_processed_by', p_file.processed_by,
                       'old_error_message', p_file.error_message));
  return v_seq;
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
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_task(p_limit, p_dry_run, p_pipeline);

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
       and r.request_id = any (array(
         select o.request_id from filemark.claim_requests o
          where o.pipeline = v_settings.pipeline and o.claimed_at < v_now - interval '1 day'
          order by o.claimed_at
          limit p_limit
            for update skip locked));
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.record_event (
  p_pipeline text,
  p_file_url text,
  p_event    text,
  p_actor    text,
  p_reason   text  DEFAULT NULL::text,
  p_detail   jsonb DEFAULT '{}'::jsonb
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  insert into filemark.file_events (pipeline, file_url, event, occurred_at, actor, reason, detail)
  values (p_pipeline, p_file_url, p_event, clock_timestamp(),
          filemark.actor_of(p_actor), p_reason, p_detail);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.record_lost_lease (
  p_file  filemark.file_checkpoints,
  p_actor text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'lease_expired', p_actor, null,
    jsonb_build_object('claim_token', p_file.claim_token, 'processed_by', p_file.processed_by,
                       'lease_expired_at', p_file.lease_expires_at, 'attempts', p_file.attempts,
                       'items_processed', p_file.items_processed));
  perform filemark.tally(p_file.pipeline, 'lost');
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
    select 'completed' as status, g.claim_token, 'completed' as claim_ended, null as processed_by
      into v_file
      from filemark.purged_files g
     where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url);
  end if;
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

CREATE OR REPLACE FUNCTION filemark.requeue_dead_letters (
  p_pipeline   text,
  p_error_like text    DEFAULT '%'::text,
  p_limit      integer DEFAULT 100,
  p_dry_run    boolean DEFAULT true,
  p_reason     text    DEFAULT NULL::text,
  p_actor      text    DEFAULT NULL::text
)
  RETURNS TABLE (
    pipeline      text,
    file_url      text,
    action        text,
    error_message text
  )
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_letter record;
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_pipeline(p_pipeline),
          filemark.check_number('p_limit', p_limit, 1, 10000),
          filemark.check_text('p_reason', coalesce(nullif(p_reason, ''), '-'), 10000),
          filemark.check_text('p_actor', coalesce(nullif(p_actor, ''), '-'), 200);
  if p_error_like is null or p_error_like ~ '^([^\\]|\\.)*\\$' then
    perform filemark.refuse_argument(
      'p_error_like', p_error_like, 'a pattern as LIKE takes it, without a lone backslash at its end');
  elsif p_dry_run is null then
    perform filemark.refuse_argument('p_dry_run', null, 'true or false');
  end if;

  for v_letter in
    select oldest.file_url, oldest.entry_id, oldest.error_message
      from (select d.file_url, d.entry_id, d.error_message
              from filemark.dead_letter_entries d
             where d.pipeline = p_pipeline and d.resolution = 'pending'
               and coalesce(d.error_message, '') like p_error_like
             order by d.entry_id
             limit p_limit) oldest
     -- The rows of files are locked in the order of their keys.
     order by oldest.file_url
  loop
    if not p_dry_run then
      select f.* into v_file
        from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = v_letter.file_url and f.status = 'dead_letter'
         for no key update skip locked;
      -- Somebody else is dealing with it, or has.
      continue when not found or not exists (
        select from filemark.dead_letter_entries d
         where d.pipeline = p_pipeline and d.entry_id = v_letter.entry_id and d.resolution = 'pending');
      perform filemark.put_back(
        v_file, filemark.checkpoint_to_resume(v_file, 'checkpoint'), 'checkpoint', false, p_reason, p_actor);
    end if;
    pipeline := p_pipeline;
    file_url := v_letter.file_url;
    error_message := v_letter.error_message;
    action := case when p_dry_run then 'would_requeue' else 'requeued' end;
    return next;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.resolve_dead_letter (
  p_file_url   text,
  p_resolution text,
  p_notes      text DEFAULT NULL::text,
  p_actor      text DEFAULT NULL::text,
  p_pipeline   text DEFAULT 'default'::text
)
  RETURNS void
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_file filemark.file_checkpoints;
  v_last text;
begin
  if p_resolution is null
     or p_resolution not in ('requeued', 'skipped', 'manually_resolved', 'permanently_failed') then
    perform filemark.refuse_argument(
      'p_resolution', p_resolution, 'requeued, skipped, manually_resolved or permanently_failed');
  end if;
  perform filemark.check_text('p_notes', coalesce(nullif(p_notes, ''), '-'), 10000);
  v_file := filemark.lock_known_file(p_file_url, null, p_actor, p_pipeline);
  select d.resolution into v_last
    from filemark.dead_letter_entries d
   where d.pipeline = p_pipeline and d.file_url = p_file_url
   order by d.entry_id desc
   limit 1;
  if v_last = p_resolution then
    return;
  elsif v_last is distinct from 'pending' then
    raise exception 'file "%" has no pending dead letter', filemark.on_one_line(p_file_url)
      using errcode = 'PT422',
            detail = format('The file is %s%s.', v_file.status,
                            coalesce('; its last dead letter was resolved as ' || v_last, ''));
  end if;

  if p_resolution = 'requeued' then
    perform public.requeue_file(p_file_url, p_reason => p_notes, p_actor => p_actor, p_pipeline => p_pipeline);
  elsif p_resolution = 'skipped' then
    perform public.skip_file(p_file_url, p_notes, p_actor, p_pipeline);
  else
    perform filemark.close_dead_letter(p_pipeline, p_file_url, p_resolution, p_notes, p_actor);
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.revive_file (
  p_pipeline text,
  p_file_url text,
  p_etag     text,
  p_now      timestamp with time zone
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  with purged as (
    delete from filemark.purged_files g
     where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url)
    returning g.*
  )
  insert into filemark.file_checkpoints (
    pipeline, file_url, file_type, file_timestamp, etag, generation, status, available_at, claim_token, claim_ended,
    completed_at)
  select g.pipeline, p_file_url, g.file_type, g.file_timestamp, p_etag, g.generation, 'completed', p_now,
         g.claim_token, 'completed', p_now
    from purged g;
  if found then
    perform filemark.tally(p_pipeline, 'purged', -1);
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.rewind_file (
  p_file       filemark.file_checkpoints,
  p_checkpoint filemark.checkpoint_history,
  p_now        timestamp with time zone,
  p_reason     text,
  p_actor      text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_dropped record;
begin
  with dropped as (
    delete from filemark.checkpoint_history h
     where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url
       and h.checkpoint_seq > p_checkpoint.checkpoint_seq
    returning h.records_persisted
  )
  select count(*) as checkpoints, coalesce(sum(d.records_persisted), 0) as records into v_dropped from dropped d;

  update filemark.file_checkpoints f
     set status = 'pending',
         claim_ended = case when f.status = 'processing' then 'lost' else f.claim_ended end,
         lease_expires_at = null,
         lease_check_at = null,
         available_at = p_now,
         attempts = 0,
         cursor = p_checkpoint.cursor,
         items_processed = p_checkpoint.items_processed,
         checkpoint_seq = p_checkpoint.checkpoint_seq,
         checkpointed_at = p_checkpoint.saved_at,
         accumulated_results = case when p_checkpoint.checkpoint_seq = f.checkpoint_seq
                                    then f.accumulated_results end,
         results_bytes = case when p_checkpoint.checkpoint_seq = f.checkpoint_seq then f.results_bytes else 0 end,
         history_length = f.history_length - v_dropped.checkpoints,
         records_total = 0,
         records_filtered = 0,
         records_persisted = case when p_checkpoint.checkpoint_seq = 0 then 0
                                  else greatest(f.records_persisted - v_dropped.records, 0) end,
         records_rejected = 0,
         processing_time_ms = null,
         error_message = null,
         error = null,
         completed_at = null,
         kept_since = null
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
  perform filemark.tally_reopened(p_file),
          filemark.close_dead_letter(p_file.pipeline, p_file.file_url, 'requeued', p_reason, p_actor);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.run_maintenance (
  p_limit integer DEFAULT 1000
)
  RETURNS TABLE (
    task     text,
    pipeline text,
    affected bigint
  )
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
begin
  perform filemark.check_number('p_limit', p_limit, 1, 1000000);
  return query select m.task, m.pipeline, m.affected from filemark.maintain(p_limit, 10) m;
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
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_settings record;
begin
  select p.lease_seconds, p.history_limit, p.cursor_limit_bytes, p.results_limit_bytes
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
           results_bytes = coalesce(octet_length(nullif(p_accumulated_results, 'null')::text), f.results_bytes),
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
  ), listed as (
    -- Once per so many checkpoints, the history is work for truncate_checkpoint_history.
    insert into filemark.long_histories (pipeline, file_url)
    select p_pipeline, p_file_url
      from saved s
     where s.history_length > v_settings.history_limit and (s.history_length - 1) % v_settings.history_limit = 0
        on conflict do nothing
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

CREATE OR REPLACE FUNCTION filemark.schedule_at_installation()
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  if filemark.has_cron() then
    perform filemark.schedule_maintenance();
  else
    raise notice 'filemark: nothing runs maintenance here yet. %', filemark.cron_hint();
  end if;
exception
  when others then
    raise notice 'filemark: maintenance could not be scheduled: %. When that is mended, run: '
      'select * from filemark.schedule_maintenance();', sqlerrm;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.schedule_job (
  p_job      text,
  p_schedule text,
  p_command  text
)
  RETURNS boolean
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  execute format('select %s($1, $2, $3)', 'cron.schedule') using p_job, p_schedule, p_command;
  return true;
exception
  when invalid_parameter_value then
    return false;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.schedule_maintenance (
  p_every text DEFAULT NULL::text
)
  RETURNS TABLE (
    job      text,
    schedule text,
    active   boolean
  )
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_seconds constant text := '^\s*\d+\s+seconds?\s*$';
  v_allowed constant text := 'a number of seconds from 1 to 59, as in 30 seconds, or a schedule as cron takes it';
  v_job record;
  v_every text;
begin
  -- pg_cron itself passes over what stands behind the fifth field.
  if octet_length(p_every) > 100 or p_every !~ v_seconds and p_every !~ '^\s*(@\w+|(\S+\s+){4}\S+)\s*$'
     or p_every ~ v_seconds and substring(p_every, '\d+')::numeric not between 1 and 59 then
    perform filemark.refuse_argument('p_every', p_every, v_allowed);
  elsif not filemark.has_cron() then
    raise exception 'pg_cron is not in this database' using errcode = 'PT422', hint = filemark.cron_hint();
  elsif not has_schema_privilege('cron', 'usage') then
    raise exception '%, who owns filemark, may not use pg_cron', current_user
      using errcode = 'insufficient_privilege',
            hint = format('Have an administrator run: grant usage on schema cron to %I;', current_user);
  end if;

  for v_job in select m.job, m.schedule, m.command from filemark.maintenance_jobs() m loop
    v_every := coalesce(
      case when v_job.job = 'filemark:maintenance' then p_every end,
      (select s.schedule from filemark.scheduled_jobs() s where s.job = v_job.job),
      v_job.schedule);
    if not filemark.schedule_job(v_job.job, v_every, v_job.command) then
      if v_every !~ v_seconds then
        perform filemark.refuse_argument('p_every', v_every, v_allowed);
      end if;
      perform filemark.schedule_job(v_job.job, '* * * * *', v_job.command);
    end if;
  end loop;
  return query select s.job, s.schedule, s.active from filemark.scheduled_jobs() s;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.scheduled_jobs()
  RETURNS TABLE (
    job      text,
    schedule text,
    active   boolean,
    jobid    bigint
  )
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  for job, schedule, active, jobid in execute format(
    'select j.jobname::text, j.schedule, j.active, j.jobid
       from %s j
       join filemark.maintenance_jobs() m on m.job = j.jobname
      where j.username = current_user and j.database = current_database()
      order by j.jobname', 'cron.job')
  loop
    return next;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.set_alert_webhook (
  p_url      text,
  p_headers  jsonb DEFAULT '{}'::jsonb,
  p_pipeline text  DEFAULT NULL::text,
  p_actor    text  DEFAULT NULL::text
)
  RETURNS void
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_header record;
begin
  if p_url !~ '^https?://[^\s/]+' or octet_length(p_url) > 2048 then
    perform filemark.refuse_argument('p_url', p_url, 'an http or https address of at most 2048 bytes, or null');
  elsif jsonb_typeof(p_headers) is distinct from 'object' then
    perform filemark.refuse_argument('p_headers', coalesce(jsonb_typeof(p_headers), 'null'), 'a JSON object');
  elsif p_pipeline is not null then
    perform filemark.check_pipeline(p_pipeline);
  end if;
  perform filemark.check_text('p_actor', coalesce(nullif(p_actor, ''), '-'), 200);
  for v_header in select h.key, h.value from jsonb_each(p_headers) h loop
    if jsonb_typeof(v_header.value) <> 'string'
       and (jsonb_typeof(v_header.value -> 'vault') is distinct from 'string' or v_header.value - 'vault' <> '{}') then
      -- Its value is not said: it may be a secret.
      perform filemark.refuse_argument(
        'p_headers.' || v_header.key, '…', 'a text or {"vault": the name of a secret}');
    end if;
  end loop;

  if p_url is null then
    delete from filemark.alert_webhooks w where w.pipeline = coalesce(p_pipeline, '');
  else
    insert into filemark.alert_webhooks as w (pipeline, url, headers)
    values (coalesce(p_pipeline, ''), p_url, p_headers)
        on conflict (pipeline) do update
       set url = excluded.url, headers = excluded.headers
     where (w.url, w.headers) is distinct from (excluded.url, excluded.headers);
  end if;
  if found then
    perform filemark.record_event(
      coalesce(p_pipeline, ''), null, 'settings_changed', p_actor, null,
      jsonb_build_object('alert_webhook', case when p_url is null then 'removed' else 'set' end));
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.short_hash (
  p_text text
)
  RETURNS bytea
  LANGUAGE plpgsql
  IMMUTABLE
  SET search_path TO ''
  AS $function$
begin
  return substr(sha256(convert_to(p_text, 'UTF8')), 1, 16);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.start_generation (
  p_pipeline    text,
  p_file_url    text,
  p_content     jsonb,
  p_now         timestamp with time zone,
  p_actor       text                     DEFAULT NULL::text,
  p_claim_ended text                     DEFAULT 'lost'::text
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_old filemark.file_checkpoints;
begin
  select f.* into v_old
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;

  delete from filemark.checkpoint_history h where h.pipeline = p_pipeline and h.file_url = p_file_url;

  update filemark.file_checkpoints f
     set generation = f.generation + 1,
         etag = p_content ->> 'etag',
         file_type = coalesce(p_content ->> 'file_type', f.file_type),
         file_timestamp = coalesce((p_content ->> 'file_timestamp')::timestamptz, f.file_timestamp),
         size_bytes = (p_content ->> 'size_bytes')::numeric::bigint,
         metadata = coalesce(nullif(p_content -> 'metadata', 'null'), f.metadata),
         priority = coalesce((p_content ->> 'priority')::numeric::int, f.priority),
         available_at = coalesce((p_content ->> 'available_at')::timestamptz, p_now),
         superseded_by = null,
         status = 'pending',
         claim_ended = case when f.status = 'processing' then p_claim_ended else f.claim_ended end,
         lease_expires_at = null,
         lease_check_at = null,
         attempts = 0,
         cursor = null,
         items_processed = 0,
         items_total = null,
         accumulated_results = null,
         results_bytes = 0,
         checkpoint_seq = 0,
         checkpointed_at = null,
         history_length = 0,
         records_total = 0,
         records_filtered = 0,
         records_persisted = 0,
         records_rejected = 0,
         processing_time_ms = null,
         error_message = null,
         error = null,
         completed_at = null,
         kept_since = null
   where f.pipeline = p_pipeline and f.file_url = p_file_url;

  perform filemark.tally_reopened(v_old),
          filemark.tally(p_pipeline, 'overwritten'),
          filemark.close_dead_letter(
            p_pipeline, p_file_url, 'requeued', 'new content: etag ' || (p_content ->> 'etag'), p_actor);
  perform filemark.record_event(
    p_pipeline, p_file_url, 'overwritten', p_actor, null,
    jsonb_build_object('old_etag', v_old.etag, 'new_etag', p_content ->> 'etag',
                       'generation', v_old.generation + 1, 'old_status', v_old.status,
                       'old_items_processed', v_old.items_processed));
end
$function$;

CREATE OR REPLACE FUNCTION filemark.stays_purged (
  p_pipeline text,
  p_file_url text,
  p_etag     text
)
  RETURNS boolean
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return exists (
    select from filemark.purged_files g
      join filemark.pipelines p on p.pipeline = g.pipeline
     where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url)
       and (p_etag is null or g.etag_hash = filemark.short_hash(p_etag)
            or (g.etag_hash is not null and p.on_overwrite = 'ignore')));
end
$function$;

CREATE OR REPLACE FUNCTION filemark.surrounding_alerts()
  RETURNS TABLE (
    alert     text,
    severity  text,
    pipeline  text,
    value     double precision,
    threshold double precision,
    since     timestamp with time zone,
    message   text,
    hint      text
  )
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return query
  select 'maintenance_overdue', 'warning', m.pipeline,
         extract(epoch from statement_timestamp() - m.due_since)::double precision,
         c.maintenance_overdue_seconds::double precision,
         m.due_since + make_interval(secs => c.maintenance_overdue_seconds),
         format('pipeline "%s": work has been waiting for maintenance since %s; %s', m.pipeline,
                date_trunc('second', m.due_since),
                coalesce('it last ran at ' || date_trunc('second', m.last_run_at), 'it did not run in the last day')),
         'select * from filemark.run_maintenance(10000); Then see that it runs every minute: '
         'filemark.schedule_maintenance.'
    from filemark.maintenance_due m
   cross join filemark.alert_limits() c
   where m.due_since <= statement_timestamp() - make_interval(secs => c.maintenance_overdue_seconds)
  union all
  select 'missing_files', 'critical', p.pipeline,
         extract(epoch from statement_timestamp() - n.last_at)::double precision, p.expect_file_every_seconds,
         n.last_at + make_interval(secs => p.expect_file_every_seconds),
         format('pipeline "%s": no new file since %s, though one is expected every %s seconds', p.pipeline,
                date_trunc('second', n.last_at), p.expect_file_every_seconds),
         format('Ask whoever delivers them. What came when: '
                'select * from filemark.pipeline_activity where pipeline = %L order by hour desc limit 48;', p.pipeline)
    from filemark.pipelines p
   cross join lateral (
     select greatest(
              p.created_at,
              (select max(a.last_at) from filemark.activity a
                where a.pipeline = p.pipeline and a.hour = 'epoch' and a.what in ('registered', 'overwritten')),
              (select max(t.occurred_at) from filemark.tallies t
                where t.pipeline = p.pipeline and t.what in ('registered', 'overwritten'))) as last_at
   ) n
   where n.last_at < statement_timestamp() - make_interval(secs => p.expect_file_every_seconds)
  union all
  select 'held_snapshot', 'warning', '', extract(epoch from statement_timestamp() - h.since)::double precision,
         c.held_snapshot_seconds, h.since + make_interval(secs => c.held_snapshot_seconds),
         format('%s %s (%s) has kept %s dead rows of file_checkpoints from being removed since %s; claims read over '
                'them', h.kind, h.name, h.held_by, s.n_dead_tup, date_trunc('second', h.since)),
         case h.kind
           when 'session' then format('select pg_terminate_backend(%s);', h.name)
           when 'prepared transaction' then format('rollback prepared %L;', h.name)
           else format('select pg_drop_replication_slot(%L);', h.name)
         end
    from (select * from filemark.held_snapshots() limit 1) h
   cross join filemark.alert_limits() c
   cross join pg_catalog.pg_stat_all_tables s
   where s.relid = 'filemark.file_checkpoints'::regclass and s.n_dead_tup >= c.held_dead_rows
     and h.since <= statement_timestamp() - make_interval(secs => c.held_snapshot_seconds);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.take_files (
  p_pipeline      text,
  p_file_urls     text[],
  p_worker_id     text,
  p_request_id    uuid,
  p_lease_seconds integer,
  p_now           timestamp with time zone
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_lease_end timestamptz := p_now + make_interval(secs => p_lease_seconds);
  v_url text;
begin
  -- One by one: a plan for all of them, made while the table was small, reads the whole pipeline (97_plans.sql).
  foreach v_url in array p_file_urls loop
    update filemark.file_checkpoints f
       set status = 'processing',
           claim_token = f.claim_token + 1,
           claim_ended = null,
           request_id = p_request_id,
           processed_by = p_worker_id,
           started_at = p_now,
           lease_expires_at = v_lease_end,
           lease_check_at = v_lease_end,
           attempts = f.attempts + 1
     where f.pipeline = p_pipeline and f.file_url = v_url;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.tally (
  p_pipeline          text,
  p_what              text,
  p_files             bigint  DEFAULT 1,
  p_records_total     numeric DEFAULT 0,
  p_records_filtered  numeric DEFAULT 0,
  p_records_persisted numeric DEFAULT 0,
  p_records_rejected  numeric DEFAULT 0
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  -- A claim must not fail to end because counts that are allowed one by one are too large together.
  v_max constant bigint := 9223372036854775807;
begin
  insert into filemark.tallies (
    pipeline, occurred_at, what, files, records_total, records_filtered, records_persisted, records_rejected)
  values (p_pipeline, clock_timestamp(), p_what, p_files, least(p_records_total, v_max),
          least(p_records_filtered, v_max), least(p_records_persisted, v_max), least(p_records_rejected, v_max));
end
$function$;

CREATE OR REPLACE FUNCTION filemark.tally_reopened (
  p_file filemark.file_checkpoints
)
  RETURNS void
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
begin
  if p_file.status = 'completed' then
    perform filemark.tally(
      p_file.pipeline, 'reopened', 1, p_file.records_total, p_file.records_filtered, p_file.records_persisted,
      p_file.records_rejected);
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
  SET enable_seqscan TO 'off'
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

CREATE OR REPLACE FUNCTION filemark.totals (
  p_pipeline text
)
  RETURNS TABLE (
    what              text,
    files             bigint,
    records_total     bigint,
    records_filtered  bigint,
    records_persisted bigint,
    records_rejected  bigint,
    last_at           timestamp with time zone
  )
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
declare
  v_max constant bigint := 9223372036854775807;
begin
  return query
  select s.what, sum(s.files)::bigint, least(sum(s.records_total), v_max)::bigint,
         least(sum(s.records_filtered), v_max)::bigint, least(sum(s.records_persisted), v_max)::bigint,
         least(sum(s.records_rejected), v_max)::bigint, max(s.last_at)
    from (
      select a.what, a.files, a.records_total, a.records_filtered, a.records_persisted, a.records_rejected, a.last_at
        from filemark.activity a
       where a.pipeline = p_pipeline and a.hour = 'epoch'
      union all
      -- Added up among themselves first: of bigints, that is much faster.
      select t.what, sum(t.files), sum(t.records_total), sum(t.records_filtered), sum(t.records_persisted),
             sum(t.records_rejected), max(t.occurred_at)
        from filemark.tallies t
       where t.pipeline = p_pipeline
       group by t.what
    ) s
   group by s.what;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.truncate_checkpoint_history (
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
  SET jit TO 'off'
  AS $function$
declare
  v_settings filemark.pipelines;
  v_file record;
  v_room bigint;
  v_deleted bigint;
begin
  perform filemark.check_task(p_limit, p_dry_run, p_pipeline);
  for v_settings in
    select p.* from filemark.pipelines p where p_pipeline is null or p.pipeline = p_pipeline order by p.pipeline
  loop
    if p_dry_run then
      return query
      select l.pipeline::text, l.file_url::text, 'would_truncate'
        from filemark.long_histories l
        join filemark.file_checkpoints f on f.pipeline = l.pipeline and f.file_url = l.file_url
       where l.pipeline = v_settings.pipeline and f.history_length > v_settings.history_limit
       order by l.listed_at, l.file_url
       limit p_limit;
      continue;
    end if;

    v_room := greatest(100 * p_limit, 10000);
    for v_file in
      select f.pipeline, f.file_url, f.checkpoint_seq, f.history_length
        from filemark.long_histories l
       cross join lateral (
         select c.* from filemark.file_checkpoints c
          where c.pipeline = v_settings.pipeline and c.file_url = l.file_url
            for no key update skip locked
       ) f
       where l.pipeline = v_settings.pipeline
       order by l.listed_at, l.file_url
       limit p_limit
    loop
      delete from filemark.checkpoint_history h
       where h.pipeline = v_file.pipeline and h.file_url = v_file.file_url
         and h.checkpoint_seq <= v_file.checkpoint_seq - v_settings.history_limit
         and h.checkpoint_seq <= v_file.checkpoint_seq - v_file.history_length + v_room;
      get diagnostics v_deleted = row_count;
      if v_file.history_length - v_deleted <= v_settings.history_limit then
        delete from filemark.long_histories l where l.pipeline = v_file.pipeline and l.file_url = v_file.file_url;
      end if;
      if v_deleted > 0 then
        update filemark.file_checkpoints f
           set history_length = f.history_length - v_deleted
         where f.pipeline = v_file.pipeline and f.file_url = v_file.file_url;
        pipeline := v_file.pipeline;
        file_url := v_file.file_url;
        action := 'truncated';
        return next;
      end if;
      v_room := v_room - v_deleted;
      exit when v_room <= 0;
    end loop;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.unschedule_maintenance()
  RETURNS TABLE (
    job text
  )
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  AS $function$
declare
  v_job record;
begin
  if not filemark.has_cron() then
    return;
  end if;
  for v_job in select s.job, s.jobid from filemark.scheduled_jobs() s loop
    execute format('select %s($1)', 'cron.unschedule') using v_job.jobid;
    job := v_job.job;
    return next;
  end loop;
end
$function$;

CREATE OR REPLACE FUNCTION filemark.upkeep_samples()
  RETURNS TABLE (
    metric text,
    labels text,
    value  numeric
  )
  LANGUAGE plpgsql
  STABLE
  SET search_path TO ''
  AS $function$
begin
  return query
  select 'filemark_dead_letters',
         filemark.metric_label('pipeline', p.pipeline) || ',' || filemark.metric_label('reason', r.reason),
         (select count(*)::numeric from filemark.dead_letter_entries d
           where d.pipeline = p.pipeline and d.resolution = 'pending' and d.reason = r.reason)
    from filemark.pipelines p
   cross join unnest(array['max_attempts_exceeded', 'not_retryable', 'lease_expired', 'manual']) r (reason)
  union all
  select 'filemark_alerts',
         filemark.metric_label('pipeline', k.pipeline) || ',' || filemark.metric_label('alert', k.alert) || ','
         || filemark.metric_label('severity', k.severity), coalesce(a.alerts, 0)
    from (select p.pipeline, n.alert, n.severity
            from filemark.pipelines p
           cross join (values
             ('stale_checkpoint', 'warning'), ('large_history', 'warning'), ('large_results', 'warning'),
             ('infrequent_checkpoints', 'warning'), ('dead_letters', 'warning'), ('expired_claims', 'critical'),
             ('backlog_age', 'critical'), ('failure_ratio', 'critical'), ('maintenance_overdue', 'warning'),
             ('missing_files', 'critical')) n (alert, severity)
           union all
          select '', 'held_snapshot', 'warning') k
    left join (select l.pipeline, l.alert, count(*)::numeric as alerts
                 from filemark.current_alerts() l
                group by l.pipeline, l.alert) a on a.pipeline = k.pipeline and a.alert = k.alert
  union all
  select 'filemark_last_maintenance_timestamp_seconds', filemark.metric_label('pipeline', m.pipeline),
         extract(epoch from m.last_run_at)
    from filemark.maintenance_due m
   where m.last_run_at is not null
  union all
  select 'filemark_oldest_snapshot_age_seconds', '',
         coalesce(extract(epoch from statement_timestamp() - min(h.since)), 0)
    from filemark.held_snapshots() h
  union all
  select v.metric, filemark.metric_label('table', s.table_name), v.value
    from filemark.storage_report s
   cross join lateral (values
     ('filemark_dead_rows', s.dead_rows::numeric), ('filemark_table_bytes', s.total_bytes)) v (metric, value);
end
$function$;

CREATE OR REPLACE FUNCTION filemark.webhook_headers (
  p_headers jsonb
)
  RETURNS jsonb
  LANGUAGE plpgsql
  SET search_path TO ''
  AS $function$
declare
  v_header record;
  v_secret text;
  v_headers jsonb := jsonb_build_object('Content-Type', 'application/json');
begin
  for v_header in select h.key, h.value from jsonb_each(p_headers) h loop
    if jsonb_typeof(v_header.value) = 'object' then
      -- Named in a parameter, so that no linter looks for it where there is no Vault.
      execute format('select s.decrypted_secret from %s s where s.name = $1', 'vault.decrypted_secrets')
         into v_secret
        using v_header.value ->> 'vault';
      if v_secret is null then
        raise exception 'Vault has no secret "%"', v_header.value ->> 'vault' using errcode = 'no_data_found';
      end if;
      v_headers := v_headers || jsonb_build_object(v_header.key, v_secret);
    else
      v_headers := v_headers || jsonb_build_object(v_header.key, v_header.value);
    end if;
  end loop;
  return v_headers;
end
$function$;

CREATE OR REPLACE FUNCTION public.claim_file (
  p_file_url       text,
  p_file_type      text,
  p_file_timestamp timestamp with time zone,
  p_worker_id      text,
  p_pipeline       text                     DEFAULT 'default'::text,
  p_etag           text                     DEFAULT NULL::text,
  p_request_id     uuid                     DEFAULT NULL::uuid
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
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_seen record;
begin
  perform filemark.check_key(p_pipeline, p_file_url),
          filemark.check_text('p_file_type', p_file_type, 100),
          filemark.check_time('p_file_timestamp', p_file_timestamp),
          filemark.check_text('p_worker_id', p_worker_id, 200),
          filemark.check_text('p_etag', coalesce(p_etag, '-'), 1024);

  -- A look without a lock: refusals end here.
  select f.request_id = p_request_id as is_repeat,
         f.status,
         p_etag is null or f.status is null or p_etag is not distinct from coalesce(f.superseded_by ->> 'etag', f.etag)
           or (p.on_overwrite = 'ignore' and f.etag is not null) as is_same_content,
         coalesce(
           filemark.claim_refusal(f.status, f.available_at, f.lease_expires_at, f.superseded_by is not null,
                                  f.attempts, p.max_attempts, v_now),
           case
             when f.request_id = p_request_id then 'waiting'
             when p.paused then 'paused'
             when p.max_concurrency is not null and f.status is distinct from 'processing'
                  and filemark.count_in_progress(p_pipeline, p.max_concurrency) >= p.max_concurrency then 'busy'
           end) as refusal
    into v_seen
    from filemark.pipelines p
    left join filemark.file_checkpoints f on f.pipeline = p.pipeline and f.file_url = p_file_url
   where p.pipeline = p_pipeline;

  outcome := case
    when v_seen.status is null and filemark.stays_purged(p_pipeline, p_file_url, p_etag) then
      'completed'
    when v_seen.is_repeat and v_seen.status = 'processing' then 'claimed'
    -- A lease that is over with its budget spent is not refused here: it is yet to become a dead letter.
    when v_seen.is_same_content and not (v_seen.status = 'processing' and v_seen.refusal = 'dead_letter') then
      v_seen.refusal
  end;
  if outcome is null then
    outcome := filemark.claim_by_name(
      p_pipeline, p_file_url, p_worker_id,
      jsonb_build_object('file_url', p_file_url, 'etag', p_etag, 'file_type', p_file_type,
                         'file_timestamp', p_file_timestamp),
      p_request_id);
  end if;

  if outcome = 'claimed' then
    return query select * from filemark.read_claims(p_pipeline, array[p_file_url]);
  else
    pipeline := p_pipeline;
    file_url := p_file_url;
    return next;
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION public.claim_next_files (
  p_worker_id  text,
  p_limit      integer DEFAULT 1,
  p_pipeline   text    DEFAULT 'default'::text,
  p_file_type  text    DEFAULT NULL::text,
  p_request_id uuid    DEFAULT NULL::uuid
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
  SET jit TO 'off'
  AS $function$
begin
  -- At most 100: the API cuts results at max_rows, and a claim that is cut off is a claim nobody works on.
  perform filemark.check_text('p_worker_id', p_worker_id, 200),
          filemark.check_number('p_limit', p_limit, 1, 100),
          filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_text('p_file_type', coalesce(p_file_type, '-'), 100);
  return query select * from filemark.claim_next(p_pipeline, p_worker_id, p_limit, p_file_type, p_request_id);
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
  SET jit TO 'off'
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
  SET jit TO 'off'
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

CREATE OR REPLACE FUNCTION public.extend_claim (
  p_file_url    text,
  p_claim_token bigint,
  p_pipeline    text   DEFAULT 'default'::text
)
  RETURNS timestamp WITH time zone
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_lease_end timestamptz;
begin
  update filemark.file_checkpoints f
     set lease_expires_at = greatest(f.lease_expires_at, v_now + make_interval(secs => (
           select p.lease_seconds from filemark.pipelines p where p.pipeline = p_pipeline)))
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     and f.claim_token = p_claim_token and f.status = 'processing'
  returning f.lease_expires_at into v_lease_end;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;
  return v_lease_end;
end
$function$;

CREATE OR REPLACE FUNCTION public.fail_file (
  p_file_url            text,
  p_claim_token         bigint,
  p_error_message       text,
  p_retryable           boolean DEFAULT true,
  p_error               jsonb   DEFAULT NULL::jsonb,
  p_retry_after_seconds integer DEFAULT NULL::integer,
  p_pipeline            text    DEFAULT 'default'::text
)
  RETURNS TABLE (
    status       text,
    attempts     integer,
    available_at timestamp with time zone
  )
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_text('p_error_message', p_error_message, 65536),
          filemark.check_number('p_retry_after_seconds', coalesce(p_retry_after_seconds, 0), 0, 31536000),
          filemark.check_size('p_error', p_error, 1048576);
  if p_retryable is null then
    perform filemark.refuse_argument('p_retryable', null, 'true or false');
  end if;

  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url and f.claim_token = p_claim_token
     for no key update;
  if not found or (v_file.status <> 'processing' and v_file.claim_ended is distinct from 'failed') then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;

  if v_file.status = 'processing' then
    select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
    perform filemark.record_event(
      p_pipeline, p_file_url, 'failed', v_file.processed_by, null,
      jsonb_build_object('claim_token', p_claim_token, 'attempts', v_file.attempts, 'error_message', p_error_message,
                         'error', p_error, 'items_processed', v_file.items_processed));
    perform filemark.tally(p_pipeline, 'failed');
    if v_file.superseded_by is not null then
      perform filemark.start_generation(
        p_pipeline, p_file_url, v_file.superseded_by, v_now, v_file.processed_by, 'failed');
    elsif not p_retryable or v_file.attempts >= v_settings.max_attempts then
      perform filemark.bury_file(
        v_file, case when p_retryable then 'max_attempts_exceeded' else 'not_retryable' end,
        p_error_message, p_error, 'failed', v_file.processed_by);
    else
      update filemark.file_checkpoints f
         set status = 'failed',
             claim_ended = 'failed',
             lease_expires_at = null,
             lease_check_at = null,
             available_at = v_now + coalesce(make_interval(secs => p_retry_after_seconds),
                                             filemark.backoff(v_settings, v_file.attempts)),
             error_message = p_error_message,
             error = p_error
       where f.pipeline = p_pipeline and f.file_url = p_file_url;
    end if;
  end if;

  return query
  select f.status, f.attempts, case when f.status in ('pending', 'failed') then f.available_at end
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
end
$function$;

CREATE OR REPLACE FUNCTION public.filemark_metrics()
  RETURNS filemark."text/plain"
  LANGUAGE plpgsql
  STABLE
  SECURITY DEFINER
  SET search_path TO ''
  SET jit TO 'off'
  SET enable_seqscan TO 'off'
  AS $function$
begin
  return (
    select string_agg(format(E'# HELP %1$s %2$s\n# TYPE %1$s %3$s\n%4$s', f.metric, f.help, f.type, s.lines), ''
                      order by f.position)
      from (select * from filemark.metric_families() with ordinality n (metric, type, help, position)) f
      join (select v.metric,
                   string_agg(format(E'%s%s %s\n', v.metric, '{' || nullif(v.labels, '') || '}',
                                     trim_scale(round(v.value, 3))), '' order by v.labels) as lines
              from (select * from filemark.pipeline_samples() union all select * from filemark.upkeep_samples()) v
             group by v.metric) s on s.metric = f.metric);
end
$function$;

CREATE OR REPLACE FUNCTION public.get_file_checkpoint (
  p_file_url text,
  p_pipeline text DEFAULT 'default'::text
)
  RETURNS TABLE (
    pipeline            text,
    file_url            text,
    file_type           text,
    file_timestamp      timestamp with time zone,
    size_bytes          bigint,
    etag                text,
    generation          bigint,
    superseded_by       jsonb,
    metadata            jsonb,
    status              text,
    priority            integer,
    available_at        timestamp with time zone,
    claim_token         bigint,
    claim_ended         text,
    processed_by        text,
    started_at          timestamp with time zone,
    lease_expires_at    timestamp with time zone,
    lease_check_at      timestamp with time zone,
    attempts            integer,
    cursor              jsonb,
    items_processed     bigint,
    items_total         bigint,
    accumulated_results jsonb,
    checkpoint_seq      bigint,
    checkpointed_at     timestamp with time zone,
    history_length      bigint,
    records_total       bigint,
    records_filtered    bigint,
    records_persisted   bigint,
    records_rejected    bigint,
    processing_time_ms  bigint,
    error_message       text,
    error               jsonb,
    completed_at        timestamp with time zone,
    created_at          timestamp with time zone,
    kept_since          timestamp with time zone,
    results_bytes       bigint
  )
  LANGUAGE plpgsql
  STABLE
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
begin
  perform filemark.check_key(p_pipeline, p_file_url);
  return query
  select f.pipeline::text, f.file_url::text, f.file_type, f.file_timestamp, f.size_bytes, f.etag,
         f.generation, f.superseded_by, f.metadata, f.status, f.priority, f.available_at,
         f.claim_token, f.claim_ended, f.processed_by, f.started_at, f.lease_expires_at,
         f.lease_check_at, f.attempts, f.cursor, f.items_processed, f.items_total,
         f.accumulated_results, f.checkpoint_seq, f.checkpointed_at, f.history_length,
         f.records_total, f.records_filtered, f.records_persisted, f.records_rejected,
         f.processing_time_ms, f.error_message, f.error, f.completed_at, f.created_at,
         f.kept_since, f.results_bytes
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
  if not found then
    select g.file_type, g.file_timestamp, g.generation, g.claim_token
      into file_type, file_timestamp, generation, claim_token
      from filemark.purged_files g
     where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url);
    if found then
      pipeline := p_pipeline;
      file_url := p_file_url;
      status := 'completed';
      return next;
    end if;
  end if;
end
$function$;

CREATE OR REPLACE FUNCTION public.list_file_checkpoints (
  p_status   text    DEFAULT NULL::text,
  p_limit    integer DEFAULT 100,
  p_after    text    DEFAULT NULL::text,
  p_pipeline text    DEFAULT 'default'::text
)
  RETURNS TABLE (
    pipeline            text,
    file_url            text,
    file_type           text,
    file_timestamp      timestamp with time zone,
    size_bytes          bigint,
    etag                text,
    generation          bigint,
    superseded_by       jsonb,
    metadata            jsonb,
    status              text,
    priority            integer,
    available_at        timestamp with time zone,
    claim_token         bigint,
    claim_ended         text,
    processed_by        text,
    started_at          timestamp with time zone,
    lease_expires_at    timestamp with time zone,
    lease_check_at      timestamp with time zone,
    attempts            integer,
    cursor              jsonb,
    items_processed     bigint,
    items_total         bigint,
    accumulated_results jsonb,
    checkpoint_seq      bigint,
    checkpointed_at     timestamp with time zone,
    history_length      bigint,
    records_total       bigint,
    records_filtered    bigint,
    records_persisted   bigint,
    records_rejected    bigint,
    processing_time_ms  bigint,
    error_message       text,
    error               jsonb,
    completed_at        timestamp with time zone,
    created_at          timestamp with time zone,
    kept_since          timestamp with time zone,
    results_bytes       bigint
  )
  LANGUAGE plpgsql
  STABLE
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_number('p_limit', p_limit, 1, 1000);
  if p_status not in ('pending', 'processing', 'completed', 'failed', 'dead_letter', 'skipped') then
    perform filemark.refuse_argument(
      'p_status', p_status, 'pending, processing, completed, failed, dead_letter, skipped or null');
  end if;
  return query
  select g.*
    from (select f.file_url
            from filemark.file_checkpoints f
           where f.pipeline = p_pipeline
             and f.file_url > coalesce(p_after, '')
             and (p_status is null or f.status = p_status)
           order by f.file_url
           limit p_limit) listed
   cross join lateral public.get_file_checkpoint(listed.file_url, p_pipeline) g
   order by listed.file_url;
end
$function$;

CREATE OR REPLACE FUNCTION public.pending_files (
  p_file_urls text[],
  p_pipeline  text   DEFAULT 'default'::text
)
  RETURNS TABLE (
    file_url text
  )
  LANGUAGE plpgsql
  STABLE
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_is_full boolean := false;
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  -- At most 1,000: the API cuts results at max_rows, and a file that is cut off would look taken.
  if p_file_urls is null or array_ndims(p_file_urls) > 1 then
    perform filemark.refuse_argument('p_file_urls', p_file_urls::text, 'an array of texts');
  elsif cardinality(p_file_urls) > 1000 then
    perform filemark.refuse_size('p_file_urls', cardinality(p_file_urls), 1000, 'urls');
  end if;
  perform filemark.check_text(format('p_file_urls[%s]', u.position), u.url, 2048)
     from unnest(p_file_urls) with ordinality u (url, position);

  select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  if v_settings.paused then
    return;
  end if;
  if v_settings.max_concurrency is not null then
    v_is_full := filemark.count_in_progress(p_pipeline, v_settings.max_concurrency) >= v_settings.max_concurrency;
  end if;

  return query
  select u.url
    from unnest(p_file_urls) with ordinality u (url, position)
    left join filemark.file_checkpoints f on f.pipeline = p_pipeline and f.file_url = u.url
    left join filemark.purged_files g
      on f.status is null and g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(u.url)
   where case
           when f.status is null then not v_is_full and g.file_hash is null
           else filemark.claim_refusal(
                  f.status, f.available_at, f.lease_expires_at, f.superseded_by is not null, f.attempts,
                  v_settings.max_attempts, v_now) is null
                and (f.status = 'processing' or not v_is_full)
         end
   group by u.url
   order by min(u.position);
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
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
declare
  v_max constant bigint := 9223372036854775807;
  v_now timestamptz := clock_timestamp();
begin
  return query
  select n.pipeline, n.pending, n.processing, n.completed, n.failed, n.dead_letter, n.skipped,
         n.pending + n.processing + n.completed + n.failed + n.dead_letter + n.skipped,
         case when n.first_pending_at <= v_now then
           extract(epoch from v_now - n.first_pending_at)::double precision
         end,
         least(n.records_total, v_max)::bigint, least(n.records_filtered, v_max)::bigint,
         least(n.records_persisted, v_max)::bigint, least(n.records_rejected, v_max)::bigint,
         (n.failed + n.dead_letter)::double precision / nullif(n.completed + n.failed + n.dead_letter, 0),
         l.completed_at
    from filemark.pipeline_numbers(p_pipeline) n
    left join lateral (
      select f.completed_at
        from filemark.file_checkpoints f
       where f.pipeline = n.pipeline and f.completed_at is not null
       order by f.completed_at desc
       limit 1
    ) l on true;
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
  SET jit TO 'off'
  AS $function$
declare
  v_now timestamptz := clock_timestamp();
  v_files jsonb;
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  perform filemark.check_files(p_files);
  perform filemark.ensure_pipeline(p_pipeline);
  v_files := filemark.note_purged(p_pipeline, p_files, v_now);
  registered := filemark.add_files(p_pipeline, v_files, v_now);
  if registered > 0 then
    perform filemark.tally(p_pipeline, 'registered', registered);
  end if;
  new_generations := case when registered < jsonb_array_length(v_files)
                          then filemark.note_contents(p_pipeline, v_files, v_now) else 0 end;
  unchanged := jsonb_array_length(p_files) - registered - new_generations;
  return next;
end
$function$;

CREATE OR REPLACE FUNCTION public.release_file (
  p_file_url    text,
  p_claim_token bigint,
  p_pipeline    text   DEFAULT 'default'::text
)
  RETURNS void
  LANGUAGE plpgsql
  SECURITY DEFINER
  SET search_path TO ''
  SET plan_cache_mode TO 'force_generic_plan'
  SET enable_seqscan TO 'off'
  SET enable_bitmapscan TO 'off'
  SET enable_sort TO 'off'
  SET jit TO 'off'
  AS $function$
declare
  v_file filemark.file_checkpoints;
begin
  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url and f.claim_token = p_claim_token
     for no key update;
  if v_file.claim_ended = 'released' then
    return;
  elsif v_file.status is distinct from 'processing' then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;

  if v_file.superseded_by is not null then
    perform filemark.start_generation(
      p_pipeline, p_file_url, v_file.superseded_by, clock_timestamp(), v_file.processed_by, 'released');
  else
    update filemark.file_checkpoints f
       set status = 'pending',
           claim_ended = 'released',
           lease_expires_at = null,
           lease_check_at = null,
           attempts = f.attempts - 1
     where f.pipeline = p_pipeline and f.file_url = p_file_url;
  end if;
  perform filemark.tally(p_pipeline, 'released');
  perform filemark.record_event(
    p_pipeline, p_file_url, 'released', v_file.processed_by, null,
    jsonb_build_object('claim_token', p_claim_token, 'items_processed', v_file.items_processed));
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
  SET jit TO 'off'
  AS $function$
declare
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

  return query select 'pending', filemark.put_back(v_file, v_checkpoint, p_from, p_force, p_reason, p_actor);
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
  SET jit TO 'off'
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
         completed_at = null,
         kept_since = null
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
  perform filemark.tally_reopened(v_file),
          filemark.close_dead_letter(p_pipeline, p_file_url, 'skipped', p_reason, p_actor);
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

ALTER TABLE "filemark"."file_checkpoints"
  ADD CONSTRAINT "only_a_completed_file_is_kept" CHECK (((kept_since IS NULL) OR (status = 'completed'::text)));

CREATE VIEW "filemark"."alerts" WITH (security_invoker=true) AS  SELECT alert,
    severity,
    pipeline,
    file_url,
    value,
    threshold,
    since,
    message,
    hint
   FROM filemark.current_alerts() a(alert, severity, pipeline, file_url, value, threshold, since, message, hint);

CREATE VIEW "filemark"."dead_letters" WITH (security_invoker=true) AS  SELECT d.pipeline,
    d.file_url,
    f.file_type,
    f.priority,
    d.reason,
    d.opened_at,
    d.attempts,
    d.error_message AS last_error,
    d.errors,
    f.items_processed,
    f.items_total,
    f.processed_by,
    format('select * from public.requeue_file(%L, p_pipeline => %L);'::text, d.file_url, d.pipeline) AS requeue
   FROM (filemark.dead_letter_entries d
     JOIN filemark.file_checkpoints f ON (((f.pipeline = d.pipeline) AND (f.file_url = d.file_url))))
  WHERE (d.resolution = 'pending'::text)
  ORDER BY f.priority DESC, (array_position(ARRAY['lease_expired'::text, 'max_attempts_exceeded'::text, 'not_retryable'::text, 'manual'::text], d.reason)), d.opened_at, d.entry_id;

CREATE VIEW "filemark"."files" WITH (security_invoker=true) AS  SELECT f.pipeline,
    f.file_url,
    f.file_type,
    f.generation,
    f.stands AS status,
    (EXTRACT(epoch FROM (statement_timestamp() -
        CASE f.stands
            WHEN 'processing'::text THEN f.started_at
            WHEN 'completed'::text THEN f.completed_at
            WHEN 'pending'::text THEN LEAST(f.available_at, statement_timestamp())
            WHEN 'failed'::text THEN LEAST(f.available_at, statement_timestamp())
            ELSE ( SELECT e.occurred_at
               FROM filemark.file_events e
              WHERE ((e.pipeline = f.pipeline) AND (e.file_url = f.file_url) AND (e.event = ANY (ARRAY['dead_lettered'::text, 'skipped'::text])))
              ORDER BY e.event_id DESC
             LIMIT 1)
        END)))::double precision AS age_seconds,
        CASE
            WHEN ((f.stands = ANY (ARRAY['pending'::text, 'failed'::text])) AND (f.available_at > statement_timestamp())) THEN (EXTRACT(epoch FROM (f.available_at - statement_timestamp())))::double precision
            ELSE NULL::double precision
        END AS due_in_seconds,
        CASE
            WHEN (f.stands = 'processing'::text) THEN f.processed_by
            ELSE NULL::text
        END AS holder,
        CASE
            WHEN (f.stands = 'processing'::text) THEN
            CASE
                WHEN (f.lease_expires_at <= statement_timestamp()) THEN 'expired'::text
                WHEN (f.lease_expires_at <= (statement_timestamp() + make_interval(secs => ((0.2 * (p.lease_seconds)::numeric))::double precision))) THEN 'warning'::text
                ELSE 'healthy'::text
            END
            ELSE NULL::text
        END AS lease_state,
    (EXTRACT(epoch FROM (f.lease_expires_at - statement_timestamp())))::double precision AS lease_left_seconds,
    f.items_processed,
    f.items_total,
    LEAST(((f.items_processed)::double precision / (NULLIF(f.items_total, 0))::double precision), (1)::double precision) AS progress_ratio,
    speed.items_per_second,
    ((GREATEST((f.items_total - f.items_processed), (0)::bigint))::double precision / NULLIF(speed.items_per_second, (0)::double precision)) AS estimated_seconds_left,
    f.checkpoint_seq,
    (EXTRACT(epoch FROM (statement_timestamp() - f.checkpointed_at)))::double precision AS checkpoint_age_seconds,
    f.history_length,
    f.results_bytes,
    f.attempts,
    p.max_attempts,
    f.error_message AS last_error
   FROM ((( SELECT 'processing'::text AS stands,
            c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE ((c.status = 'processing'::text) AND (c.lease_check_at IS NOT NULL))
        UNION ALL
         SELECT 'pending'::text AS stands,
            c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE (c.status = 'pending'::text)
        UNION ALL
         SELECT 'failed'::text AS stands,
            c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE (c.status = 'failed'::text)
        UNION ALL
         SELECT 'dead_letter'::text AS stands,
            c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE (c.status = 'dead_letter'::text)
        UNION ALL
         SELECT 'skipped'::text AS stands,
            c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE (c.status = 'skipped'::text)
        UNION ALL
         SELECT 'completed'::text AS stands,
            c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE ((c.status = 'completed'::text) AND (c.completed_at IS NOT NULL))) f
     JOIN filemark.pipelines p ON ((p.pipeline = f.pipeline)))
     LEFT JOIN LATERAL ( SELECT (((max(h.items_processed) FILTER (WHERE h.is_own) - COALESCE(max(h.items_processed) FILTER (WHERE (NOT h.is_own)), (
                CASE
                    WHEN (min(h.checkpoint_seq) = 1) THEN 0
                    ELSE NULL::integer
                END)::bigint, min(h.items_processed))))::double precision / NULLIF((EXTRACT(epoch FROM (max(h.saved_at) FILTER (WHERE h.is_own) -
                CASE
                    WHEN (bool_or((NOT h.is_own)) OR (min(h.checkpoint_seq) = 1)) THEN f.started_at
                    ELSE min(h.saved_at)
                END)))::double precision, (0)::double precision)) AS items_per_second
           FROM ( SELECT r.checkpoint_seq,
                    r.items_processed,
                    r.saved_at,
                    (r.claim_token = f.claim_token) AS is_own
                   FROM filemark.checkpoint_history r
                  WHERE ((r.pipeline = f.pipeline) AND (r.file_url = f.file_url))
                  ORDER BY r.checkpoint_seq DESC
                 LIMIT 11) h
          WHERE (f.stands = 'processing'::text)) speed ON (true));

CREATE VIEW "filemark"."infrequent_checkpoints" WITH (security_invoker=true) AS  SELECT f.pipeline,
    f.file_url,
    f.processed_by AS holder,
    (EXTRACT(epoch FROM (statement_timestamp() - f.started_at)))::double precision AS claim_age_seconds,
    r.checkpoints_per_minute,
    p.min_checkpoints_per_minute,
    f.checkpointed_at,
    f.started_at,
    f.items_processed,
    f.items_total
   FROM (((((filemark.pipelines p
     CROSS JOIN LATERAL ( SELECT c_1.pipeline,
            c_1.file_url,
            c_1.file_type,
            c_1.file_timestamp,
            c_1.size_bytes,
            c_1.etag,
            c_1.generation,
            c_1.superseded_by,
            c_1.metadata,
            c_1.status,
            c_1.priority,
            c_1.available_at,
            c_1.claim_token,
            c_1.claim_ended,
            c_1.request_id,
            c_1.processed_by,
            c_1.started_at,
            c_1.lease_expires_at,
            c_1.lease_check_at,
            c_1.attempts,
            c_1.cursor,
            c_1.items_processed,
            c_1.items_total,
            c_1.accumulated_results,
            c_1.checkpoint_seq,
            c_1.checkpointed_at,
            c_1.history_length,
            c_1.records_total,
            c_1.records_filtered,
            c_1.records_persisted,
            c_1.records_rejected,
            c_1.processing_time_ms,
            c_1.error_message,
            c_1.error,
            c_1.completed_at,
            c_1.created_at,
            c_1.kept_since,
            c_1.results_bytes
           FROM filemark.file_checkpoints c_1
          WHERE ((c_1.pipeline = p.pipeline) AND (c_1.lease_check_at IS NOT NULL))
         OFFSET 0) f)
     CROSS JOIN filemark.alert_limits() c(infrequent_after_seconds, failure_minimum, reclaim_within_seconds, maintenance_overdue_seconds, held_snapshot_seconds, held_dead_rows))
     CROSS JOIN LATERAL ( VALUES (LEAST(10, p.history_limit))) k(last))
     LEFT JOIN filemark.checkpoint_history h ON (((h.pipeline = f.pipeline) AND (h.file_url = f.file_url) AND (h.checkpoint_seq = ((f.checkpoint_seq - k.last) + 1)) AND (h.claim_token = f.claim_token))))
     CROSS JOIN LATERAL ( SELECT ((60)::double precision *
                CASE
                    WHEN (h.saved_at IS NOT NULL) THEN ((k.last)::double precision / (EXTRACT(epoch FROM (statement_timestamp() - h.saved_at)))::double precision)
                    ELSE ((( SELECT count(*) AS count
                       FROM filemark.checkpoint_history s
                      WHERE ((s.pipeline = f.pipeline) AND (s.file_url = f.file_url) AND (s.checkpoint_seq > (f.checkpoint_seq - k.last)) AND (s.claim_token = f.claim_token))))::double precision / (EXTRACT(epoch FROM (statement_timestamp() - f.started_at)))::double precision)
                END) AS checkpoints_per_minute) r)
  WHERE ((f.lease_expires_at > statement_timestamp()) AND (f.started_at <= (statement_timestamp() - make_interval(secs => (c.infrequent_after_seconds)::double precision))) AND (r.checkpoints_per_minute < p.min_checkpoints_per_minute))
  ORDER BY r.checkpoints_per_minute, f.started_at;

CREATE VIEW "filemark"."large_results" WITH (security_invoker=true) AS  SELECT f.pipeline,
    f.file_url,
    f.status,
    f.results_bytes,
    pg_size_pretty(f.results_bytes) AS results_size,
    p.max_results_bytes,
    f.processed_by AS holder,
    f.checkpointed_at
   FROM (filemark.pipelines p
     CROSS JOIN LATERAL ( SELECT c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE ((c.pipeline = p.pipeline) AND (c.lease_check_at IS NOT NULL))
         OFFSET 0) f)
  WHERE (f.results_bytes > 100000)
  ORDER BY f.results_bytes DESC, f.pipeline, f.file_url
 LIMIT 20;

CREATE VIEW "filemark"."maintenance_due" WITH (security_invoker=true) AS  SELECT pipeline,
    LEAST(( SELECT t.occurred_at
           FROM filemark.tallies t
          WHERE (t.pipeline = p.pipeline)
          ORDER BY t.tally_id
         LIMIT 1), ( SELECT l.listed_at
           FROM filemark.long_histories l
          WHERE (l.pipeline = p.pipeline)
          ORDER BY l.listed_at, l.file_url
         LIMIT 1), ( SELECT (f.kept_since + make_interval(days => p.keep_checkpoints_days))
           FROM filemark.file_checkpoints f
          WHERE ((f.pipeline = p.pipeline) AND (f.kept_since IS NOT NULL))
          ORDER BY f.kept_since
         LIMIT 1), ( SELECT (f.completed_at + make_interval(days => p.keep_files_days))
           FROM filemark.file_checkpoints f
          WHERE ((f.pipeline = p.pipeline) AND (f.completed_at IS NOT NULL) AND (p.keep_files_days IS NOT NULL))
          ORDER BY f.completed_at
         LIMIT 1)) AS due_since,
    ( SELECT r.finished_at
           FROM filemark.maintenance_runs r
          WHERE (r.pipeline = p.pipeline)
          ORDER BY r.run_id DESC
         LIMIT 1) AS last_run_at
   FROM filemark.pipelines p;

CREATE VIEW "filemark"."pipeline_activity" WITH (security_invoker=true) AS  SELECT p.pipeline,
    a.hour,
    a.files_registered,
    a.files_overwritten,
    a.files_completed,
    a.records_total,
    a.records_filtered,
    a.records_persisted,
    a.records_rejected,
    a.failures,
    a.lost_leases,
    a.releases
   FROM (filemark.pipelines p
     CROSS JOIN LATERAL ( SELECT w.hour,
            (COALESCE(sum(w.files) FILTER (WHERE (w.what = 'registered'::text)), (0)::numeric))::bigint AS files_registered,
            (COALESCE(sum(w.files) FILTER (WHERE (w.what = 'overwritten'::text)), (0)::numeric))::bigint AS files_overwritten,
            (COALESCE(sum(w.files) FILTER (WHERE (w.what = 'completed'::text)), (0)::numeric))::bigint AS files_completed,
            COALESCE(sum(w.records_total) FILTER (WHERE (w.what = 'completed'::text)), (0)::numeric) AS records_total,
            COALESCE(sum(w.records_filtered) FILTER (WHERE (w.what = 'completed'::text)), (0)::numeric) AS records_filtered,
            COALESCE(sum(w.records_persisted) FILTER (WHERE (w.what = 'completed'::text)), (0)::numeric) AS records_persisted,
            COALESCE(sum(w.records_rejected) FILTER (WHERE (w.what = 'completed'::text)), (0)::numeric) AS records_rejected,
            (COALESCE(sum(w.files) FILTER (WHERE (w.what = 'failed'::text)), (0)::numeric))::bigint AS failures,
            (COALESCE(sum(w.files) FILTER (WHERE (w.what = 'lost'::text)), (0)::numeric))::bigint AS lost_leases,
            (COALESCE(sum(w.files) FILTER (WHERE (w.what = 'released'::text)), (0)::numeric))::bigint AS releases
           FROM ( SELECT h.hour,
                    h.what,
                    h.files,
                    h.records_total,
                    h.records_filtered,
                    h.records_persisted,
                    h.records_rejected
                   FROM filemark.activity h
                  WHERE ((h.pipeline = p.pipeline) AND (h.hour > (statement_timestamp() - '7 days'::interval)))
                UNION ALL
                 SELECT date_trunc('hour'::text, t.occurred_at, 'UTC'::text) AS date_trunc,
                    t.what,
                    sum(t.files) AS sum,
                    sum(t.records_total) AS sum,
                    sum(t.records_filtered) AS sum,
                    sum(t.records_persisted) AS sum,
                    sum(t.records_rejected) AS sum
                   FROM filemark.tallies t
                  WHERE ((t.pipeline = p.pipeline) AND (t.occurred_at > (statement_timestamp() - '7 days'::interval)))
                  GROUP BY (date_trunc('hour'::text, t.occurred_at, 'UTC'::text)), t.what) w
          GROUP BY w.hour) a)
  ORDER BY p.pipeline, a.hour DESC;

CREATE VIEW "filemark"."recent_activity" WITH (security_invoker=true) AS  SELECT p.pipeline,
    r.since,
    (COALESCE(sum(a.files) FILTER (WHERE (a.what = 'completed'::text)), (0)::numeric))::bigint AS files_completed,
    (COALESCE(sum(a.files) FILTER (WHERE (a.what = 'failed'::text)), (0)::numeric))::bigint AS failures,
    (COALESCE(sum(a.files) FILTER (WHERE (a.what = 'lost'::text)), (0)::numeric))::bigint AS lost_leases
   FROM ((filemark.pipelines p
     CROSS JOIN ( SELECT (date_trunc('hour'::text, statement_timestamp(), 'UTC'::text) - '01:00:00'::interval) AS since
         OFFSET 0) r)
     LEFT JOIN LATERAL ( SELECT h.what,
            h.files
           FROM filemark.activity h
          WHERE ((h.pipeline = p.pipeline) AND (h.hour >= r.since))
        UNION ALL
         SELECT t.what,
            sum(t.files) AS sum
           FROM filemark.tallies t
          WHERE ((t.pipeline = p.pipeline) AND (t.occurred_at >= r.since))
          GROUP BY t.what) a ON (true))
  GROUP BY p.pipeline, r.since;

CREATE VIEW "filemark"."backlog" WITH (security_invoker=true) AS  SELECT p.pipeline,
    p.paused,
    q.due,
    q.due_retries,
    q.waiting,
    q.oldest_due_at,
    (EXTRACT(epoch FROM (statement_timestamp() - q.oldest_due_at)))::double precision AS oldest_due_age_seconds,
    p.max_backlog_age_seconds,
    w.in_progress,
    p.max_concurrency,
    d.completed_per_hour,
    (((q.due * 3600))::double precision / NULLIF(d.completed_per_hour, (0)::double precision)) AS estimated_seconds_left
   FROM (((filemark.pipelines p
     CROSS JOIN LATERAL ( SELECT count(*) FILTER (WHERE (f.available_at <= statement_timestamp())) AS due,
            count(*) FILTER (WHERE ((f.status = 'failed'::text) AND (f.available_at <= statement_timestamp()))) AS due_retries,
            (count(*) - count(*) FILTER (WHERE (f.available_at <= statement_timestamp()))) AS waiting,
                CASE
                    WHEN (min(f.available_at) <= statement_timestamp()) THEN min(f.available_at)
                    ELSE NULL::timestamp with time zone
                END AS oldest_due_at
           FROM filemark.file_checkpoints f
          WHERE ((f.pipeline = p.pipeline) AND (f.status = ANY (ARRAY['pending'::text, 'failed'::text])))) q)
     CROSS JOIN LATERAL ( SELECT count(*) AS in_progress
           FROM filemark.file_checkpoints f
          WHERE ((f.pipeline = p.pipeline) AND (f.lease_check_at IS NOT NULL))) w)
     CROSS JOIN LATERAL ( SELECT (((a.files_completed * 3600))::double precision / (EXTRACT(epoch FROM (statement_timestamp() - a.since)))::double precision) AS completed_per_hour
           FROM filemark.recent_activity a
          WHERE (a.pipeline = p.pipeline)) d)
  ORDER BY p.pipeline;

CREATE VIEW "filemark"."stale_checkpoints" WITH (security_invoker=true) AS  SELECT f.pipeline,
    f.file_url,
    f.processed_by AS holder,
    (EXTRACT(epoch FROM (statement_timestamp() - s.since)))::double precision AS checkpoint_age_seconds,
    p.stale_after_seconds,
    s.since,
    f.started_at,
    f.lease_expires_at,
    f.checkpoint_seq,
    f.items_processed,
    f.items_total,
    f.attempts,
    p.max_attempts
   FROM ((filemark.pipelines p
     CROSS JOIN LATERAL ( SELECT c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE ((c.pipeline = p.pipeline) AND (c.lease_check_at IS NOT NULL))
         OFFSET 0) f)
     CROSS JOIN LATERAL ( VALUES (GREATEST(f.checkpointed_at, f.started_at))) s(since))
  WHERE (s.since <= (statement_timestamp() - make_interval(secs => (p.stale_after_seconds)::double precision)))
  ORDER BY s.since;

CREATE VIEW "filemark"."storage_report" WITH (security_invoker=true) AS  SELECT (c.relname)::text AS table_name,
        CASE
            WHEN (c.reltuples >= (0)::double precision) THEN (c.reltuples)::bigint
            ELSE NULL::bigint
        END AS estimated_rows,
    COALESCE(s.n_dead_tup, (0)::bigint) AS dead_rows,
    pg_relation_size((c.oid)::regclass) AS rows_bytes,
    COALESCE(pg_total_relation_size((NULLIF(c.reltoastrelid, (0)::oid))::regclass), (0)::bigint) AS toast_bytes,
    pg_indexes_size((c.oid)::regclass) AS indexes_bytes,
    pg_total_relation_size((c.oid)::regclass) AS total_bytes,
    GREATEST(s.last_vacuum, s.last_autovacuum) AS last_vacuum_at,
    (((h.kind || ' '::text) || h.name) || COALESCE(((' ('::text || h.held_by) || ')'::text), ''::text)) AS oldest_snapshot,
    (EXTRACT(epoch FROM (statement_timestamp() - h.since)))::double precision AS oldest_snapshot_age_seconds
   FROM ((pg_class c
     LEFT JOIN pg_stat_all_tables s ON ((s.relid = c.oid)))
     LEFT JOIN ( SELECT held_snapshots.kind,
            held_snapshots.name,
            held_snapshots.held_by,
            held_snapshots.since,
            held_snapshots.transactions
           FROM filemark.held_snapshots() held_snapshots(kind, name, held_by, since, transactions)
         LIMIT 1) h ON (true))
  WHERE ((c.relnamespace = ('filemark'::regnamespace)::oid) AND (c.relkind = 'r'::"char"))
  ORDER BY (pg_total_relation_size((c.oid)::regclass)) DESC;

CREATE VIEW "filemark"."watched_histories" WITH (security_invoker=true) AS  SELECT f.pipeline,
    f.file_url,
    f.status,
    f.checkpoint_seq,
    f.history_length,
    p.history_limit,
    p.max_history,
    f.checkpointed_at
   FROM (filemark.pipelines p
     CROSS JOIN LATERAL ( SELECT c.pipeline,
            c.file_url,
            c.file_type,
            c.file_timestamp,
            c.size_bytes,
            c.etag,
            c.generation,
            c.superseded_by,
            c.metadata,
            c.status,
            c.priority,
            c.available_at,
            c.claim_token,
            c.claim_ended,
            c.request_id,
            c.processed_by,
            c.started_at,
            c.lease_expires_at,
            c.lease_check_at,
            c.attempts,
            c.cursor,
            c.items_processed,
            c.items_total,
            c.accumulated_results,
            c.checkpoint_seq,
            c.checkpointed_at,
            c.history_length,
            c.records_total,
            c.records_filtered,
            c.records_persisted,
            c.records_rejected,
            c.processing_time_ms,
            c.error_message,
            c.error,
            c.completed_at,
            c.created_at,
            c.kept_since,
            c.results_bytes
           FROM filemark.file_checkpoints c
          WHERE ((c.pipeline = p.pipeline) AND (c.lease_check_at IS NOT NULL))
         OFFSET 0) f)
UNION ALL
 SELECT p.pipeline,
    f.file_url,
    f.status,
    f.checkpoint_seq,
    f.history_length,
    p.history_limit,
    p.max_history,
    f.checkpointed_at
   FROM ((filemark.pipelines p
     CROSS JOIN LATERAL ( SELECT l.file_url
           FROM filemark.long_histories l
          WHERE (l.pipeline = p.pipeline)
          ORDER BY l.listed_at, l.file_url
         LIMIT 1000) listed)
     JOIN filemark.file_checkpoints f ON (((f.pipeline = p.pipeline) AND (f.file_url = listed.file_url))))
  WHERE (f.lease_check_at IS NULL);

CREATE VIEW "filemark"."large_histories" WITH (security_invoker=true) AS  SELECT pipeline,
    file_url,
    status,
    history_length,
    history_limit,
    max_history,
    checkpointed_at
   FROM filemark.watched_histories w
  WHERE (history_length > 50)
  ORDER BY history_length DESC, pipeline, file_url
 LIMIT 20;

CREATE UNIQUE INDEX alert_log_open ON filemark.alert_log USING btree (pipeline, alert, file_url) NULLS NOT DISTINCT
  WHERE (resolved_at IS NULL);

CREATE INDEX claim_requests_by_age ON filemark.claim_requests USING btree (pipeline, claimed_at);

CREATE INDEX dead_letter_entries_by_file ON filemark.dead_letter_entries USING btree (pipeline, file_url, entry_id);

CREATE UNIQUE INDEX dead_letter_entries_pending ON filemark.dead_letter_entries USING btree (pipeline, file_url)
  WHERE (resolution = 'pending'::text);

CREATE INDEX file_checkpoints_completed ON filemark.file_checkpoints USING btree (pipeline, completed_at)
  WHERE (completed_at IS NOT NULL);

CREATE INDEX file_checkpoints_kept ON filemark.file_checkpoints USING btree (pipeline, kept_since)
  WHERE (kept_since IS NOT NULL);

CREATE INDEX file_checkpoints_parked ON filemark.file_checkpoints USING btree (pipeline, status, file_url)
  WHERE (status = ANY (ARRAY['dead_letter'::text, 'skipped'::text]));

CREATE INDEX file_checkpoints_queue ON filemark.file_checkpoints USING btree (pipeline, priority DESC, available_at, file_url) INCLUDE (status)
  WHERE (status = ANY (ARRAY['pending'::text, 'failed'::text]));

CREATE INDEX long_histories_by_age ON filemark.long_histories USING btree (pipeline, listed_at, file_url);

CREATE POLICY "monitor_reads" ON "filemark"."activity"
  FOR SELECT
  TO "filemark_monitor"
  USING (true);

CREATE POLICY "monitor_reads" ON "filemark"."alert_log"
  FOR SELECT
  TO "filemark_monitor"
  USING (true);

CREATE POLICY "operator_reads" ON "filemark"."alert_webhooks"
  FOR SELECT
  TO "filemark_operator"
  USING (true);

CREATE POLICY "monitor_reads" ON "filemark"."dead_letter_entries"
  FOR SELECT
  TO "filemark_monitor"
  USING (true);

CREATE POLICY "monitor_reads" ON "filemark"."long_histories"
  FOR SELECT
  TO "filemark_monitor"
  USING (true);

CREATE POLICY "monitor_reads" ON "filemark"."maintenance_runs"
  FOR SELECT
  TO "filemark_monitor"
  USING (true);

CREATE POLICY "monitor_reads" ON "filemark"."purged_files"
  FOR SELECT
  TO "filemark_monitor"
  USING (true);

CREATE POLICY "monitor_reads" ON "filemark"."tallies"
  FOR SELECT
  TO "filemark_monitor"
  USING (true);

COMMENT ON COLUMN "filemark"."activity"."files" IS 'To how many files, or claims.';

COMMENT ON COLUMN "filemark"."activity"."hour" IS 'The beginning of the hour, in UTC, for 90 days; in the rows of 1970 stands what there ever was.';

COMMENT ON COLUMN "filemark"."activity"."last_at" IS 'When it last happened in that hour.';

COMMENT ON COLUMN "filemark"."activity"."pipeline" IS 'The pipeline.';

COMMENT ON COLUMN "filemark"."activity"."records_filtered" IS 'Sum of the tallies.';

COMMENT ON COLUMN "filemark"."activity"."records_persisted" IS 'Sum of the tallies.';

COMMENT ON COLUMN "filemark"."activity"."records_rejected" IS 'Sum of the tallies.';

COMMENT ON COLUMN "filemark"."activity"."records_total" IS 'Sum of the tallies.';

COMMENT ON COLUMN "filemark"."activity"."what" IS 'What happened, as in filemark.tallies.';

COMMENT ON COLUMN "filemark"."alert_log"."alert" IS 'Which alert it is.';

COMMENT ON COLUMN "filemark"."alert_log"."alert_id" IS 'Numbers the alerts.';

COMMENT ON COLUMN "filemark"."alert_log"."file_url" IS 'The file it is about; null for the whole pipeline.';

COMMENT ON COLUMN "filemark"."alert_log"."hint" IS 'What to do.';

COMMENT ON COLUMN "filemark"."alert_log"."last_seen" IS 'When it was last seen.';

COMMENT ON COLUMN "filemark"."alert_log"."message" IS 'What is wrong, as last seen.';

COMMENT ON COLUMN "filemark"."alert_log"."opened_at" IS 'When it was first seen.';

COMMENT ON COLUMN "filemark"."alert_log"."pipeline" IS 'The pipeline; empty for the whole database.';

COMMENT ON COLUMN "filemark"."alert_log"."resolved_at" IS 'When it was seen to be gone; null while it is open.';

COMMENT ON COLUMN "filemark"."alert_log"."severity" IS 'warning or critical.';

COMMENT ON COLUMN "filemark"."alert_log"."threshold" IS 'What it is measured against.';

COMMENT ON COLUMN "filemark"."alert_log"."value" IS 'What was measured, as last seen.';

COMMENT ON COLUMN "filemark"."alert_webhooks"."headers" IS 'Headers of the request, each a text or {"vault": name}.';

COMMENT ON COLUMN "filemark"."alert_webhooks"."pipeline" IS 'Whose alerts; empty for those of the database and of all pipelines that have no webhook of their own.';

COMMENT ON COLUMN "filemark"."alert_webhooks"."url" IS 'The address.';

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

COMMENT ON COLUMN "filemark"."dead_letter_entries"."attempts" IS 'Attempts it had at its last position.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."entry_id" IS 'Numbers the entries in the order they were opened.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."error_message" IS 'The last error.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."errors" IS 'How each of these attempts ended, the oldest first: an array of objects with event, occurred_at, claim_token, attempts, processed_by and, if the worker gave one, error_message and error.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."file" IS 'The file''s row as it was then.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."file_url" IS 'The file.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."notes" IS 'What was found out, or why it was resolved.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."opened_at" IS 'When it became one.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."pipeline" IS 'The pipeline the file is in.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."reason" IS 'Why it is a dead letter: max_attempts_exceeded, not_retryable, lease_expired or manual.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."resolution" IS 'What became of it: pending, requeued, skipped, manually_resolved or permanently_failed.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."resolved_at" IS 'When it was resolved; null while it is pending.';

COMMENT ON COLUMN "filemark"."dead_letter_entries"."resolved_by" IS 'Who resolved it; null while it is pending.';

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

COMMENT ON COLUMN "filemark"."file_checkpoints"."kept_since" IS 'When a file completed whose checkpoint and results are still kept; null once they are cleared.';

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

COMMENT ON COLUMN "filemark"."file_checkpoints"."results_bytes" IS 'The size of accumulated_results as JSON text.';

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

COMMENT ON COLUMN "filemark"."long_histories"."file_url" IS 'The file.';

COMMENT ON COLUMN "filemark"."long_histories"."listed_at" IS 'When its history became too long: the first is cut first.';

COMMENT ON COLUMN "filemark"."long_histories"."pipeline" IS 'The pipeline the file is in.';

COMMENT ON COLUMN "filemark"."maintenance_runs"."affected" IS 'Per task, how many files it changed, or tallies it added up.';

COMMENT ON COLUMN "filemark"."maintenance_runs"."finished_at" IS 'When it was done with it.';

COMMENT ON COLUMN "filemark"."maintenance_runs"."pipeline" IS 'The pipeline.';

COMMENT ON COLUMN "filemark"."maintenance_runs"."run_id" IS 'Numbers the runs.';

COMMENT ON COLUMN "filemark"."maintenance_runs"."started_at" IS 'When the run began with this pipeline.';

COMMENT ON COLUMN "filemark"."pipelines"."backoff_base_seconds" IS 'How long a failed file waits for its second attempt; doubled for each further one. Allowed: 0 to 604800.';

COMMENT ON COLUMN "filemark"."pipelines"."backoff_jitter" IS 'The part of the wait that is random, up or down. Allowed: 0 to 1.';

COMMENT ON COLUMN "filemark"."pipelines"."backoff_max_seconds" IS 'The longest wait between two attempts. Allowed: 0 to 31536000.';

COMMENT ON COLUMN "filemark"."pipelines"."created_at" IS 'When the pipeline was first used.';

COMMENT ON COLUMN "filemark"."pipelines"."cursor_limit_bytes" IS 'The largest cursor that is accepted. Allowed: 1 to 268435456.';

COMMENT ON COLUMN "filemark"."pipelines"."expect_file_every_seconds" IS 'Alert missing_files when no new file comes for this long; null for never. Allowed: 1 to 31536000 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."history_limit" IS 'Checkpoints that maintenance keeps of a file''s history. Allowed: 1 to 1000000.';

COMMENT ON COLUMN "filemark"."pipelines"."keep_checkpoints_days" IS 'Days after which maintenance clears the checkpoint of a completed file. Allowed: 0 to 36500.';

COMMENT ON COLUMN "filemark"."pipelines"."keep_files_days" IS 'Days after which maintenance purges a completed file; null for never. Allowed: 0 to 36500 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."lease_seconds" IS 'How long a claim, a checkpoint or extend_claim holds a file. Allowed: 1 to 604800.';

COMMENT ON COLUMN "filemark"."pipelines"."max_attempts" IS 'Claims a file gets at one position, the first included, before it is a dead letter. Allowed: 1 to 1000.';

COMMENT ON COLUMN "filemark"."pipelines"."max_backlog_age_seconds" IS 'Alert backlog_age when a file is due for longer; null for never. Allowed: 1 to 31536000 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."max_concurrency" IS 'Files in progress at a time; null for no limit. Allowed: 1 to 100000 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."max_failure_ratio" IS 'Alert failure_ratio when more of the attempts fail; 1 for never. Allowed: 0 to 1.';

COMMENT ON COLUMN "filemark"."pipelines"."max_history" IS 'Alert large_history when a file''s history is longer. Allowed: 1 to 1000000000.';

COMMENT ON COLUMN "filemark"."pipelines"."max_rejected" IS 'Reserved: alert when more records of a file are rejected; null for never. Allowed: 0 to 1000000000 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."max_rejected_ratio" IS 'Reserved: alert when more of a file''s records are rejected; null for never. Allowed: 0 to 1 or null.';

COMMENT ON COLUMN "filemark"."pipelines"."max_results_bytes" IS 'Alert large_results when the accumulated_results of a file in progress are larger. Allowed: 1 to 268435456.';

COMMENT ON COLUMN "filemark"."pipelines"."min_checkpoints_per_minute" IS 'Alert infrequent_checkpoints when a file in progress saves less often; 0 for never. Allowed: 0 to 1000000.';

COMMENT ON COLUMN "filemark"."pipelines"."on_overwrite" IS 'What another etag of a known file means: reprocess it as a new generation, or ignore it. Allowed: ''reprocess'' or ''ignore''.';

COMMENT ON COLUMN "filemark"."pipelines"."paused" IS 'Whether claims are refused; files in progress go on. Allowed: true or false.';

COMMENT ON COLUMN "filemark"."pipelines"."pipeline" IS 'The pipeline''s name, 1 to 100 bytes.';

COMMENT ON COLUMN "filemark"."pipelines"."results_limit_bytes" IS 'The largest accumulated_results that is accepted. Allowed: 1 to 268435456.';

COMMENT ON COLUMN "filemark"."pipelines"."stale_after_seconds" IS 'Alert stale_checkpoint when a file in progress saves nothing for this long. Allowed: 1 to 31536000.';

COMMENT ON COLUMN "filemark"."purged_files"."claim_token" IS 'The number of its last claim: a later one is higher.';

COMMENT ON COLUMN "filemark"."purged_files"."etag_hash" IS 'The same of its etag; null when it had none.';

COMMENT ON COLUMN "filemark"."purged_files"."file_hash" IS 'The first 16 bytes of the SHA-256 of its file_url.';

COMMENT ON COLUMN "filemark"."purged_files"."file_timestamp" IS 'When the file was made, as its source said.';

COMMENT ON COLUMN "filemark"."purged_files"."file_type" IS 'The kind of file.';

COMMENT ON COLUMN "filemark"."purged_files"."generation" IS 'Which content of that name it was.';

COMMENT ON COLUMN "filemark"."purged_files"."pipeline" IS 'The pipeline the file was in.';

COMMENT ON COLUMN "filemark"."tallies"."files" IS 'To how many files, or claims.';

COMMENT ON COLUMN "filemark"."tallies"."occurred_at" IS 'When it happened.';

COMMENT ON COLUMN "filemark"."tallies"."pipeline" IS 'The pipeline.';

COMMENT ON COLUMN "filemark"."tallies"."records_filtered" IS 'Records of these that were left out on purpose.';

COMMENT ON COLUMN "filemark"."tallies"."records_persisted" IS 'Records of these that were written.';

COMMENT ON COLUMN "filemark"."tallies"."records_rejected" IS 'Records of these that were rejected.';

COMMENT ON COLUMN "filemark"."tallies"."records_total" IS 'Records in these files, when they were completed or reopened.';

COMMENT ON COLUMN "filemark"."tallies"."tally_id" IS 'Numbers the tallies.';

COMMENT ON COLUMN "filemark"."tallies"."what" IS 'What happened: files were registered, overwritten, completed or purged; completed ones were reopened; claims were superseded, failed, released, lost, or taken from their holder by force.';

COMMENT ON DOMAIN "filemark"."text/plain" IS 'Text that the API answers as it is, not as JSON.';

COMMENT ON FUNCTION "filemark"."alert_count"() IS 'How many rows filemark.alerts has: zero when nothing is wrong, and only then.

Returns: the count.';

COMMENT ON FUNCTION "filemark"."alert_limits"() IS 'The limits of alerts that are no setting of a pipeline.

Returns: one row.
infrequent_after_seconds: how long a claim must have run before infrequent_checkpoints looks at it.
failure_minimum: how many attempts must have ended in this hour and the last before failure_ratio is looked at.
reclaim_within_seconds: how long a lost claim may wait while maintenance runs; without maintenance it may not at all.
maintenance_overdue_seconds: how long work may wait for maintenance.
held_snapshot_seconds: how long a transaction may keep dead rows from being removed.
held_dead_rows: how many dead rows of filemark.file_checkpoints it takes to slow claims.';

COMMENT ON FUNCTION "filemark"."assert_claim"(text, bigint, text) IS 'Locks a claimed file until the transaction ends, or raises that the claim is lost.

Call it first in your own transaction or function: what you write then commits only while the claim stands.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_pipeline: the pipeline of the file.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost.';

COMMENT ON FUNCTION "filemark"."begin_persist"(text, bigint, jsonb, bigint, jsonb, bigint, text) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."check_alerts"(integer) IS 'Brings filemark.alert_log up to date and sends word of each alert that opened or was resolved.

Each is a notification on the channel filemark_alerts, a JSON object with event and the columns below, without hint,
message or file_url where it would be too long for one; and part of a post to the webhook, where there is one. An
alert that comes back before it is resolved is the same alert. Resolved ones are forgotten after 90 days.

p_resolve_after_seconds: how long an alert must have been gone to be resolved, 0 to 86400.
Returns: a row for each alert that opened or was resolved; the other columns as in filemark.alert_log.
event: ''opened'' or ''resolved''.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "filemark"."clear_completed_checkpoints"(integer, boolean, text) IS 'Clears cursor, results and history of files completed more than keep_checkpoints_days ago.

The file''s row and its counts stay.

p_limit: how many files of a pipeline at most, 1 to 1000000.
p_dry_run: true only to say what would be done.
p_pipeline: the pipeline; null for all.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: ''cleared''; in a dry run ''would_clear''.
Errors: PT400 bad argument; PT404 unknown pipeline.';

COMMENT ON FUNCTION "filemark"."configure_pipeline"(text, jsonb, text) IS 'Changes settings of a pipeline.

p_pipeline: the pipeline, 1 to 100 bytes; made on first use.
p_settings: the settings to change, {name: value}, each as in filemark.pipelines; {"paused": true} pauses.
p_actor: who, at most 200 bytes; null for the role of the call.
Returns: one row of filemark.pipelines, as it is now.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "filemark"."current_alerts"() IS 'What is wrong now: the rows of filemark.alerts, which is the view to read.

Returns: a row of filemark.alerts for each.';

COMMENT ON FUNCTION "filemark"."dead_letter_file"(text, text, text, text) IS 'Moves a pending or failed file to the dead letter by hand, to look into it before another worker gets it.

A repeat changes nothing.

p_file_url: the file.
p_reason: why, for the audit, at most 10000 bytes.
p_actor: who does it, at most 200 bytes; the database role when null.
p_pipeline: the pipeline.
Errors: PT400 bad argument; PT404 unknown file; PT422 the file is neither pending nor failed.';

COMMENT ON FUNCTION "filemark"."estimate_storage"(bigint, bigint, bigint, bigint) IS 'Estimates what files that are kept with their checkpoints take.

That is files x (checkpoint + history entries x 100 + results). 10,000 files of 5 KB, 50 entries and 5 KB: 150 MB. Real
tables, filled so, took 1.7 times as much, mostly because an entry takes 270 bytes with its key and its index; a large
cursor is copied into each entry and makes that more.

p_active_files: files in progress, waiting with a checkpoint, or completed within keep_checkpoints_days.
p_history_entries: checkpoints in the history of each; maintenance keeps history_limit of them.
p_results_bytes: size of the accumulated_results of each.
p_checkpoint_bytes: size of the row of each, with its cursor and metadata.
Returns: the bytes.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "filemark"."held_snapshots"() IS 'Who keeps dead rows from being removed, the longest first.

Returns: a row for each.
kind: ''session'', ''prepared transaction'' or ''replication slot''.
name: the process id of the session, the name of the prepared transaction or of the slot.
held_by: of a session its user, application, address and state; of a prepared transaction its owner; of a slot whether
  it is in use.
since: when the transaction began, or the slot was left alone; null when Postgres does not say.
transactions: how many transactions began since.';

COMMENT ON FUNCTION "filemark"."insert_records"(regclass, jsonb) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."on_one_line"(text, integer) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."purge_files"(integer, boolean, text) IS 'Removes files completed more than keep_files_days ago, with their history and audit.

They are still answered completed, and come back with new content or when they are requeued.

p_limit: how many files of a pipeline at most, 1 to 1000000.
p_dry_run: true only to say what would be done.
p_pipeline: the pipeline; null for all.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: ''purged''; in a dry run ''would_purge''.
Errors: PT400 bad argument; PT404 unknown pipeline.';

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

COMMENT ON FUNCTION "filemark"."requeue_dead_letters"(text, text, integer, boolean, text, text) IS 'Requeues the dead letters of a pipeline whose last error is like a pattern, the oldest first.

Each goes on from its last checkpoint, with a full budget. By default it only says which would.

p_pipeline: the pipeline.
p_error_like: a pattern for the error message, as LIKE takes it.
p_limit: how many files at most, 1 to 10000.
p_dry_run: false to do it.
p_reason: why, for the audit, at most 10000 bytes.
p_actor: who does it, at most 200 bytes; the database role when null.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: ''requeued''; in a dry run ''would_requeue''.
error_message: the last error.
Errors: PT400 bad argument; PT404 unknown pipeline.';

COMMENT ON FUNCTION "filemark"."resolve_dead_letter"(text, text, text, text, text) IS 'Says what became of a dead letter.

requeued and skipped do it. manually_resolved and permanently_failed only resolve the entry: the file stays a dead
letter that nobody needs to look at any more. A repeat changes nothing.

p_file_url: the file.
p_resolution: ''requeued'', ''skipped'', ''manually_resolved'' or ''permanently_failed''.
p_notes: what was found out, at most 10000 bytes.
p_actor: who does it, at most 200 bytes; the database role when null.
p_pipeline: the pipeline.
Errors: PT400 bad argument; PT404 unknown file; PT422 the file has no pending dead letter.';

COMMENT ON FUNCTION "filemark"."run_maintenance"(integer) IS 'Runs every maintenance task for every pipeline and records the run in filemark.maintenance_runs.

It may be killed at any moment and run twice at once. After 10 seconds it begins with no further pipeline; those left
come first in the next run.

p_limit: how many files of a pipeline each task takes at most, 1 to 1000000; of tallies, a hundred times as many.
Returns: a row for each pipeline and task.
task: the name of the task.
pipeline: the pipeline.
affected: how many files it changed, or tallies it added up.
Errors: PT400 bad argument.';

COMMENT ON FUNCTION "filemark"."save_checkpoint"(text, bigint, jsonb, bigint, jsonb, bigint, bigint, bigint, text) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."schedule_maintenance"(text) IS 'Has pg_cron run maintenance, and look for alerts every minute.

The jobs run as the role that owns filemark, which needs usage on schema cron. One that was paused stays paused. A repeat changes nothing.

p_every: how often maintenance runs: ''30 seconds'' (1 to 59; every minute where pg_cron is older than 1.5), or a schedule
  as cron takes it; null for what it is, or every 30 seconds.
Returns: a row for each job that is scheduled now.
job: ''filemark:maintenance'', ''filemark:alerts'', or ''filemark:cron-log'', which forgets the runs of these three.
schedule: when it runs, as pg_cron has it.
active: false when somebody paused it.
Errors: PT400 bad argument; PT422 pg_cron is not in this database.';

COMMENT ON FUNCTION "filemark"."set_alert_webhook"(text, jsonb, text, text) IS 'Says where check_alerts posts to when alerts open and are resolved. It takes the extension pg_net.

The request is {"text", "database", "alerts": [{"event", "alert_id", "alert", "severity", "pipeline", "file_url",
"value", "threshold", "message", "hint"}, …]}, one for all alerts of a check; event is ''opened'' or ''resolved'', text is
for chats.

p_url: the address, http or https; null to post no more.
p_headers: headers of the request. Each is a text, or {"vault": name} for a secret that is read from Supabase Vault
  when it is sent.
p_pipeline: whose alerts; null for those of the database and of all pipelines that have no webhook of their own.
p_actor: who says so, for the audit; the role of the call if not given.
Errors: PT400 bad argument; PT404 unknown pipeline.';

COMMENT ON FUNCTION "filemark"."target_table"(text) IS 'Internal: what persist_records, which runs as its caller, is made of.';

COMMENT ON FUNCTION "filemark"."truncate_checkpoint_history"(integer, boolean, text) IS 'Cuts the history of each file back to its pipeline''s history_limit.

Of each pipeline it takes at most a hundred times p_limit checkpoints at a time, or 10,000. Files that a worker holds in
an open transaction are left for later.

p_limit: how many files of a pipeline at most, 1 to 1000000.
p_dry_run: true only to say what would be done.
p_pipeline: the pipeline; null for all.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: ''truncated''; in a dry run ''would_truncate''.
Errors: PT400 bad argument; PT404 unknown pipeline.';

COMMENT ON FUNCTION "filemark"."unschedule_maintenance"() IS 'Takes the jobs of schedule_maintenance from pg_cron.

A repeat changes nothing, and neither does a call where pg_cron is not there.

Returns: a row for each job that was scheduled.
job: its name.';

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

COMMENT ON FUNCTION "public"."filemark_metrics"() IS 'Metrics of all pipelines in the text format of Prometheus.

Over the API: GET /rpc/filemark_metrics with Accept: text/plain; with Accept: */* the API answers with the text as a
JSON string.

Returns: HELP, TYPE and samples of each metric.';

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
completed: files in this status, purged ones included.
failed: files in this status: waiting for their retry.
dead_letter: files in this status.
skipped: files in this status.
total: files in all.
oldest_pending_age_seconds: how long the oldest pending file has been due, in seconds; null when none is due.
records_total: sum over the completed files.
records_filtered: sum over the completed files.
records_persisted: sum over the completed files.
records_rejected: sum over the completed files.
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

COMMENT ON TABLE "filemark"."activity" IS 'The tallies, added up by the hour, and under 1970 as a whole. filemark.pipeline_activity shows the hours.';

COMMENT ON TABLE "filemark"."alert_log" IS 'Alerts as filemark.check_alerts saw them open and close. An empty pipeline stands for the whole database.';

COMMENT ON TABLE "filemark"."alert_webhooks" IS 'Where check_alerts posts to: filemark.set_alert_webhook.';

COMMENT ON TABLE "filemark"."dead_letter_entries" IS 'One row each time a file became a dead letter: the record of its investigation. At most one is pending per file.';

COMMENT ON TABLE "filemark"."long_histories" IS 'Files with more checkpoints in their history than the pipeline keeps: the work list of truncate_checkpoint_history.';

COMMENT ON TABLE "filemark"."maintenance_runs" IS 'The runs of run_maintenance of the last day: per task, how many files or rows it affected.';

COMMENT ON TABLE "filemark"."purged_files" IS 'What is left of files that were completed and purged: enough to answer completed, and to requeue them.';

COMMENT ON TABLE "filemark"."tallies" IS 'What happened to files since the last maintenance, as numbers. filemark.pipeline_activity shows them.';

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

COMMENT ON VIEW "filemark"."alerts" IS 'What is wrong now. Of alerts about files, at most 20 of each kind per pipeline.';

COMMENT ON VIEW "filemark"."backlog" IS 'What waits in each pipeline, and how long it will take.';

COMMENT ON VIEW "filemark"."dead_letters" IS 'The dead letters that nobody has dealt with, the worst first: by the priority of the file, then those that cost workers (lease_expired) before those that failed, then those that wait longest.';

COMMENT ON VIEW "filemark"."files" IS 'Every file and how it stands: ask for a pipeline and a status or a file_url, it is a listing.';

COMMENT ON VIEW "filemark"."infrequent_checkpoints" IS 'Claims of five minutes or more that save less often than min_checkpoints_per_minute, the worst first.';

COMMENT ON VIEW "filemark"."large_histories" IS 'The 20 longest histories of more than 50 checkpoints, the longest first.';

COMMENT ON VIEW "filemark"."large_results" IS 'The 20 largest accumulated_results of more than 100,000 bytes among files in progress, the largest first.';

COMMENT ON VIEW "filemark"."maintenance_due" IS 'Since when work waits for maintenance in each pipeline.';

COMMENT ON VIEW "filemark"."pipeline_activity" IS 'What happened in each hour of the last seven days. Those of 90 days are in filemark.activity.';

COMMENT ON VIEW "filemark"."recent_activity" IS 'What happened in this hour and the last one.';

COMMENT ON VIEW "filemark"."stale_checkpoints" IS 'Files in progress that saved nothing for stale_after_seconds, the longest first.';

COMMENT ON VIEW "filemark"."storage_report" IS 'Room that each table takes, and what keeps dead rows from being removed.';

COMMENT ON VIEW "filemark"."watched_histories" IS 'The lengths of the histories that may be long: of files in progress and of those that maintenance is to cut.';

REVOKE ALL ON FUNCTION "filemark"."actor_of"(text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."add_claimed_file"(filemark.pipelines, integer, jsonb, timestamp WITH time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."add_files"(text, jsonb, timestamp WITH time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."add_up_tallies"(text, integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."alert_count"() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."alert_count"() TO "filemark_monitor", "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."alert_limits"() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."alert_limits"() TO "filemark_monitor", "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."apply_settings"(filemark.pipelines, jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."bury_file"(filemark.file_checkpoints, text, text, jsonb, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."check_alerts"(integer) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."check_alerts"(integer) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."check_pipeline"(text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."check_task"(integer, boolean, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."claim_next"(text, text, integer, text, uuid, boolean) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."clear_completed_checkpoints"(integer, boolean, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."clear_completed_checkpoints"(integer, boolean, text) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."close_dead_letter"(text, text, text, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."cron_hint"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."current_alerts"() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."current_alerts"() TO "filemark_monitor", "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."dead_letter_file"(text, text, text, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."dead_letter_file"(text, text, text, text) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."end_lost_claims"(text, text[], timestamp WITH time zone, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."errors_of_attempts"(text, text, integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."estimate_storage"(bigint, bigint, bigint, bigint) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."estimate_storage"(bigint, bigint, bigint, bigint) TO "filemark_monitor", "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."file_alerts"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."first_in_queue"(text, text[], integer) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."forget_cron_runs"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."has_cron"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."held_by_request"(text, uuid) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."held_snapshots"() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."held_snapshots"() TO "filemark_monitor", "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."list_long_histories"(text, bigint) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."lock_known_file"(text, text, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."maintain"(integer, double precision) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."maintenance_jobs"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."metric_families"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."metric_label"(text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."note_contents"(text, jsonb, timestamp WITH time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."note_purged"(text, jsonb, timestamp WITH time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."note_purged_etag"(text, text, text, text, timestamp WITH time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."notify_alert"(jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."oldest_available_at"(text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."on_one_line"(text, integer) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."on_one_line"(text, integer) TO "filemark_operator", "filemark_worker";

REVOKE ALL ON FUNCTION "filemark"."open_dead_letter"(filemark.file_checkpoints, text, timestamp WITH time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."pipeline_alerts"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."pipeline_numbers"(text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."pipeline_samples"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."post_alerts"(jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."purge_file"(filemark.file_checkpoints) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."purge_files"(integer, boolean, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."purge_files"(integer, boolean, text) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."put_back"(filemark.file_checkpoints, filemark.checkpoint_history, text, boolean, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."requeue_dead_letters"(text, text, integer, boolean, text, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."requeue_dead_letters"(text, text, integer, boolean, text, text) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."resolve_dead_letter"(text, text, text, text, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."resolve_dead_letter"(text, text, text, text, text) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."revive_file"(text, text, text, timestamp WITH time zone) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."rewind_file"(filemark.file_checkpoints, filemark.checkpoint_history, timestamp WITH time zone, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."run_maintenance"(integer) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."run_maintenance"(integer) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."schedule_at_installation"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."schedule_job"(text, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."schedule_maintenance"(text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."schedule_maintenance"(text) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."scheduled_jobs"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."set_alert_webhook"(text, jsonb, text, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."set_alert_webhook"(text, jsonb, text, text) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."short_hash"(text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."stays_purged"(text, text, text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."surrounding_alerts"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."tally"(text, text, bigint, numeric, numeric, numeric, numeric) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."tally_reopened"(filemark.file_checkpoints) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."totals"(text) FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."truncate_checkpoint_history"(integer, boolean, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."truncate_checkpoint_history"(integer, boolean, text) TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."unschedule_maintenance"() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "filemark"."unschedule_maintenance"() TO "filemark_operator";

REVOKE ALL ON FUNCTION "filemark"."upkeep_samples"() FROM PUBLIC;

REVOKE ALL ON FUNCTION "filemark"."webhook_headers"(jsonb) FROM PUBLIC;

REVOKE ALL ON FUNCTION "public"."filemark_metrics"() FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "public"."filemark_metrics"() TO "filemark_monitor", "filemark_operator";

REVOKE ALL ON FUNCTION "public"."get_file_checkpoint"(text, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "public"."get_file_checkpoint"(text, text) TO "filemark_operator", "filemark_worker";

REVOKE ALL ON FUNCTION "public"."list_file_checkpoints"(text, integer, text, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "public"."list_file_checkpoints"(text, integer, text, text) TO "filemark_operator", "filemark_worker";

REVOKE ALL ON FUNCTION "public"."skip_file"(text, text, text, text) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION "public"."skip_file"(text, text, text, text) TO "filemark_operator";

GRANT SELECT ON TABLE "filemark"."activity" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."alert_log" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."alert_webhooks" TO "filemark_operator";

GRANT SELECT ON TABLE "filemark"."dead_letter_entries" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."long_histories" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."maintenance_runs" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."purged_files" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."tallies" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."alerts" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."backlog" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."dead_letters" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."files" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."infrequent_checkpoints" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."large_histories" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."large_results" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."maintenance_due" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."pipeline_activity" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."recent_activity" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."stale_checkpoints" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."storage_report" TO "filemark_monitor", "filemark_operator";

GRANT SELECT ON TABLE "filemark"."watched_histories" TO "filemark_monitor", "filemark_operator";

COMMENT ON COLUMN filemark.dead_letters.pipeline IS 'The pipeline the file is in.';
COMMENT ON COLUMN filemark.dead_letters.file_url IS 'The file.';
COMMENT ON COLUMN filemark.dead_letters.file_type IS 'The kind of file.';
COMMENT ON COLUMN filemark.dead_letters.priority IS 'The priority it was registered with.';
COMMENT ON COLUMN filemark.dead_letters.reason IS 'Why it is a dead letter: lease_expired, max_attempts_exceeded, not_retryable or manual.';
COMMENT ON COLUMN filemark.dead_letters.opened_at IS 'When it became one.';
COMMENT ON COLUMN filemark.dead_letters.attempts IS 'Attempts it had at its last position.';
COMMENT ON COLUMN filemark.dead_letters.last_error IS 'The last error.';
COMMENT ON COLUMN filemark.dead_letters.errors IS 'How each of these attempts ended, the oldest first, as in filemark.dead_letter_entries.';
COMMENT ON COLUMN filemark.dead_letters.items_processed IS 'Items done in the whole file so far.';
COMMENT ON COLUMN filemark.dead_letters.items_total IS 'How many items the file has; null when unknown.';
COMMENT ON COLUMN filemark.dead_letters.processed_by IS 'Who had the last claim.';
COMMENT ON COLUMN filemark.dead_letters.requeue IS 'The statement that puts the file back into the queue.';
COMMENT ON COLUMN filemark.files.pipeline IS 'The pipeline the file is in.';
COMMENT ON COLUMN filemark.files.file_url IS 'The file.';
COMMENT ON COLUMN filemark.files.file_type IS 'The kind of file.';
COMMENT ON COLUMN filemark.files.generation IS 'Which content of that name it is.';
COMMENT ON COLUMN filemark.files.status IS 'pending, processing, completed, failed (waiting for its retry), dead_letter or skipped.';
COMMENT ON COLUMN filemark.files.age_seconds IS 'For how long: since the claim, the completion, the dead letter or the skip; of a pending or failed file since it may be claimed.';
COMMENT ON COLUMN filemark.files.due_in_seconds IS 'How long a pending or failed file has to wait until it may be claimed; null when it may.';
COMMENT ON COLUMN filemark.files.holder IS 'The worker that has the file now; null when nobody has.';
COMMENT ON COLUMN filemark.files.lease_state IS 'healthy, warning when 80 % of the lease is used, or expired: anybody may take the file over.';
COMMENT ON COLUMN filemark.files.lease_left_seconds IS 'How long the lease holds; negative when it is over.';
COMMENT ON COLUMN filemark.files.items_processed IS 'Items done, as of the last checkpoint.';
COMMENT ON COLUMN filemark.files.items_total IS 'Items in the file; null when unknown.';
COMMENT ON COLUMN filemark.files.progress_ratio IS 'Items done of all, 0 to 1; null when unknown.';
COMMENT ON COLUMN filemark.files.items_per_second IS 'The pace of the running claim over its last ten checkpoints; null without one.';
COMMENT ON COLUMN filemark.files.estimated_seconds_left IS 'How long the rest takes at that pace; null when unknown.';
COMMENT ON COLUMN filemark.files.checkpoint_seq IS 'The number of the last checkpoint.';
COMMENT ON COLUMN filemark.files.checkpoint_age_seconds IS 'How long ago it was saved; null without one.';
COMMENT ON COLUMN filemark.files.history_length IS 'Checkpoints in the history.';
COMMENT ON COLUMN filemark.files.results_bytes IS 'The size of accumulated_results.';
COMMENT ON COLUMN filemark.files.attempts IS 'Claims at the position the file has now.';
COMMENT ON COLUMN filemark.files.max_attempts IS 'How many of them it gets.';
COMMENT ON COLUMN filemark.files.last_error IS 'Why the last attempt that failed did; null when none did since the file was new or requeued, and when it is completed.';
COMMENT ON COLUMN filemark.stale_checkpoints.pipeline IS 'The pipeline the file is in.';
COMMENT ON COLUMN filemark.stale_checkpoints.file_url IS 'The file.';
COMMENT ON COLUMN filemark.stale_checkpoints.holder IS 'The worker that has it.';
COMMENT ON COLUMN filemark.stale_checkpoints.checkpoint_age_seconds IS 'How long ago it was claimed or last saved.';
COMMENT ON COLUMN filemark.stale_checkpoints.stale_after_seconds IS 'How long is too long, as configured.';
COMMENT ON COLUMN filemark.stale_checkpoints.since IS 'When it was claimed or last saved.';
COMMENT ON COLUMN filemark.stale_checkpoints.started_at IS 'When it was claimed.';
COMMENT ON COLUMN filemark.stale_checkpoints.lease_expires_at IS 'Until when nobody may take it over.';
COMMENT ON COLUMN filemark.stale_checkpoints.checkpoint_seq IS 'The number of the last checkpoint.';
COMMENT ON COLUMN filemark.stale_checkpoints.items_processed IS 'Items done, as of the last checkpoint.';
COMMENT ON COLUMN filemark.stale_checkpoints.items_total IS 'Items in the file; null when unknown.';
COMMENT ON COLUMN filemark.stale_checkpoints.attempts IS 'Claims at this position.';
COMMENT ON COLUMN filemark.stale_checkpoints.max_attempts IS 'How many of them it gets.';
COMMENT ON COLUMN filemark.watched_histories.pipeline IS 'The pipeline the file is in.';
COMMENT ON COLUMN filemark.watched_histories.file_url IS 'The file.';
COMMENT ON COLUMN filemark.watched_histories.status IS 'The status of the file.';
COMMENT ON COLUMN filemark.watched_histories.checkpoint_seq IS 'The number of the last checkpoint.';
COMMENT ON COLUMN filemark.watched_histories.history_length IS 'Checkpoints in its history.';
COMMENT ON COLUMN filemark.watched_histories.history_limit IS 'How many of them maintenance keeps, as configured.';
COMMENT ON COLUMN filemark.watched_histories.max_history IS 'From how many on there is an alert, as configured.';
COMMENT ON COLUMN filemark.watched_histories.checkpointed_at IS 'When it was last saved.';
COMMENT ON COLUMN filemark.large_histories.pipeline IS 'The pipeline the file is in.';
COMMENT ON COLUMN filemark.large_histories.file_url IS 'The file.';
COMMENT ON COLUMN filemark.large_histories.status IS 'The status of the file.';
COMMENT ON COLUMN filemark.large_histories.history_length IS 'Checkpoints in its history.';
COMMENT ON COLUMN filemark.large_histories.history_limit IS 'How many of them maintenance keeps, as configured.';
COMMENT ON COLUMN filemark.large_histories.max_history IS 'From how many on there is an alert, as configured.';
COMMENT ON COLUMN filemark.large_histories.checkpointed_at IS 'When it was last saved.';
COMMENT ON COLUMN filemark.large_results.pipeline IS 'The pipeline the file is in.';
COMMENT ON COLUMN filemark.large_results.file_url IS 'The file.';
COMMENT ON COLUMN filemark.large_results.status IS 'The status of the file.';
COMMENT ON COLUMN filemark.large_results.results_bytes IS 'The size of its accumulated_results as JSON text.';
COMMENT ON COLUMN filemark.large_results.results_size IS 'The same, readable.';
COMMENT ON COLUMN filemark.large_results.max_results_bytes IS 'From what size on there is an alert, as configured.';
COMMENT ON COLUMN filemark.large_results.holder IS 'The worker that has it.';
COMMENT ON COLUMN filemark.large_results.checkpointed_at IS 'When it was last saved.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.pipeline IS 'The pipeline the file is in.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.file_url IS 'The file.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.holder IS 'The worker that has it.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.claim_age_seconds IS 'How long the claim has been running.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.checkpoints_per_minute IS 'How often it saves: over its last ten checkpoints, fewer if the pipeline keeps fewer, or since the claim.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.min_checkpoints_per_minute IS 'How often it should, as configured.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.checkpointed_at IS 'When it last did.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.started_at IS 'When it was claimed.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.items_processed IS 'Items done, as of the last checkpoint.';
COMMENT ON COLUMN filemark.infrequent_checkpoints.items_total IS 'Items in the file; null when unknown.';
COMMENT ON COLUMN filemark.pipeline_activity.pipeline IS 'The pipeline.';
COMMENT ON COLUMN filemark.pipeline_activity.hour IS 'The beginning of the hour, in UTC.';
COMMENT ON COLUMN filemark.pipeline_activity.files_registered IS 'Files that became known.';
COMMENT ON COLUMN filemark.pipeline_activity.files_overwritten IS 'Files that came with new content.';
COMMENT ON COLUMN filemark.pipeline_activity.files_completed IS 'Files that were completed.';
COMMENT ON COLUMN filemark.pipeline_activity.records_total IS 'Records in these.';
COMMENT ON COLUMN filemark.pipeline_activity.records_filtered IS 'Records of these that were left out on purpose.';
COMMENT ON COLUMN filemark.pipeline_activity.records_persisted IS 'Records of these that were written.';
COMMENT ON COLUMN filemark.pipeline_activity.records_rejected IS 'Records of these that were rejected.';
COMMENT ON COLUMN filemark.pipeline_activity.failures IS 'Claims that ended with an error.';
COMMENT ON COLUMN filemark.pipeline_activity.lost_leases IS 'Claims that ended with their lease.';
COMMENT ON COLUMN filemark.pipeline_activity.releases IS 'Claims that were given back.';
COMMENT ON COLUMN filemark.recent_activity.pipeline IS 'The pipeline.';
COMMENT ON COLUMN filemark.recent_activity.since IS 'The beginning of the last hour.';
COMMENT ON COLUMN filemark.recent_activity.files_completed IS 'Files that were completed.';
COMMENT ON COLUMN filemark.recent_activity.failures IS 'Claims that ended with an error.';
COMMENT ON COLUMN filemark.recent_activity.lost_leases IS 'Claims that ended with their lease.';
COMMENT ON COLUMN filemark.backlog.pipeline IS 'The pipeline.';
COMMENT ON COLUMN filemark.backlog.paused IS 'Whether claims are refused.';
COMMENT ON COLUMN filemark.backlog.due IS 'Files that may be claimed now.';
COMMENT ON COLUMN filemark.backlog.due_retries IS 'Those of them that failed before.';
COMMENT ON COLUMN filemark.backlog.waiting IS 'Files that may be claimed later.';
COMMENT ON COLUMN filemark.backlog.oldest_due_at IS 'Since when the first of the due ones may be claimed; null when none is due.';
COMMENT ON COLUMN filemark.backlog.oldest_due_age_seconds IS 'How long that is.';
COMMENT ON COLUMN filemark.backlog.max_backlog_age_seconds IS 'From how long on there is an alert, as configured; null for never.';
COMMENT ON COLUMN filemark.backlog.in_progress IS 'Files in progress.';
COMMENT ON COLUMN filemark.backlog.max_concurrency IS 'How many there may be; null for no limit.';
COMMENT ON COLUMN filemark.backlog.completed_per_hour IS 'Files completed per hour, on average in this hour and the last.';
COMMENT ON COLUMN filemark.backlog.estimated_seconds_left IS 'How long the due files take at that pace; null when none was completed.';
COMMENT ON COLUMN filemark.storage_report.table_name IS 'The table, in schema filemark.';
COMMENT ON COLUMN filemark.storage_report.estimated_rows IS 'Rows, as of the last vacuum or analyze; null before the first.';
COMMENT ON COLUMN filemark.storage_report.dead_rows IS 'Versions of rows that nobody needs and vacuum has yet to remove, as estimated.';
COMMENT ON COLUMN filemark.storage_report.rows_bytes IS 'Bytes of the rows, without what is in toast_bytes.';
COMMENT ON COLUMN filemark.storage_report.toast_bytes IS 'Bytes of values too large for a row, compressed: in file_checkpoints accumulated_results and cursors.';
COMMENT ON COLUMN filemark.storage_report.indexes_bytes IS 'Bytes of the indexes.';
COMMENT ON COLUMN filemark.storage_report.total_bytes IS 'Bytes of all of it.';
COMMENT ON COLUMN filemark.storage_report.last_vacuum_at IS 'When it was last vacuumed; null for never.';
COMMENT ON COLUMN filemark.storage_report.oldest_snapshot IS 'Who has kept dead rows from being removed for the longest time, as filemark.held_snapshots has it; null for nobody.';
COMMENT ON COLUMN filemark.storage_report.oldest_snapshot_age_seconds IS 'For how long; null for nobody, and when Postgres does not say.';
COMMENT ON COLUMN filemark.maintenance_due.pipeline IS 'The pipeline.';
COMMENT ON COLUMN filemark.maintenance_due.due_since IS 'Since when the oldest of it waits; null or in the future when nothing is to be done.';
COMMENT ON COLUMN filemark.maintenance_due.last_run_at IS 'When maintenance was last done; null for not in the last day.';
COMMENT ON COLUMN filemark.alerts.alert IS 'stale_checkpoint, large_history, large_results, infrequent_checkpoints, dead_letters, expired_claims, backlog_age, failure_ratio, maintenance_overdue, missing_files or held_snapshot.';
COMMENT ON COLUMN filemark.alerts.severity IS 'critical: files are not loaded, or will not be soon. warning: it can wait for the morning.';
COMMENT ON COLUMN filemark.alerts.pipeline IS 'The pipeline; empty for the whole database.';
COMMENT ON COLUMN filemark.alerts.file_url IS 'The file it is about; null for the whole pipeline.';
COMMENT ON COLUMN filemark.alerts.value IS 'What was measured; its unit is that of the threshold.';
COMMENT ON COLUMN filemark.alerts.threshold IS 'What it is measured against.';
COMMENT ON COLUMN filemark.alerts.since IS 'Since when.';
COMMENT ON COLUMN filemark.alerts.message IS 'What is wrong, with names and numbers.';
COMMENT ON COLUMN filemark.alerts.hint IS 'What to do, as a statement where there is one.';

-- sql/upgrade/0.2.0.sql

-- What version 0.1 did not write down when it happened. Files and events are read once; written are only files that
-- have results or were completed with a checkpoint, and new rows.

-- For the numbers: what is known of the past, by the hour for 90 days, and all of it under 1970.
insert into filemark.activity (
  pipeline, hour, what, files, records_total, records_filtered, records_persisted, records_rejected, last_at)
select past.pipeline, h.hour, past.what, count(*), sum(past.records_total), sum(past.records_filtered),
       sum(past.records_persisted), sum(past.records_rejected), max(past.occurred_at)
  from (
    select f.pipeline, f.created_at as occurred_at, 'registered' as what, 0 as records_total, 0 as records_filtered,
           0 as records_persisted, 0 as records_rejected
      from filemark.file_checkpoints f
    union all
    select f.pipeline, f.completed_at, 'completed', f.records_total, f.records_filtered, f.records_persisted,
           f.records_rejected
      from filemark.file_checkpoints f
     where f.status = 'completed'
    union all
    select e.pipeline, e.occurred_at, case e.event when 'lease_expired' then 'lost' else e.event end, 0, 0, 0, 0
      from filemark.file_events e
     where e.event in ('overwritten', 'failed', 'released', 'lease_expired')
  ) past
 cross join lateral (values ('epoch'::timestamptz), (date_trunc('hour', past.occurred_at, 'UTC'))) h (hour)
 where h.hour = 'epoch' or h.hour > clock_timestamp() - interval '90 days'
 group by past.pipeline, h.hour, past.what;

-- For clear_completed_checkpoints, and for large_results.
update filemark.file_checkpoints f
   set kept_since = f.completed_at,
       results_bytes = coalesce(octet_length(f.accumulated_results::text), 0)
 where f.accumulated_results is not null or (f.status = 'completed' and f.checkpoint_seq > 0);

-- For truncate_checkpoint_history.
insert into filemark.long_histories (pipeline, file_url)
select f.pipeline, f.file_url
  from filemark.file_checkpoints f
  join filemark.pipelines p on p.pipeline = f.pipeline
 where f.history_length > p.history_limit;

do $upgrade$
begin
  -- Each dead letter is one to look at.
  perform filemark.open_dead_letter(f, buried.reason, buried.occurred_at)
     from filemark.file_checkpoints f
    cross join lateral (
      select e.reason, e.occurred_at
        from filemark.file_events e
       where e.pipeline = f.pipeline and e.file_url = f.file_url and e.event = 'dead_lettered'
       order by e.event_id desc
       limit 1
    ) buried
    where f.status = 'dead_letter';

  -- What 98_schedule.sql does at its end.
  perform filemark.schedule_at_installation();
end
$upgrade$;

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
              'requeue_file', 'skip_file', 'filemark_metrics'))
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
      execute format(
        'grant execute on function
           public.pipeline_stats(text),
           public.filemark_metrics(),
           filemark.alert_count(),
           filemark.estimate_storage(bigint, bigint, bigint, bigint),
           -- what the views read
           filemark.alert_limits(),
           filemark.current_alerts(),
           filemark.held_snapshots()
         to %I', v_role);
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
           filemark.set_alert_webhook(text, jsonb, text, text),
           filemark.check_alerts(int),
           filemark.dead_letter_file(text, text, text, text),
           filemark.resolve_dead_letter(text, text, text, text, text),
           filemark.requeue_dead_letters(text, text, int, boolean, text, text),
           filemark.reclaim_stale_claims(int, boolean, text),
           filemark.truncate_checkpoint_history(int, boolean, text),
           filemark.clear_completed_checkpoints(int, boolean, text),
           filemark.purge_files(int, boolean, text),
           filemark.run_maintenance(int),
           filemark.schedule_maintenance(text),
           filemark.unschedule_maintenance()
         to %I', v_role);
    end if;
  end loop;
  -- An address to post to, and its headers, may be secrets.
  revoke select on filemark.alert_webhooks from filemark_monitor;
end
$grants$;

notify pgrst, 'reload schema';

-- migrate:down
