-- filemark 0.1.0: the database package, built from sql/ by `npm run build:migration`; edit it there.
-- Install with `supabase db push` or with `dbmate up`: both take this file as it is.

-- migrate:up

-- sql/00_preflight.sql

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

-- sql/10_schema.sql

-- filemark: the schema and the roles
--
-- Tables, internals and operations live in the schema filemark, which is never exposed over the API.
-- Three roles carry the rights:
--   filemark_worker    claims files, saves checkpoints, ends claims, reads single files
--   filemark_monitor   reads everything, changes nothing
--   filemark_operator  both of these, and requeue, settings and maintenance
-- On Supabase, service_role is an operator (99_grants.sql).

create schema filemark;

comment on schema filemark is
  'Checkpoint and resume with exactly-once effects for file pipelines. Not to be exposed over the API.';

revoke all on schema filemark from public;

-- Roles belong to the whole cluster: another database of it may have made them, or be making them now.
do $roles$
declare
  v_role text;
begin
  foreach v_role in array array['filemark_worker', 'filemark_monitor', 'filemark_operator'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception
        when duplicate_object or unique_violation then
          null;
        when insufficient_privilege then
          raise exception 'filemark needs the role %, which % may not create', v_role, current_user
            using errcode = 'insufficient_privilege',
                  hint = 'Ask an administrator to run: create role filemark_worker nologin; '
                         'create role filemark_monitor nologin; create role filemark_operator nologin; '
                         'grant filemark_worker, filemark_monitor to filemark_operator;';
      end;
    end if;
  end loop;
  if not pg_has_role('filemark_operator', 'filemark_worker', 'usage')
     or not pg_has_role('filemark_operator', 'filemark_monitor', 'usage') then
    begin
      grant filemark_worker, filemark_monitor to filemark_operator;
    exception
      when unique_violation then
        null;
    end;
  end if;
end
$roles$;

-- sql/20_tables.sql

-- filemark: the tables
--
-- Every table and every unique key begins with pipeline. Nothing crosses pipelines: no lock, no
-- sequence, no foreign key on the hot path.
--
-- No index, index predicate or generated column may mention a column that a checkpoint or a heartbeat
-- changes. One index on the lease would end HOT updates, and a single busy row would grow without end.
-- Expired leases are found by lease_check_at instead: set at the claim to the first lease's end, and
-- moved on only when it fires and finds the lease renewed.

create table filemark.pipelines (
  pipeline                   text collate "C" primary key,
  max_attempts               int not null default 3,
  lease_seconds              int not null default 300,
  backoff_base_seconds       int not null default 30,
  backoff_max_seconds        int not null default 3600,
  backoff_jitter             double precision not null default 0.2,
  max_concurrency            int,
  paused                     boolean not null default false,
  on_overwrite               text not null default 'reprocess',
  history_limit              int not null default 10,
  keep_checkpoints_days      int not null default 7,
  keep_files_days            int,
  results_limit_bytes        bigint not null default 16777216,
  cursor_limit_bytes         bigint not null default 1048576,
  stale_after_seconds        int not null default 600,
  max_history                bigint not null default 100,
  max_results_bytes          bigint not null default 1048576,
  min_checkpoints_per_minute double precision not null default 1,
  max_backlog_age_seconds    int,
  max_failure_ratio          double precision not null default 0.5,
  expect_file_every_seconds  int,
  max_rejected               bigint,
  max_rejected_ratio         double precision,
  created_at                 timestamptz not null default clock_timestamp(),
  constraint pipeline_has_a_name check (pipeline <> '' and octet_length(pipeline) <= 100),
  constraint overwrites_are_reprocessed_or_ignored check (on_overwrite in ('reprocess', 'ignore')),
  constraint settings_are_in_range check (
    max_attempts > 0 and lease_seconds > 0 and backoff_base_seconds >= 0 and backoff_max_seconds >= 0
    and backoff_jitter between 0 and 1 and max_concurrency > 0 and history_limit > 0
    and keep_checkpoints_days >= 0 and keep_files_days >= 0
    and results_limit_bytes > 0 and cursor_limit_bytes > 0
  )
);

comment on table filemark.pipelines is
  'One row per pipeline, made on first use: its settings. Change them with filemark.configure_pipeline.';

create table filemark.file_checkpoints (
  pipeline            text collate "C" not null,
  file_url            text collate "C" not null,
  -- identity
  file_type           text not null,
  file_timestamp      timestamptz not null,
  size_bytes          bigint,
  etag                text,
  generation          bigint not null default 1,
  superseded_by       jsonb,
  metadata            jsonb not null default '{}',
  -- scheduling
  status              text not null default 'pending',
  priority            int not null default 0,
  available_at        timestamptz not null,
  -- claim
  claim_token         bigint not null default 0,
  claim_ended         text,
  request_id          uuid,
  processed_by        text,
  started_at          timestamptz,
  lease_expires_at    timestamptz,
  lease_check_at      timestamptz,
  attempts            int not null default 0,
  -- checkpoint
  cursor              jsonb,
  items_processed     bigint not null default 0,
  items_total         bigint,
  accumulated_results jsonb,
  checkpoint_seq      bigint not null default 0,
  checkpointed_at     timestamptz,
  history_length      bigint not null default 0,
  -- outcome
  records_total       bigint not null default 0,
  records_filtered    bigint not null default 0,
  records_persisted   bigint not null default 0,
  records_rejected    bigint not null default 0,
  processing_time_ms  bigint,
  error_message       text,
  error               jsonb,
  completed_at        timestamptz,
  created_at          timestamptz not null default clock_timestamp(),

  primary key (pipeline, file_url),
  constraint file_has_a_name check (file_url <> '' and octet_length(file_url) <= 2048),
  constraint status_is_known check (
    status in ('pending', 'processing', 'completed', 'failed', 'dead_letter', 'skipped')),
  constraint claim_end_is_known check (
    claim_ended in ('completed', 'superseded', 'failed', 'released', 'lost')),
  constraint a_claimed_file_has_a_holder check (
    status <> 'processing'
    or (claim_token > 0 and processed_by is not null and started_at is not null and claim_ended is null)),
  constraint only_a_claimed_file_has_a_lease check (
    (status = 'processing') = (lease_expires_at is not null)
    and (status = 'processing') = (lease_check_at is not null)),
  constraint only_a_claimed_file_can_be_superseded check (superseded_by is null or status = 'processing'),
  constraint completed_at_says_completed check ((status = 'completed') = (completed_at is not null)),
  constraint a_failed_file_has_an_error check (status <> 'failed' or error_message is not null),
  constraint a_checkpoint_has_a_time check ((checkpoint_seq > 0) = (checkpointed_at is not null)),
  constraint a_checkpoint_has_a_cursor check (
    case when checkpoint_seq = 0 then cursor is null else cursor is not null or status = 'completed' end),
  constraint counters_are_not_negative check (
    generation > 0 and claim_token >= 0 and attempts >= 0 and checkpoint_seq >= 0 and history_length >= 0
    and items_processed >= 0 and items_total >= 0 and size_bytes >= 0 and processing_time_ms >= 0
    and records_total >= 0 and records_filtered >= 0 and records_persisted >= 0 and records_rejected >= 0)
) with (
  -- room in each page for the next version of a row that is being worked on, so that its updates are HOT
  fillfactor = 70,
  -- claims and completions leave dead rows at the head of the queue: have them swept early
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_analyze_scale_factor = 0.02,
  autovacuum_analyze_threshold = 1000
);

comment on table filemark.file_checkpoints is
  'One row per file of a pipeline: identity, schedule, claim, checkpoint, outcome.';
comment on column filemark.file_checkpoints.superseded_by is
  'The newer content seen while the file is being processed, as register_files was given it.';
comment on column filemark.file_checkpoints.claim_ended is
  'How the claim of claim_token ended, so that a repeat of the call that ended it is answered as before.';
comment on column filemark.file_checkpoints.lease_check_at is
  'When to look whether the lease is over: the first lease''s end, not moved by checkpoints.';
comment on column filemark.file_checkpoints.cursor is
  'The next position to process, as any JSON.';

create index file_checkpoints_queue on filemark.file_checkpoints
  (pipeline, priority desc, available_at, file_url)
  where status in ('pending', 'failed');

create index file_checkpoints_queue_by_type on filemark.file_checkpoints
  (pipeline, file_type, priority desc, available_at, file_url)
  where status in ('pending', 'failed');

-- Not where status = 'processing': look-ups by key that say so would be planned on it while it is small.
create index file_checkpoints_leases on filemark.file_checkpoints
  (pipeline, lease_check_at)
  where lease_check_at is not null;

-- What batch claims were answered, so that a repeat after a lost answer gets what is left of that answer and
-- claims nothing more, even when every file of it is finished. Forgotten after a day (95_operating.sql).
create table filemark.claim_requests (
  pipeline   text collate "C" not null,
  request_id uuid not null,
  file_urls  text[] not null,
  claimed_at timestamptz not null,
  primary key (pipeline, request_id)
);

comment on table filemark.claim_requests is
  'The answers to the last day''s batch claims: a repeated claim_next_files claims nothing more.';

create table filemark.checkpoint_history (
  pipeline          text collate "C" not null,
  file_url          text collate "C" not null,
  checkpoint_seq    bigint not null,
  cursor            jsonb not null,
  items_processed   bigint not null,
  records_persisted bigint not null,
  claim_token       bigint not null,
  saved_at          timestamptz not null,
  primary key (pipeline, file_url, checkpoint_seq)
);

comment on table filemark.checkpoint_history is
  'One row per saved checkpoint of a file''s current generation; records_persisted is of that save alone.';

create table filemark.file_events (
  pipeline    text collate "C" not null,
  event_id    bigint generated always as identity,
  file_url    text collate "C",
  event       text not null,
  occurred_at timestamptz not null,
  actor       text not null,
  reason      text,
  detail      jsonb not null default '{}',
  primary key (pipeline, event_id),
  constraint event_is_known check (event in (
    'failed', 'lease_expired', 'dead_lettered', 'released', 'requeued', 'skipped', 'overwritten',
    'settings_changed'))
);

comment on table filemark.file_events is
  'Append-only audit of what is not routine: who did what to which file, when and why.';

create index file_events_by_file on filemark.file_events (pipeline, file_url, event_id);

alter table filemark.pipelines enable row level security;
alter table filemark.file_checkpoints enable row level security;
alter table filemark.claim_requests enable row level security;
alter table filemark.checkpoint_history enable row level security;
alter table filemark.file_events enable row level security;

create policy monitor_reads on filemark.pipelines for select to filemark_monitor using (true);
create policy monitor_reads on filemark.file_checkpoints for select to filemark_monitor using (true);
create policy monitor_reads on filemark.claim_requests for select to filemark_monitor using (true);
create policy monitor_reads on filemark.checkpoint_history for select to filemark_monitor using (true);
create policy monitor_reads on filemark.file_events for select to filemark_monitor using (true);

-- A claim as workers see it.
create type filemark.claim as (
  outcome             text,
  pipeline            text,
  file_url            text,
  file_type           text,
  file_timestamp      timestamptz,
  etag                text,
  size_bytes          bigint,
  metadata            jsonb,
  generation          bigint,
  claim_token         bigint,
  attempts            int,
  max_attempts        int,
  lease_seconds       int,
  lease_expires_at    timestamptz,
  cursor              jsonb,
  items_processed     bigint,
  items_total         bigint,
  accumulated_results jsonb,
  checkpoint_seq      bigint
);

-- What a worker says of a file it finished.
create type filemark.completion as (
  file_url            text,
  claim_token         bigint,
  records_total       bigint,
  records_filtered    bigint,
  records_persisted   bigint,
  processing_time_ms  bigint,
  accumulated_results jsonb,
  etag                text
);

-- sql/30_errors.sql

-- filemark: errors and arguments
--
-- SQLSTATEs of the form PTxyz become the HTTP status xyz in PostgREST. The SDK maps the code, never the
-- text, to a class. A bad argument is always named, with its value and with what is allowed.
-- 40001 is never raised: PostgREST up to version 14 repeats such a call for ever.

-- Raises PT400 for an argument: its name, its value, what it may be.
create function filemark.refuse_argument(p_name text, p_value text, p_allowed text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception '% must be %, not %', p_name, p_allowed,
    coalesce('"' || case when length(p_value) > 100 then left(p_value, 100) || '…' else p_value end || '"', 'null')
    using errcode = 'PT400';
end
$$;

-- Raises PT400 for a key that nobody asked for, so that a typing error is not taken for a default.
create function filemark.refuse_key(p_name text, p_known text[])
returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception '% is unknown; known are %',
    case when length(p_name) > 100 then left(p_name, 100) || '…' else p_name end, array_to_string(p_known, ', ')
    using errcode = 'PT400';
end
$$;

-- Raises PT413 for an argument that is larger than its limit.
create function filemark.refuse_size(p_name text, p_size bigint, p_limit bigint, p_unit text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception '% has % %, the limit is %', p_name, p_size, p_unit, p_limit
    using errcode = 'PT413';
end
$$;

-- Refuses a text that is null, empty or longer than p_max_bytes.
create function filemark.check_text(p_name text, p_value text, p_max_bytes int)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_value is null or p_value = '' or octet_length(p_value) > p_max_bytes then
    perform filemark.refuse_argument(p_name, p_value, format('a text of 1 to %s bytes', p_max_bytes));
  end if;
end
$$;

-- Refuses a number that is null or out of range.
create function filemark.check_number(p_name text, p_value numeric, p_min bigint, p_max bigint)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_value is null or p_value not between p_min and p_max then
    perform filemark.refuse_argument(p_name, p_value::text, format('a number from %s to %s', p_min, p_max));
  end if;
end
$$;

-- Refuses a moment that is null or infinite (JSON and JavaScript have no infinite dates).
create function filemark.check_time(p_name text, p_value timestamptz)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_value is null or not isfinite(p_value) then
    perform filemark.refuse_argument(p_name, p_value::text, 'a finite timestamp');
  end if;
end
$$;

-- Refuses a key of a file that cannot be one.
create function filemark.check_key(p_pipeline text, p_file_url text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_pipeline <> '' and octet_length(p_pipeline) <= 100
     and p_file_url <> '' and octet_length(p_file_url) <= 2048 then
    return;
  end if;
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  perform filemark.check_text('p_file_url', p_file_url, 2048);
end
$$;

-- Refuses a JSON value that is larger than p_limit bytes of text. Null is fine.
create function filemark.check_size(p_name text, p_value jsonb, p_limit bigint)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_bytes bigint;
begin
  -- Small values end here, without being turned into text.
  if p_value is null or pg_column_size(p_value) * 8 < p_limit then
    return;
  end if;
  v_bytes := octet_length(p_value::text);
  if v_bytes > p_limit then
    perform filemark.refuse_size(p_name, v_bytes, p_limit, 'bytes');
  end if;
end
$$;

-- Says why a claim does not stand: PT400 for a key that cannot be one, PT404 for an unknown file, PT409
-- for a claim that was lost. Called when a write found no row with that token; never returns.
create function filemark.refuse_claim(p_pipeline text, p_file_url text, p_claim_token bigint)
returns void
language plpgsql
set search_path = ''
as $$
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
    raise exception 'file "%" is unknown in pipeline "%"', p_file_url, p_pipeline
      using errcode = 'PT404', hint = 'Claim it with claim_file, or register it with register_files.';
  end if;
  raise exception 'claim % on file "%" is lost', p_claim_token, p_file_url
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
$$;

-- sql/40_pipelines.sql

-- filemark: pipelines and their settings
--
-- A pipeline's row is made on first use with the defaults of the table. Claims read it; only a claim in a
-- pipeline with max_concurrency locks it, before any file's row.

-- Writes one line of the audit. Without an actor's name it is the role of the call: the API's, not the
-- function owner's.
create function filemark.record_event(
  p_pipeline text,
  p_file_url text,
  p_event text,
  p_actor text,
  p_reason text = null,
  p_detail jsonb = '{}'
)
returns void
language plpgsql
set search_path = ''
as $$
begin
  insert into filemark.file_events (pipeline, file_url, event, occurred_at, actor, reason, detail)
  values (p_pipeline, p_file_url, p_event, clock_timestamp(),
          coalesce(nullif(p_actor, ''), nullif(current_setting('role', true), 'none'), session_user),
          p_reason, p_detail);
end
$$;

-- Makes the pipeline's row unless it is there.
create function filemark.ensure_pipeline(p_pipeline text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if exists (select from filemark.pipelines p where p.pipeline = p_pipeline) then
    return;
  end if;
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  insert into filemark.pipelines (pipeline) values (p_pipeline) on conflict do nothing;
end
$$;

-- Refuses settings that are not {name: value} of known names, types and ranges.
create function filemark.check_settings(p_settings jsonb)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_setting record;
begin
  if jsonb_typeof(p_settings) is distinct from 'object' then
    perform filemark.refuse_argument('p_settings', p_settings::text, 'a JSON object');
  end if;
  for v_setting in
    select given.key as name, given.value, jsonb_typeof(given.value) as type, s.kind, s.low, s.high, s.nullable
      from jsonb_each(p_settings) given
      left join (values
        ('max_attempts',               'whole', 1, 1000, false),
        ('lease_seconds',              'whole', 1, 604800, false),
        ('backoff_base_seconds',       'whole', 0, 604800, false),
        ('backoff_max_seconds',        'whole', 0, 31536000, false),
        ('backoff_jitter',             'ratio', 0, 1, false),
        ('max_concurrency',            'whole', 1, 100000, true),
        ('paused',                     'boolean', null, null, false),
        ('on_overwrite',               'policy', null, null, false),
        ('history_limit',              'whole', 1, 1000000, false),
        ('keep_checkpoints_days',      'whole', 0, 36500, false),
        ('keep_files_days',            'whole', 0, 36500, true),
        ('results_limit_bytes',        'whole', 1, 268435456, false),
        ('cursor_limit_bytes',         'whole', 1, 268435456, false),
        ('stale_after_seconds',        'whole', 1, 31536000, false),
        ('max_history',                'whole', 1, 1000000000, false),
        ('max_results_bytes',          'whole', 1, 268435456, false),
        ('min_checkpoints_per_minute', 'ratio', 0, 1000000, false),
        ('max_backlog_age_seconds',    'whole', 1, 31536000, true),
        ('max_failure_ratio',          'ratio', 0, 1, false),
        ('expect_file_every_seconds',  'whole', 1, 31536000, true),
        ('max_rejected',               'whole', 0, 1000000000, true),
        ('max_rejected_ratio',         'ratio', 0, 1, true)
      ) as s (name, kind, low, high, nullable) on s.name = given.key
  loop
    if v_setting.kind is null then
      perform filemark.refuse_key('p_settings.' || v_setting.name, array(
        select a.attname::text from pg_catalog.pg_attribute a
         where a.attrelid = 'filemark.pipelines'::regclass and a.attnum > 0 and not a.attisdropped
           and a.attname not in ('pipeline', 'created_at')
         order by a.attnum));
    elsif v_setting.type = 'null' and v_setting.nullable then
      continue;
    elsif v_setting.kind = 'boolean' then
      if v_setting.type <> 'boolean' then
        perform filemark.refuse_argument(
          'p_settings.' || v_setting.name, v_setting.value::text, 'true or false');
      end if;
    elsif v_setting.kind = 'policy' then
      if v_setting.value not in ('"reprocess"', '"ignore"') then
        perform filemark.refuse_argument(
          'p_settings.' || v_setting.name, v_setting.value::text, 'reprocess or ignore');
      end if;
    elsif v_setting.type <> 'number'
       or v_setting.value::numeric not between v_setting.low and v_setting.high
       or (v_setting.kind = 'whole' and v_setting.value::numeric % 1 <> 0) then
      perform filemark.refuse_argument(
        'p_settings.' || v_setting.name, v_setting.value::text,
        format('a %snumber from %s to %s%s', case when v_setting.kind = 'whole' then 'whole ' end,
               v_setting.low, v_setting.high, case when v_setting.nullable then ', or null' end));
    end if;
  end loop;
end
$$;

-- Changes the settings named in p_settings and returns all of them; makes the pipeline if it is new. A
-- paused pipeline ({"paused": true}) gives no claims and lets the running ones finish. What changed is
-- in the audit; a repeat changes nothing.
create function filemark.configure_pipeline(p_pipeline text, p_settings jsonb, p_actor text = null)
returns table (
  pipeline text,
  max_attempts int,
  lease_seconds int,
  backoff_base_seconds int,
  backoff_max_seconds int,
  backoff_jitter double precision,
  max_concurrency int,
  paused boolean,
  on_overwrite text,
  history_limit int,
  keep_checkpoints_days int,
  keep_files_days int,
  results_limit_bytes bigint,
  cursor_limit_bytes bigint,
  stale_after_seconds int,
  max_history bigint,
  max_results_bytes bigint,
  min_checkpoints_per_minute double precision,
  max_backlog_age_seconds int,
  max_failure_ratio double precision,
  expect_file_every_seconds int,
  max_rejected bigint,
  max_rejected_ratio double precision,
  created_at timestamptz
)
language plpgsql
security definer
set search_path = ''
as $$
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
  -- 5.0 is a whole number too, but no text of an int.
  v_new := jsonb_populate_record(v_old, (
    select coalesce(jsonb_object_agg(s.key, case jsonb_typeof(s.value)
             when 'number' then to_jsonb(trim_scale(s.value::numeric)) else s.value end), '{}')
      from jsonb_each(p_settings) s));
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
$$;

comment on function filemark.configure_pipeline(text, jsonb, text) is
  'Changes the settings named in p_settings and returns all of them. Pauses with {"paused": true}.';

-- sql/50_files.sql

-- filemark: files and their generations
--
-- A file is known by (pipeline, file_url); its content by the etag. A new etag on a file that nobody is
-- processing starts a new generation: pending again, nothing left of the old content's progress. While
-- the file is being processed the new content is only noted (superseded_by), and whatever ends the claim
-- starts the generation: no worker ever resumes a cursor over other content.

-- Starts the next generation of a file whose row the caller has locked. p_content is an entry as
-- register_files takes it; what it does not say stays, but the size, which is then unknown. p_claim_ended
-- says how the running claim ended, if there is one.
create function filemark.start_generation(
  p_pipeline text,
  p_file_url text,
  p_content jsonb,
  p_now timestamptz,
  p_actor text = null,
  p_claim_ended text = 'lost'
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_old record;
begin
  select f.etag, f.generation, f.status, f.items_processed
    into v_old
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
         completed_at = null
   where f.pipeline = p_pipeline and f.file_url = p_file_url;

  perform filemark.record_event(
    p_pipeline, p_file_url, 'overwritten', p_actor, null,
    jsonb_build_object('old_etag', v_old.etag, 'new_etag', p_content ->> 'etag',
                       'generation', v_old.generation + 1, 'old_status', v_old.status,
                       'old_items_processed', v_old.items_processed));
end
$$;

-- Takes in that a file, whose row the caller has locked, was seen with other content: gives it its first
-- etag, notes the content, or starts a generation. Answers whether the file has a new generation now or
-- will have one when its claim ends.
create function filemark.note_content(
  p_file filemark.file_checkpoints,
  p_content jsonb,
  p_on_overwrite text,
  p_now timestamptz,
  p_actor text = null
)
returns boolean
language plpgsql
set search_path = ''
as $$
declare
  v_etag text := p_content ->> 'etag';
begin
  if v_etag is null or v_etag = p_file.etag then
    return false;
  elsif p_file.etag is null then
    update filemark.file_checkpoints f
       set etag = v_etag
     where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
    return false;
  elsif p_on_overwrite = 'ignore' or v_etag = p_file.superseded_by ->> 'etag' then
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
$$;

-- Raises PT400 for the first text under p_key in p_files that is not a finite timestamp.
create function filemark.check_times(p_files jsonb, p_key text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_file record;
begin
  -- All in one pass; only when that fails, one by one, to name the culprit.
  if (select bool_and(isfinite((e.entry ->> p_key)::timestamptz)) from jsonb_array_elements(p_files) e (entry))
     is not false then
    return;
  end if;
  raise datetime_field_overflow;
exception
  when data_exception then
    for v_file in
      select e.entry ->> p_key as value, e.position - 1 as index
        from jsonb_array_elements(p_files) with ordinality e (entry, position)
       where e.entry ->> p_key is not null
    loop
      begin
        if isfinite(v_file.value::timestamptz) then
          continue;
        end if;
      exception
        when data_exception then
          null;
      end;
      perform filemark.refuse_argument(
        format('p_files[%s].%s', v_file.index, p_key), v_file.value, 'a finite timestamp');
    end loop;
end
$$;

-- Raises PT400 for the first entry of p_files that is not what register_files takes, PT413 for too many.
create function filemark.check_files(p_files jsonb)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_keys constant text[] := array[
    'file_url', 'file_type', 'file_timestamp', 'etag', 'size_bytes', 'priority', 'available_at', 'metadata'];
  v_bad record;
begin
  if jsonb_typeof(p_files) is distinct from 'array' then
    perform filemark.refuse_argument('p_files', p_files::text, 'a JSON array of objects');
  elsif jsonb_array_length(p_files) > 10000 then
    perform filemark.refuse_size('p_files', jsonb_array_length(p_files), 10000, 'files');
  end if;

  select e.position - 1 as index, e.entry, checked.verdict[1] as key, checked.verdict[2] as allowed
    into v_bad
    from jsonb_array_elements(p_files) with ordinality e (entry, position)
   cross join lateral (
     select case
       when jsonb_typeof(e.entry) <> 'object' then
         array[null, 'an object']
       when e.entry - v_keys <> '{}' then
         array[(select min(k.key) from jsonb_object_keys(e.entry - v_keys) k (key)), null]
       when jsonb_typeof(e.entry -> 'file_url') is distinct from 'string'
            or octet_length(e.entry ->> 'file_url') not between 1 and 2048 then
         array['file_url', 'a text of 1 to 2048 bytes']
       when jsonb_typeof(e.entry -> 'file_type') is distinct from 'string'
            or octet_length(e.entry ->> 'file_type') not between 1 and 100 then
         array['file_type', 'a text of 1 to 100 bytes']
       when jsonb_typeof(e.entry -> 'file_timestamp') is distinct from 'string' then
         array['file_timestamp', 'a finite timestamp']
       when jsonb_typeof(e.entry -> 'etag') not in ('string', 'null')
            or octet_length(e.entry ->> 'etag') not between 1 and 1024 then
         array['etag', 'a text of 1 to 1024 bytes, or null']
       when jsonb_typeof(e.entry -> 'size_bytes') not in ('number', 'null')
            or (e.entry ->> 'size_bytes')::numeric not between 0 and 9223372036854775807
            or (e.entry ->> 'size_bytes')::numeric % 1 <> 0 then
         array['size_bytes', 'a whole number of bytes, or null']
       when jsonb_typeof(e.entry -> 'priority') not in ('number', 'null')
            or (e.entry ->> 'priority')::numeric not between -2147483648 and 2147483647
            or (e.entry ->> 'priority')::numeric % 1 <> 0 then
         array['priority', 'a whole number from -2147483648 to 2147483647, or null']
       when jsonb_typeof(e.entry -> 'available_at') not in ('string', 'null') then
         array['available_at', 'a finite timestamp, or null']
       when jsonb_typeof(e.entry -> 'metadata') not in ('object', 'null') then
         array['metadata', 'an object, or null']
       end
   ) as checked (verdict)
   where checked.verdict is not null
   limit 1;
  if found and v_bad.allowed is null then
    perform filemark.refuse_key(format('p_files[%s].%s', v_bad.index, v_bad.key), v_keys);
  elsif found then
    perform filemark.refuse_argument(
      format('p_files[%s]', v_bad.index) || coalesce('.' || v_bad.key, ''),
      case when v_bad.key is null then v_bad.entry::text else v_bad.entry ->> v_bad.key end,
      v_bad.allowed);
  end if;

  perform filemark.check_times(p_files, 'file_timestamp');
  perform filemark.check_times(p_files, 'available_at');
end
$$;

-- Makes files known: new ones become pending, ones with a new etag start a new generation (or are noted to,
-- while they are processed), the rest is left as it is. Of two entries with one file_url the later counts.
-- Rows are inserted and locked in key order; a repeat finds everything unchanged.
create function public.register_files(p_files jsonb, p_pipeline text = 'default')
returns table (registered bigint, new_generations bigint, unchanged bigint)
language plpgsql
security definer
set search_path = ''
as $$
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
         select c.etag from filemark.file_checkpoints c
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
$$;

comment on function public.register_files(jsonb, text) is
  'Makes files known to a pipeline: [{file_url, file_type, file_timestamp, etag?, size_bytes?, priority?, '
  'available_at?, metadata?}, …], at most 10,000. New ones become pending; a new etag starts a new generation.';

-- sql/60_claims.sql

-- filemark: claims
--
-- A claim is a token and a lease on one file. The token grows by one at every claim of the file and is
-- presented with every later call; the lease says until when nobody may take the file over. The attempt is
-- counted here, so that a file which kills its worker reaches the dead letter too.
--
-- Lock order: the pipeline's row (only with max_concurrency), then file rows. The rows of a batch are taken
-- with SKIP LOCKED, so claims never wait for each other.

-- Why a file in this state cannot be claimed at p_now, or null when it can. For a lease that is over with
-- its budget spent the answer is dead_letter, which the caller then makes true.
create function filemark.claim_refusal(
  p_status text,
  p_available_at timestamptz,
  p_lease_expires_at timestamptz,
  p_is_superseded boolean,
  p_attempts int,
  p_max_attempts int,
  p_now timestamptz
)
returns text
language plpgsql
immutable
set search_path = ''
as $$
begin
  return case
    when p_status in ('pending', 'failed') then
      case when p_available_at > p_now then 'waiting' end
    when p_status = 'processing' then
      case
        when p_lease_expires_at > p_now then 'held'
        when p_attempts >= p_max_attempts and not p_is_superseded then 'dead_letter'
      end
    else p_status
  end;
end
$$;

-- How many files of a pipeline are in progress, counted up to p_up_to.
create function filemark.count_in_progress(p_pipeline text, p_up_to int)
returns int
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select count(*)
      from (select from filemark.file_checkpoints f
             where f.pipeline = p_pipeline and f.lease_check_at is not null limit p_up_to) as in_progress);
end
$$;

-- How many more claims a pipeline with max_concurrency may give. Locks the pipeline's row until the
-- transaction ends, so that racing claims count one after the other; the limit is read again under the lock.
create function filemark.free_slots(p_pipeline text)
returns int
language plpgsql
set search_path = ''
as $$
declare
  v_limit int;
begin
  select p.max_concurrency into v_limit from filemark.pipelines p where p.pipeline = p_pipeline for no key update;
  return v_limit - filemark.count_in_progress(p_pipeline, v_limit);
end
$$;

-- Puts on record that a lease ended unrenewed, for a locked row that is about to be taken over, given back
-- or buried.
create function filemark.record_lost_lease(p_file filemark.file_checkpoints, p_actor text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'lease_expired', p_actor, null,
    jsonb_build_object('claim_token', p_file.claim_token, 'processed_by', p_file.processed_by,
                       'lease_expired_at', p_file.lease_expires_at, 'attempts', p_file.attempts,
                       'items_processed', p_file.items_processed));
end
$$;

-- Ends the claim on a locked file whose lease is over and that is about to be claimed again: on record, and
-- with the new generation that was waiting for the claim's end.
create function filemark.end_lost_claim(p_file filemark.file_checkpoints, p_now timestamptz, p_actor text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform filemark.record_lost_lease(p_file, p_actor);
  if p_file.superseded_by is not null then
    perform filemark.start_generation(p_file.pipeline, p_file.file_url, p_file.superseded_by, p_now, p_actor);
  end if;
end
$$;

-- Moves a locked file whose lease is over and whose budget is spent to the dead letter.
create function filemark.bury_lost_file(p_file filemark.file_checkpoints, p_actor text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_message text := format('attempt %s ended with its lease, without progress; the holder was %s',
                           p_file.attempts, p_file.processed_by);
begin
  perform filemark.record_lost_lease(p_file, p_actor);
  update filemark.file_checkpoints f
     set status = 'dead_letter',
         claim_ended = 'lost',
         lease_expires_at = null,
         lease_check_at = null,
         error_message = v_message,
         error = null
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'dead_lettered', p_actor, 'lease_expired',
    jsonb_build_object('attempts', p_file.attempts, 'error_message', v_message));
end
$$;

-- Claims files whose rows the caller has locked and found claimable.
create function filemark.take_files(
  p_pipeline text,
  p_file_urls text[],
  p_worker_id text,
  p_request_id uuid,
  p_lease_seconds int,
  p_now timestamptz
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_lease_end timestamptz := p_now + make_interval(secs => p_lease_seconds);
begin
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
   where f.pipeline = p_pipeline and f.file_url = any (p_file_urls);
end
$$;

-- The claims on the given files, in the given order.
create function filemark.read_claims(p_pipeline text, p_file_urls text[])
returns setof filemark.claim
language plpgsql
stable
set search_path = ''
as $$
begin
  return query
  select 'claimed', f.pipeline::text, f.file_url::text, f.file_type, f.file_timestamp, f.etag, f.size_bytes,
         f.metadata, f.generation, f.claim_token, f.attempts, p.max_attempts, p.lease_seconds,
         f.lease_expires_at, f.cursor, f.items_processed, f.items_total, f.accumulated_results, f.checkpoint_seq
    from filemark.pipelines p
   cross join unnest(p_file_urls) as wanted (file_url)
   cross join lateral (
     -- The offset keeps this a look-up per wanted file, in their order.
     select c.* from filemark.file_checkpoints c
      where c.pipeline = p_pipeline and c.file_url = wanted.file_url offset 0
   ) f
   where p.pipeline = p_pipeline;
end
$$;

-- sql/62_claim_by_name.sql

-- filemark: claiming a file by name
--
-- The caller knows the file; this package may see it for the first time. Most calls on a busy list are
-- refused, so a refusal costs one look: no lock, nothing written. Only what may be claimed, or brings an etag
-- to note, goes on to the locked half, which looks again under the row's lock.

-- The locked half of claim_file: looks again under the row's lock and claims, or answers why not. The first
-- time a file is seen its row is made here.
create function filemark.claim_by_name(
  p_pipeline text,
  p_file_url text,
  p_worker_id text,
  p_content jsonb,
  p_request_id uuid
)
returns text
language plpgsql
set search_path = ''
as $$
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
    insert into filemark.file_checkpoints (pipeline, file_url, file_type, file_timestamp, etag, available_at)
    values (p_pipeline, p_file_url, p_content ->> 'file_type', (p_content ->> 'file_timestamp')::timestamptz,
            p_content ->> 'etag', v_now)
        on conflict do nothing;
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
$$;

-- Claims one file by name, known or not. Answers one row: outcome claimed, or why not. A refusal takes no
-- lock and writes nothing, unless the call brings an etag to note. A repeat with the same p_request_id
-- answers with the claim it already holds, and claims nothing when that has ended.
create function public.claim_file(
  p_file_url text,
  p_file_type text,
  p_file_timestamp timestamptz,
  p_worker_id text,
  p_pipeline text = 'default',
  p_etag text = null,
  p_request_id uuid = null
)
returns table (
  outcome text, pipeline text, file_url text, file_type text, file_timestamp timestamptz, etag text,
  size_bytes bigint, metadata jsonb, generation bigint, claim_token bigint, attempts int, max_attempts int,
  lease_seconds int, lease_expires_at timestamptz, cursor jsonb, items_processed bigint, items_total bigint,
  accumulated_results jsonb, checkpoint_seq bigint
)
language plpgsql
security definer
set search_path = ''
as $$
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
    when v_seen.is_repeat and v_seen.status = 'processing' then 'claimed'
    -- A lease that is over with its budget spent is not refused here: it is yet to become a dead letter.
    when v_seen.is_same_content and not (v_seen.status = 'processing' and v_seen.refusal = 'dead_letter') then
      v_seen.refusal
  end;
  if outcome is null then
    outcome := filemark.claim_by_name(
      p_pipeline, p_file_url, p_worker_id,
      jsonb_build_object('etag', p_etag, 'file_type', p_file_type, 'file_timestamp', p_file_timestamp),
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
$$;

comment on function public.claim_file(text, text, timestamptz, text, text, text, uuid) is
  'Claims one file by name, known or not. One row: outcome claimed with the claim, or held, completed, '
  'waiting, dead_letter, skipped, paused or busy.';

-- sql/64_claim_next.sql

-- filemark: claiming the next files
--
-- The queue is one index: (pipeline, priority, available_at, file_url) of pending and failed files. Retries
-- that wait stand in it behind what is due, per priority; so the search goes priority by priority, and its
-- cost does not grow with what waits, is in progress or is done. It does grow with the number of different
-- priorities above the first one in which something is due: use a few, not one per file.

-- The urls of up to p_limit files that are due, in the order of the queue, their rows locked; files that
-- another session has locked are passed over.
create function filemark.lock_due_files(p_pipeline text, p_file_type text, p_limit int, p_now timestamptz)
returns text[]
language plpgsql
set search_path = ''
as $$
declare
  v_urls text[] := array[]::text[];
  -- Above every priority; each round searches the next lower one.
  v_priority bigint := 2147483648;
begin
  while cardinality(v_urls) < p_limit loop
    if p_file_type is null then
      v_priority := (
        select f.priority from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.status in ('pending', 'failed') and f.priority < v_priority
         order by f.priority desc
         limit 1);
      exit when v_priority is null;
      v_urls := v_urls || array(
        select f.file_url::text from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.status in ('pending', 'failed') and f.priority = v_priority
           and f.available_at <= p_now
         order by f.available_at, f.file_url
         limit p_limit - cardinality(v_urls)
           for no key update skip locked);
    else
      v_priority := (
        select f.priority from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.file_type = p_file_type and f.status in ('pending', 'failed')
           and f.priority < v_priority
         order by f.priority desc
         limit 1);
      exit when v_priority is null;
      v_urls := v_urls || array(
        select f.file_url::text from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.file_type = p_file_type and f.status in ('pending', 'failed')
           and f.priority = v_priority and f.available_at <= p_now
         order by f.available_at, f.file_url
         limit p_limit - cardinality(v_urls)
           for no key update skip locked);
    end if;
  end loop;
  return v_urls;
end
$$;

-- The urls of files whose lease is over and whose budget is not, their rows locked. A timer that fires for a
-- lease that was renewed is moved on; a file whose budget is spent is buried. Looks at a few more than p_limit;
-- lost files of other types are read over, and left to their holders until somebody wants them.
create function filemark.lock_lost_files(
  p_pipeline text,
  p_file_type text,
  p_limit int,
  p_max_attempts int,
  p_now timestamptz,
  p_actor text
)
returns text[]
language plpgsql
set search_path = ''
as $$
declare
  v_file filemark.file_checkpoints;
  v_urls text[] := array[]::text[];
begin
  for v_file in
    select f.* from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.status = 'processing' and f.lease_check_at <= p_now
       and (p_file_type is null or f.file_type = p_file_type)
     order by f.lease_check_at
     limit p_limit + 10
       for no key update skip locked
  loop
    if v_file.lease_expires_at > p_now then
      update filemark.file_checkpoints f
         set lease_check_at = v_file.lease_expires_at
       where f.pipeline = p_pipeline and f.file_url = v_file.file_url;
    elsif v_file.superseded_by is not null then
      -- Its next generation is in the queue now, with a type, a priority and a time of its own.
      perform filemark.end_lost_claim(v_file, p_now, p_actor);
    elsif v_file.attempts >= p_max_attempts then
      perform filemark.bury_lost_file(v_file, p_actor);
    else
      v_urls := v_urls || v_file.file_url::text;
    end if;
  end loop;
  return v_urls;
end
$$;

-- Claims the next files of the queue: highest priority first, then the longest available; among them files
-- whose lease is over. A repeat with the same p_request_id gets the claims that request still holds.
create function filemark.claim_next(
  p_pipeline text,
  p_worker_id text,
  p_limit int,
  p_file_type text,
  p_request_id uuid
)
returns setof filemark.claim
language plpgsql
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_room int := p_limit;
  v_lost text[];
  v_urls text[];
  v_file filemark.file_checkpoints;
begin
  if p_request_id is not null then
    -- A repeat may overtake the call it repeats: it waits here for that call's end.
    perform pg_advisory_xact_lock(hashtextextended('filemark ' || p_request_id, 0));
    select r.file_urls into v_urls
      from filemark.claim_requests r
     where r.pipeline = p_pipeline and r.request_id = p_request_id;
    if found then
      return query select * from filemark.read_claims(p_pipeline, array(
        select f.file_url::text
          from unnest(v_urls) with ordinality u (url, position)
          join filemark.file_checkpoints f on f.pipeline = p_pipeline and f.file_url = u.url
         where f.status = 'processing' and f.request_id = p_request_id
         order by u.position));
      return;
    end if;
  end if;

  select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  if not found or v_settings.paused then
    return;
  end if;
  if v_settings.max_concurrency is not null then
    -- Locks the pipeline's row, before any file's.
    perform filemark.free_slots(p_pipeline);
  end if;

  v_lost := filemark.lock_lost_files(
    p_pipeline, p_file_type, p_limit, v_settings.max_attempts, v_now, p_worker_id);
  if v_settings.max_concurrency is not null then
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
$$;

-- Claims the next 0 to p_limit files that are due, highest priority first, then the longest available; among
-- them files whose lease is over. Never waits for another claim. A repeat with the same p_request_id gets the
-- claims that request still holds, and claims nothing more.
create function public.claim_next_files(
  p_worker_id text,
  p_limit int = 1,
  p_pipeline text = 'default',
  p_file_type text = null,
  p_request_id uuid = null
)
returns table (
  outcome text, pipeline text, file_url text, file_type text, file_timestamp timestamptz, etag text,
  size_bytes bigint, metadata jsonb, generation bigint, claim_token bigint, attempts int, max_attempts int,
  lease_seconds int, lease_expires_at timestamptz, cursor jsonb, items_processed bigint, items_total bigint,
  accumulated_results jsonb, checkpoint_seq bigint
)
language plpgsql
security definer
set search_path = ''
as $$
begin
  -- At most 100: the API cuts results at max_rows, and a claim that is cut off is a claim nobody works on.
  perform filemark.check_text('p_worker_id', p_worker_id, 200),
          filemark.check_number('p_limit', p_limit, 1, 100),
          filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_text('p_file_type', coalesce(p_file_type, '-'), 100);
  return query select * from filemark.claim_next(p_pipeline, p_worker_id, p_limit, p_file_type, p_request_id);
end
$$;

comment on function public.claim_next_files(text, int, text, text, uuid) is
  'Claims the next 0 to p_limit (1 to 100) files that are due, highest priority first, then the longest '
  'available. A repeat with the same p_request_id gets the claims it still holds and claims nothing more.';

-- sql/70_checkpoints.sql

-- filemark: checkpoints
--
-- A checkpoint is the next position to process, how much is done, and what was worked out so far, numbered
-- by checkpoint_seq. Saving one is two small writes: a HOT update of the file's row and one history row. It
-- renews the lease. Progress (a higher items_processed) refills the retry budget.
--
-- A repeat with the same p_checkpoint_seq, token and content is acknowledged and changes nothing; a gap, a
-- step back or other content under a number already used is refused (PT412).

-- Saves a checkpoint, with the number of records that were persisted in the same transaction.
create function filemark.save_checkpoint(
  p_file_url text,
  p_claim_token bigint,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq bigint,
  p_items_total bigint,
  p_records_persisted bigint,
  p_pipeline text
)
returns table (checkpoint_seq bigint, lease_expires_at timestamptz, history_length bigint)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_settings record;
begin
  select p.lease_seconds, p.cursor_limit_bytes, p.results_limit_bytes
    into v_settings
    from filemark.pipelines p
   where p.pipeline = p_pipeline;
  if p_cursor is null then
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
           accumulated_results = coalesce(p_accumulated_results, f.accumulated_results),
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
$$;

-- Answers for a checkpoint that was saved before by the same claim under the same number with the same
-- content, or raises why it cannot be saved. Without a number it is a repeat when its content is the last one's.
create function filemark.repeated_checkpoint(
  p_pipeline text,
  p_file_url text,
  p_claim_token bigint,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq bigint,
  out checkpoint_seq bigint,
  out lease_expires_at timestamptz,
  out history_length bigint,
  out records_persisted bigint
)
language plpgsql
set search_path = ''
as $$
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
       and coalesce(p_accumulated_results = v_file.accumulated_results, p_accumulated_results is null) then
      checkpoint_seq := v_file.checkpoint_seq;
      lease_expires_at := v_file.lease_expires_at;
      history_length := v_file.history_length;
      records_persisted := v_saved.records_persisted;
      return;
    end if;
  end if;

  if p_checkpoint_seq > v_file.checkpoint_seq + 1 then
    raise exception 'p_checkpoint_seq % leaves a gap: the last checkpoint of file "%" is %',
      p_checkpoint_seq, p_file_url, v_file.checkpoint_seq using errcode = 'PT412';
  elsif p_checkpoint_seq <= v_file.checkpoint_seq then
    raise exception 'p_checkpoint_seq % of file "%" was saved before, with other content or by another claim; '
      'the last checkpoint is %', p_checkpoint_seq, p_file_url, v_file.checkpoint_seq
      using errcode = 'PT412';
  else
    raise exception 'p_items_processed % of file "%" %: % are saved already', p_items_processed, p_file_url,
      case when p_items_processed < v_file.items_processed then 'steps back' else 'does not advance' end,
      v_file.items_processed
      using errcode = 'PT412', hint = 'It is the total done in the file so far, not the size of a batch.';
  end if;
end
$$;

-- Saves the file's progress and renews the lease. Null results or total keep what is there; '{}' clears the
-- results. Null p_checkpoint_seq means the next one.
create function public.checkpoint_file(
  p_file_url text,
  p_claim_token bigint,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb = null,
  p_checkpoint_seq bigint = null,
  p_items_total bigint = null,
  p_pipeline text = 'default'
)
returns table (checkpoint_seq bigint, lease_expires_at timestamptz, history_length bigint)
language plpgsql
security definer
set search_path = ''
as $$
begin
  return query
  select s.checkpoint_seq, s.lease_expires_at, s.history_length
    from filemark.save_checkpoint(
      p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results, p_checkpoint_seq,
      p_items_total, 0, p_pipeline) s;
end
$$;

comment on function public.checkpoint_file(text, bigint, jsonb, bigint, jsonb, bigint, bigint, text) is
  'Saves the next position to process, the total of items done, and results so far; renews the lease. Safe to '
  'repeat with the same p_checkpoint_seq.';

-- Renews the lease: until p_pipeline's lease_seconds from now. Answers the new end.
create function public.extend_claim(p_file_url text, p_claim_token bigint, p_pipeline text = 'default')
returns timestamptz
language plpgsql
security definer
set search_path = ''
as $$
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
$$;

comment on function public.extend_claim(text, bigint, text) is
  'Renews the lease of a claim and answers its new end; raises PT409 when the claim is lost.';

-- Locks the claimed file's row until the transaction ends, or raises that the claim is lost. Call it first in
-- your own transaction or function: what you write then commits only while the claim stands.
create function filemark.assert_claim(p_file_url text, p_claim_token bigint, p_pipeline text = 'default')
returns void
language plpgsql
security definer
set search_path = ''
as $$
begin
  perform from filemark.file_checkpoints f
    where f.pipeline = p_pipeline and f.file_url = p_file_url
      and f.claim_token = p_claim_token and f.status = 'processing'
      for no key update;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;
end
$$;

comment on function filemark.assert_claim(text, bigint, text) is
  'Locks the claimed file until the transaction ends, or raises PT409: call it first in your own transaction.';

-- sql/75_persist.sql

-- filemark: records and cursor in one transaction
--
-- Over plain HTTP every call is a transaction of its own. persist_records puts the batch's rows and its
-- checkpoint into one: both are there afterwards, or neither. It runs as its caller, whose own INSERT grant
-- on the target decides; only the checkpoint is saved with the rights of this package's owner.

-- Locks the claimed file's row until the transaction ends. Answers nothing when the checkpoint is the next
-- one, and what was saved when it is a repeat; raises when it can be neither.
create function filemark.begin_persist(
  p_file_url text,
  p_claim_token bigint,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq bigint,
  p_pipeline text
)
returns table (records_persisted bigint, checkpoint_seq bigint, lease_expires_at timestamptz)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_file record;
begin
  if p_cursor is null then
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
$$;

-- The table that p_target names; unqualified means public.
create function filemark.target_table(p_target text)
returns regclass
language plpgsql
stable
set search_path = ''
as $$
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
     or not exists (select from pg_catalog.pg_class c where c.oid = v_table and c.relkind in ('r', 'p', 'v', 'f')) then
    perform filemark.refuse_argument('p_target', p_target, 'the name of a table, as schema.table');
  end if;
  return v_table;
end
$$;

-- Inserts records (an array of objects) as the caller; answers how many. Only the columns a record names are
-- inserted; records that meet a unique key of the target are passed over.
create function filemark.insert_records(p_target regclass, p_records jsonb)
returns bigint
language plpgsql
set search_path = public, extensions
as $$
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
      raise exception 'p_records names a column "%" that % does not have', left(v_unknown, 100), p_target
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
$$;

-- Inserts a batch of records into p_target and saves the checkpoint, in one transaction. Answers how many
-- records went in; those that met a unique key of the target are passed over and not counted. Without
-- p_checkpoint_seq, p_items_processed must grow, so that a repeat is recognised and inserts nothing.
create function public.persist_records(
  p_file_url text,
  p_claim_token bigint,
  p_target text,
  p_records jsonb,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb = null,
  p_checkpoint_seq bigint = null,
  p_pipeline text = 'default'
)
returns table (records_persisted bigint, checkpoint_seq bigint, lease_expires_at timestamptz)
language plpgsql
-- Not empty: a trigger of the target may count on finding the user's own functions and tables.
set search_path = public, extensions
as $$
declare
  v_target regclass := filemark.target_table(p_target);
begin
  if jsonb_typeof(p_records) is distinct from 'array' then
    perform filemark.refuse_argument('p_records', p_records::text, 'a JSON array of objects');
  elsif jsonb_array_length(p_records) > 10000 then
    perform filemark.refuse_size('p_records', jsonb_array_length(p_records), 10000, 'records');
  elsif exists (select from jsonb_array_elements(p_records) e (record) where jsonb_typeof(e.record) <> 'object') then
    perform filemark.refuse_argument('p_records', p_records::text, 'a JSON array of objects');
  end if;

  return query
  select b.records_persisted, b.checkpoint_seq, b.lease_expires_at
    from filemark.begin_persist(
      p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results, p_checkpoint_seq,
      p_pipeline) b;
  if found then
    return;
  end if;

  records_persisted := filemark.insert_records(v_target, p_records);
  select s.checkpoint_seq, s.lease_expires_at
    into checkpoint_seq, lease_expires_at
    from filemark.save_checkpoint(
      p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results, p_checkpoint_seq,
      null, records_persisted, p_pipeline) s;
  return next;
end
$$;

comment on function public.persist_records(text, bigint, text, jsonb, jsonb, bigint, jsonb, bigint, text) is
  'Inserts records into p_target and saves the checkpoint in one transaction, as the caller: exactly-once '
  'loading over plain HTTP. A repeat with the same p_checkpoint_seq inserts nothing.';

-- sql/80_completions.sql

-- filemark: completions
--
-- A claim ends completed, failed or released (82_failures.sql), always by the holder of the token. The row
-- remembers how its last claim ended (claim_ended), so that a repeat by the same token is answered as the
-- first call was. If newer content was noted meanwhile, the end of the claim starts the next generation.

-- Finishes claims, given in key order, and answers each: completed, already_completed, superseded or
-- claim_lost. One lost claim undoes nothing else.
create function filemark.complete_files(p_pipeline text, p_completions filemark.completion[])
returns table (file_url text, outcome text)
language plpgsql
set search_path = ''
-- A look-up by key per completion, in their order, however few or many rows the planner expects (97_plans.sql).
set enable_hashjoin = off
set enable_mergejoin = off
as $$
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
                                         extract(epoch from v_now - f.started_at) * 1000),
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
$$;

-- Answers for a completion that could not simply be made: starts the next generation when the content
-- changed while it was processed, recognises a repeat, or finds the claim lost.
create function filemark.complete_changed_file(
  p_pipeline text,
  p_file_url text,
  p_claim_token bigint,
  p_etag text,
  p_now timestamptz
)
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_file filemark.file_checkpoints;
begin
  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url and f.claim_token = p_claim_token
     for no key update;
  if not found then
    return 'claim_lost';
  elsif v_file.status = 'processing' then
    perform filemark.start_generation(
      p_pipeline, p_file_url, coalesce(v_file.superseded_by, jsonb_build_object('etag', p_etag)), p_now,
      v_file.processed_by, 'superseded');
    return 'superseded';
  else
    return case v_file.claim_ended
      when 'completed' then 'already_completed'
      when 'superseded' then 'superseded'
      else 'claim_lost'
    end;
  end if;
end
$$;

-- Refuses what cannot be said of a finished file. p_prefix stands before the names in the message.
create function filemark.check_completion(p_completion filemark.completion, p_pipeline text, p_prefix text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_max constant bigint := 9223372036854775807;
begin
  perform filemark.check_text(p_prefix || 'file_url', p_completion.file_url, 2048),
          filemark.check_number(p_prefix || 'claim_token', p_completion.claim_token, 1, v_max),
          filemark.check_number(p_prefix || 'records_total', p_completion.records_total, 0, v_max),
          filemark.check_number(p_prefix || 'records_filtered', p_completion.records_filtered, 0, v_max),
          filemark.check_number(p_prefix || 'records_persisted', p_completion.records_persisted, 0, v_max),
          filemark.check_number(p_prefix || 'processing_time_ms', coalesce(p_completion.processing_time_ms, 0), 0, v_max),
          filemark.check_text(p_prefix || 'etag', coalesce(p_completion.etag, '-'), 1024);
  if p_completion.accumulated_results is not null then
    perform filemark.check_size(
      p_prefix || 'accumulated_results', p_completion.accumulated_results,
      (select p.results_limit_bytes from filemark.pipelines p where p.pipeline = p_pipeline));
  end if;
end
$$;

-- Marks the file as done. Answers completed; already_completed for a repeat by the same token; superseded when
-- newer content was seen meanwhile or p_etag, the etag actually read, is not the claimed one: the file is then
-- pending again as a new generation. Counts are totals of the whole file; what persist_records counted is
-- never lowered. Null p_processing_time_ms is measured from the claim.
create function public.complete_file(
  p_file_url text,
  p_claim_token bigint,
  p_records_total bigint = 0,
  p_records_filtered bigint = 0,
  p_records_persisted bigint = 0,
  p_processing_time_ms bigint = null,
  p_accumulated_results jsonb = null,
  p_etag text = null,
  p_pipeline text = 'default'
)
returns table (outcome text)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_completion filemark.completion := (
    p_file_url, p_claim_token, p_records_total, p_records_filtered, p_records_persisted,
    p_processing_time_ms, p_accumulated_results, p_etag);
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_completion(v_completion, p_pipeline, 'p_');
  select c.outcome into outcome from filemark.complete_files(p_pipeline, array[v_completion]) c;
  if outcome = 'claim_lost' then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;
  return next;
end
$$;

comment on function public.complete_file(text, bigint, bigint, bigint, bigint, bigint, jsonb, text, text) is
  'Marks a claimed file as done: completed, already_completed for a repeat, or superseded when newer content '
  'was seen meanwhile and the file is pending again.';

-- The completions in p_completions, checked, with their defaults, in key order.
create function filemark.parse_completions(p_completions jsonb, p_pipeline text)
returns filemark.completion[]
language plpgsql
set search_path = ''
as $$
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
                     where n.value !~ '^\d{1,18}$') then
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
      from jsonb_populate_recordset(null::filemark.completion, p_completions) c
     order by c.file_url collate "C");
  perform filemark.check_completion(c, p_pipeline, format('p_completions[%s].', c.file_url))
     from unnest(v_completions) c;
  return v_completions;
end
$$;

-- Finishes files and claims the next ones in one transaction: a busy worker's only round trip. Answers the
-- new claims; before them, a row with outcome claim_lost for each completion whose claim was lost, which
-- undoes nothing else. A repeat with the same p_request_id completes nothing twice and claims nothing more.
create function public.complete_and_claim_next(
  p_worker_id text,
  p_completions jsonb,
  p_limit int = 1,
  p_pipeline text = 'default',
  p_file_type text = null,
  p_request_id uuid = null
)
returns table (
  outcome text, pipeline text, file_url text, file_type text, file_timestamp timestamptz, etag text,
  size_bytes bigint, metadata jsonb, generation bigint, claim_token bigint, attempts int, max_attempts int,
  lease_seconds int, lease_expires_at timestamptz, cursor jsonb, items_processed bigint, items_total bigint,
  accumulated_results jsonb, checkpoint_seq bigint
)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_completions filemark.completion[];
  v_finished record;
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
  for v_finished in select c.file_url, c.outcome from filemark.complete_files(p_pipeline, v_completions) c loop
    if v_finished.outcome = 'claim_lost' then
      outcome := 'claim_lost';
      pipeline := p_pipeline;
      file_url := v_finished.file_url;
      return next;
    end if;
  end loop;

  return query select * from filemark.claim_next(p_pipeline, p_worker_id, p_limit, p_file_type, p_request_id);
end
$$;

comment on function public.complete_and_claim_next(text, jsonb, int, text, text, uuid) is
  'Finishes [{file_url, claim_token, records_total?, …}, …] and claims the next files in one transaction. A '
  'completion whose claim was lost comes back with outcome claim_lost and undoes nothing else.';

-- sql/82_failures.sql

-- filemark: failures and releases
--
-- An attempt is charged at the claim. A failure keeps the charge: the file waits for its retry, or is a dead
-- letter once the budget is spent. A release gives it back: nothing was wrong with the file.

-- When a failed attempt is tried again: base x 2^(attempts - 1) seconds, capped, give or take the jitter.
create function filemark.backoff(p_settings filemark.pipelines, p_attempts int)
returns interval
language plpgsql
volatile
set search_path = ''
as $$
begin
  return make_interval(secs => least(
    p_settings.backoff_max_seconds,
    least(p_settings.backoff_base_seconds * 2.0 ^ least(p_attempts - 1, 30), p_settings.backoff_max_seconds)
      * (1 + p_settings.backoff_jitter * (2 * random() - 1))));
end
$$;

-- Gives the file back with an error. With budget left and p_retryable it is tried again after the backoff, or
-- after p_retry_after_seconds; otherwise it is a dead letter. If newer content was noted, that is next.
-- Answers the file's new state; a repeat by the same token answers the same.
create function public.fail_file(
  p_file_url text,
  p_claim_token bigint,
  p_error_message text,
  p_retryable boolean = true,
  p_error jsonb = null,
  p_retry_after_seconds int = null,
  p_pipeline text = 'default'
)
returns table (status text, attempts int, available_at timestamptz)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_file filemark.file_checkpoints;
  v_is_final boolean;
  v_due timestamptz;
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
    v_is_final := not p_retryable or v_file.attempts >= v_settings.max_attempts;
    v_due := v_now + coalesce(make_interval(secs => p_retry_after_seconds),
                              filemark.backoff(v_settings, v_file.attempts));
    perform filemark.record_event(
      p_pipeline, p_file_url, 'failed', v_file.processed_by, null,
      jsonb_build_object('claim_token', p_claim_token, 'attempts', v_file.attempts, 'error_message', p_error_message,
                         'error', p_error, 'items_processed', v_file.items_processed));
    if v_file.superseded_by is not null then
      perform filemark.start_generation(
        p_pipeline, p_file_url, v_file.superseded_by, v_now, v_file.processed_by, 'failed');
    else
      update filemark.file_checkpoints f
         set status = case when v_is_final then 'dead_letter' else 'failed' end,
             claim_ended = 'failed',
             lease_expires_at = null,
             lease_check_at = null,
             available_at = case when v_is_final then f.available_at else v_due end,
             error_message = p_error_message,
             error = p_error
       where f.pipeline = p_pipeline and f.file_url = p_file_url;
      if v_is_final then
        perform filemark.record_event(
          p_pipeline, p_file_url, 'dead_lettered', v_file.processed_by,
          case when p_retryable then 'max_attempts_exceeded' else 'not_retryable' end,
          jsonb_build_object('attempts', v_file.attempts, 'error_message', p_error_message));
      end if;
    end if;
  end if;

  return query
  select f.status, f.attempts, case when f.status in ('pending', 'failed') then f.available_at end
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
end
$$;

comment on function public.fail_file(text, bigint, text, boolean, jsonb, int, text) is
  'Gives a claimed file back with an error: failed with the time of its retry, or dead_letter when the budget is '
  'spent or the error is not retryable.';

-- Gives the file back at once, with its checkpoint, its place in the queue and the attempt it was charged:
-- for a shutdown or a time budget that ends. A repeat by the same token changes nothing.
create function public.release_file(p_file_url text, p_claim_token bigint, p_pipeline text = 'default')
returns void
language plpgsql
security definer
set search_path = ''
as $$
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
  perform filemark.record_event(
    p_pipeline, p_file_url, 'released', v_file.processed_by, null,
    jsonb_build_object('claim_token', p_claim_token, 'items_processed', v_file.items_processed));
end
$$;

comment on function public.release_file(text, bigint, text) is
  'Gives a claimed file back at once, keeps its checkpoint and refunds the attempt.';

-- sql/90_reading.sql

-- filemark: reading
--
-- What one asks about files without changing anything. All STABLE, so that the API runs them read-only.

-- Everything known about one file, or nothing when it is not known.
create function public.get_file_checkpoint(p_file_url text, p_pipeline text = 'default')
returns table (
  pipeline text, file_url text, file_type text, file_timestamp timestamptz, size_bytes bigint, etag text,
  generation bigint, superseded_by jsonb, metadata jsonb, status text, priority int, available_at timestamptz,
  claim_token bigint, claim_ended text, processed_by text, started_at timestamptz, lease_expires_at timestamptz,
  lease_check_at timestamptz, attempts int, cursor jsonb, items_processed bigint, items_total bigint,
  accumulated_results jsonb, checkpoint_seq bigint, checkpointed_at timestamptz, history_length bigint,
  records_total bigint, records_filtered bigint, records_persisted bigint, records_rejected bigint,
  processing_time_ms bigint, error_message text, error jsonb, completed_at timestamptz, created_at timestamptz
)
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  perform filemark.check_key(p_pipeline, p_file_url);
  return query
  select f.pipeline::text, f.file_url::text, f.file_type, f.file_timestamp, f.size_bytes, f.etag,
         f.generation, f.superseded_by, f.metadata, f.status, f.priority, f.available_at,
         f.claim_token, f.claim_ended, f.processed_by, f.started_at, f.lease_expires_at,
         f.lease_check_at, f.attempts, f.cursor, f.items_processed, f.items_total,
         f.accumulated_results, f.checkpoint_seq, f.checkpointed_at, f.history_length,
         f.records_total, f.records_filtered, f.records_persisted, f.records_rejected,
         f.processing_time_ms, f.error_message, f.error, f.completed_at, f.created_at
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
end
$$;

comment on function public.get_file_checkpoint(text, text) is
  'Everything known about one file, or no row when it is not known.';

-- The same rows for many files, by file_url: the first p_limit after p_after, of one status or of all.
create function public.list_file_checkpoints(
  p_status text = null,
  p_limit int = 100,
  p_after text = null,
  p_pipeline text = 'default'
)
returns table (
  pipeline text, file_url text, file_type text, file_timestamp timestamptz, size_bytes bigint, etag text,
  generation bigint, superseded_by jsonb, metadata jsonb, status text, priority int, available_at timestamptz,
  claim_token bigint, claim_ended text, processed_by text, started_at timestamptz, lease_expires_at timestamptz,
  lease_check_at timestamptz, attempts int, cursor jsonb, items_processed bigint, items_total bigint,
  accumulated_results jsonb, checkpoint_seq bigint, checkpointed_at timestamptz, history_length bigint,
  records_total bigint, records_filtered bigint, records_persisted bigint, records_rejected bigint,
  processing_time_ms bigint, error_message text, error jsonb, completed_at timestamptz, created_at timestamptz
)
language plpgsql
stable
security definer
set search_path = ''
as $$
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
$$;

comment on function public.list_file_checkpoints(text, int, text, text) is
  'The rows of get_file_checkpoint for many files, by file_url: p_limit (1 to 1000) of them after p_after.';

-- Of the given urls (at most 1,000), known or not, those that claim_file would get now; each once, in the
-- order given.
create function public.pending_files(p_file_urls text[], p_pipeline text = 'default')
returns table (file_url text)
language plpgsql
stable
security definer
set search_path = ''
as $$
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
   where case
           when f.status is null then not v_is_full
           else filemark.claim_refusal(
                  f.status, f.available_at, f.lease_expires_at, f.superseded_by is not null, f.attempts,
                  v_settings.max_attempts, v_now) is null
                and (f.status = 'processing' or not v_is_full)
         end
   group by u.url
   order by min(u.position);
end
$$;

comment on function public.pending_files(text[], text) is
  'Of the given file_urls (at most 1,000), known or not, those that claim_file would get now.';

-- Per pipeline, or of the one given: how many files are in which state, how old the backlog is, what was
-- loaded, what fails. failure_ratio: failed and dead files among all that were finished or failed.
create function public.pipeline_stats(p_pipeline text = null)
returns table (
  pipeline text, pending bigint, processing bigint, completed bigint, failed bigint, dead_letter bigint,
  skipped bigint, total bigint, oldest_pending_age_seconds double precision, records_total bigint,
  records_filtered bigint, records_persisted bigint, records_rejected bigint, failure_ratio double precision,
  last_completed_at timestamptz
)
language plpgsql
stable
security definer
set search_path = ''
as $$
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
            coalesce(sum(f.records_total), 0)::bigint as records_total,
            coalesce(sum(f.records_filtered), 0)::bigint as records_filtered,
            coalesce(sum(f.records_persisted), 0)::bigint as records_persisted,
            coalesce(sum(f.records_rejected), 0)::bigint as records_rejected,
            max(f.completed_at) as last_completed_at
       from filemark.file_checkpoints f
      where f.pipeline = p.pipeline
   ) s
   where p_pipeline is null or p.pipeline = p_pipeline
   order by p.pipeline;
end
$$;

comment on function public.pipeline_stats(text) is
  'Per pipeline: files by status, age of the oldest pending file, records, failure ratio, last completion.';

-- sql/95_operating.sql

-- filemark: operating
--
-- What a person or a schedule does to files: put them back, and clean up after workers that vanished.

-- The checkpoint of the history that p_from names, for a file whose row the caller has locked.
create function filemark.checkpoint_to_resume(p_file filemark.file_checkpoints, p_from text)
returns filemark.checkpoint_history
language plpgsql
set search_path = ''
as $$
declare
  v_seq bigint;
  v_checkpoint filemark.checkpoint_history;
  v_kept record;
begin
  if p_from is null or p_from !~ '^(checkpoint|start|checkpoint:[1-9]\d{0,17})$' then
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
$$;

-- Makes a locked file pending from the given checkpoint, with a full budget and nothing of what came after.
create function filemark.rewind_file(
  p_file filemark.file_checkpoints,
  p_checkpoint filemark.checkpoint_history,
  p_now timestamptz
)
returns void
language plpgsql
set search_path = ''
as $$
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
         history_length = f.history_length - v_dropped.checkpoints,
         records_total = 0,
         records_filtered = 0,
         records_persisted = case when p_checkpoint.checkpoint_seq = 0 then 0
                                  else greatest(f.records_persisted - v_dropped.records, 0) end,
         records_rejected = 0,
         processing_time_ms = null,
         error_message = null,
         error = null,
         completed_at = null
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
end
$$;

-- Puts a file back into the queue with a full budget, from its last checkpoint, from the start, or from an
-- earlier checkpoint (whose results are not kept: they are cleared). A file being processed is taken from its
-- holder only with p_force; the holder's token is dead at once. A repeat changes nothing.
create function public.requeue_file(
  p_file_url text,
  p_from text = 'checkpoint',
  p_force boolean = false,
  p_reason text = null,
  p_actor text = null,
  p_pipeline text = 'default'
)
returns table (status text, checkpoint_seq bigint)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_file filemark.file_checkpoints;
  v_checkpoint filemark.checkpoint_history;
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
$$;

comment on function public.requeue_file(text, text, boolean, text, text, text) is
  'Puts a file back into the queue with a full budget: from its last ''checkpoint'', from ''start'', or from '
  '''checkpoint:<number>''. p_force takes it from a live holder. Audited.';

-- Ends claims whose lease is over, without a worker: files with budget left become pending again and keep
-- their checkpoint, the others are dead letters. At most p_limit per pipeline. With p_dry_run it only says
-- what it would do. May run twice at once: rows another session works on are passed over.
create function filemark.reclaim_stale_claims(
  p_limit int = 1000,
  p_dry_run boolean = false,
  p_pipeline text = null
)
returns table (pipeline text, file_url text, action text)
language plpgsql
security definer
set search_path = ''
as $$
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
    raise exception 'pipeline "%" is unknown', p_pipeline using errcode = 'PT404';
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
                             limit p_limit);
  end loop;
end
$$;

comment on function filemark.reclaim_stale_claims(int, boolean, text) is
  'Ends claims whose lease is over: files with budget left are pending again, the others dead letters.';

-- sql/97_plans.sql

-- filemark: plans that stay good while the tables grow
--
-- A session keeps the plans it made. One made while a table had a page of rows reads that page whole and sorts
-- it; when a million files are registered, the same plan reads a million rows per claim, until the next
-- analyze. Every statement of these functions has an index that serves it, in its order, so reading and
-- sorting whole tables is forbidden to them, and to what they call; and because one plan is right for all
-- arguments, it is made once a session instead of at each call (half of a claim's time, measured).
-- persist_records is not among them: the caller's table is planned as ever.
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
    'filemark.assert_claim(text, bigint, text)',
    'filemark.begin_persist(text, bigint, jsonb, bigint, jsonb, bigint, text)',
    'filemark.save_checkpoint(text, bigint, jsonb, bigint, jsonb, bigint, bigint, bigint, text)',
    'filemark.reclaim_stale_claims(int, boolean, text)'
  ]::regprocedure[] loop
    execute format('alter function %s set plan_cache_mode = force_generic_plan', v_function);
    execute format('alter function %s set enable_seqscan = off', v_function);
    execute format('alter function %s set enable_bitmapscan = off', v_function);
    execute format('alter function %s set enable_sort = off', v_function);
  end loop;
end
$plans$;

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
              'get_file_checkpoint', 'list_file_checkpoints', 'pending_files', 'pipeline_stats', 'requeue_file'))
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
           filemark.configure_pipeline(text, jsonb, text),
           filemark.reclaim_stale_claims(int, boolean, text)
         to %I', v_role);
    end if;
  end loop;
end
$grants$;

notify pgrst, 'reload schema';

-- migrate:down
