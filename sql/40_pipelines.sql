-- filemark: pipelines and their settings
--
-- A pipeline's row is made on first use with the defaults of the table. Claims read it; only a claim in a
-- pipeline with max_concurrency locks it, before any file's row.

-- Who acts: the name given, or else the role of the call: the API's, not the function owner's.
create function filemark.actor_of(p_actor text)
returns text
language plpgsql
stable
set search_path = ''
as $$
begin
  return coalesce(nullif(p_actor, ''), nullif(current_setting('role', true), 'none'), session_user);
end
$$;

-- Writes one line of the audit.
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
          filemark.actor_of(p_actor), p_reason, p_detail);
end
$$;

-- Counts something that happened to files, with the records it is about.
create function filemark.tally(
  p_pipeline text,
  p_what text,
  p_files bigint = 1,
  p_records_total numeric = 0,
  p_records_filtered numeric = 0,
  p_records_persisted numeric = 0,
  p_records_rejected numeric = 0
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  -- A claim must not fail to end because counts that are allowed one by one are too large together.
  v_max constant bigint := 9223372036854775807;
begin
  insert into filemark.tallies (
    pipeline, occurred_at, what, files, records_total, records_filtered, records_persisted, records_rejected)
  values (p_pipeline, clock_timestamp(), p_what, p_files, least(p_records_total, v_max),
          least(p_records_filtered, v_max), least(p_records_persisted, v_max), least(p_records_rejected, v_max));
end
$$;

-- Counts that a file, given as it was before, is completed no more, if it was.
create function filemark.tally_reopened(p_file filemark.file_checkpoints)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_file.status = 'completed' then
    perform filemark.tally(
      p_file.pipeline, 'reopened', 1, p_file.records_total, p_file.records_filtered, p_file.records_persisted,
      p_file.records_rejected);
  end if;
end
$$;

-- Refuses the name of a pipeline that is not known.
create function filemark.check_pipeline(p_pipeline text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  if not exists (select from filemark.pipelines p where p.pipeline = p_pipeline) then
    raise exception 'pipeline "%" is unknown', filemark.on_one_line(p_pipeline) using errcode = 'PT404';
  end if;
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

-- A pipeline's row with the given settings, which were checked.
create function filemark.apply_settings(p_pipeline filemark.pipelines, p_settings jsonb)
returns filemark.pipelines
language plpgsql
immutable
set search_path = ''
as $$
begin
  -- 5.0 is a whole number too, but no text of an int.
  return jsonb_populate_record(p_pipeline, (
    select coalesce(jsonb_object_agg(s.key, case jsonb_typeof(s.value)
             when 'number' then to_jsonb(trim_scale(s.value::numeric)) else s.value end), '{}')
      from jsonb_each(p_settings) s));
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
$$;

comment on function filemark.configure_pipeline(text, jsonb, text) is
$comment$Changes settings of a pipeline.

p_pipeline: the pipeline, 1 to 100 bytes; made on first use.
p_settings: the settings to change, {name: value}, each as in filemark.pipelines; {"paused": true} pauses.
p_actor: who, at most 200 bytes; null for the role of the call.
Returns: one row of filemark.pipelines, as it is now.
Errors: PT400 bad argument.$comment$;
