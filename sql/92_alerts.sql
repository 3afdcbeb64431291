-- filemark: alerts
--
-- What is wrong now, one row per alert, with what to do about it. The thresholds are settings of the pipeline
-- (filemark.configure_pipeline) or in filemark.alert_limits. Whoever cannot ask gets told: check_alerts, which pg_cron
-- runs every minute (98_schedule.sql), keeps a log of alerts and sends word when one opens and when one is resolved.

-- When the oldest work of maintenance in each pipeline should have been done: tallies to add up, histories to cut,
-- checkpoints to clear, files to purge. Null when there is none. A run that cannot keep up is late too.
create view filemark.maintenance_due with (security_invoker = true) as
select p.pipeline,
       least(
         (select t.occurred_at from filemark.tallies t
           where t.pipeline = p.pipeline
           order by t.tally_id
           limit 1),
         (select l.listed_at from filemark.long_histories l
           where l.pipeline = p.pipeline
           order by l.listed_at, l.file_url
           limit 1),
         (select f.kept_since + make_interval(days => p.keep_checkpoints_days) from filemark.file_checkpoints f
           where f.pipeline = p.pipeline and f.kept_since is not null
           order by f.kept_since
           limit 1),
         (select f.completed_at + make_interval(days => p.keep_files_days) from filemark.file_checkpoints f
           where f.pipeline = p.pipeline and f.completed_at is not null and p.keep_files_days is not null
           order by f.completed_at
           limit 1)) as due_since,
       (select r.finished_at from filemark.maintenance_runs r
         where r.pipeline = p.pipeline
         order by r.run_id desc
         limit 1) as last_run_at
  from filemark.pipelines p;

comment on view filemark.maintenance_due is 'Since when work waits for maintenance in each pipeline.';
comment on column filemark.maintenance_due.pipeline is 'The pipeline.';
comment on column filemark.maintenance_due.due_since is
  'Since when the oldest of it waits; null or in the future when nothing is to be done.';
comment on column filemark.maintenance_due.last_run_at is
  'When maintenance was last done; null for not in the last day.';

-- What is wrong with single files.
create function filemark.file_alerts()
returns table (
  alert text, pipeline text, file_url text, value double precision, threshold double precision, since timestamptz,
  message text, hint text
)
language plpgsql
stable
set search_path = ''
as $$
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
$$;

-- When the first of a pipeline's pending and failed files may, or might, be claimed. The queue has them by priority: as
-- long as these are few, it is the first of each that is looked at, however many wait.
create function filemark.oldest_available_at(p_pipeline text)
returns timestamptz
language plpgsql
stable
set search_path = ''
as $$
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
$$;

-- What is wrong with the files of a pipeline: too many of them are lost, wait or fail. Up to three are named.
create function filemark.pipeline_alerts()
returns table (
  alert text, severity text, pipeline text, value double precision, threshold double precision, since timestamptz,
  message text, hint text
)
language plpgsql
stable
set search_path = ''
as $$
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
$$;

-- What is wrong around them: with maintenance, with whoever delivers the files, with the database.
create function filemark.surrounding_alerts()
returns table (
  alert text, severity text, pipeline text, value double precision, threshold double precision, since timestamptz,
  message text, hint text
)
language plpgsql
stable
set search_path = ''
as $$
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
$$;

-- Of alerts about files, at most 20 of each kind are shown per pipeline, so that an outage is no flood.
--
-- To compile so many expressions takes seconds, to evaluate them takes milliseconds. And a plan made while the tables
-- were empty is kept: it reads by index from the beginning (97_plans.sql).
create function filemark.current_alerts()
returns table (
  alert text, severity text, pipeline text, file_url text, value double precision, threshold double precision,
  since timestamptz, message text, hint text
)
language plpgsql
stable
security definer
set search_path = ''
set jit = off
set enable_seqscan = off
as $$
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
$$;

comment on function filemark.current_alerts() is
$comment$What is wrong now: the rows of filemark.alerts, which is the view to read.

Returns: a row of filemark.alerts for each.$comment$;

create view filemark.alerts with (security_invoker = true) as
select a.alert, a.severity, a.pipeline, a.file_url, a.value, a.threshold, a.since, a.message, a.hint
  from filemark.current_alerts() a;

comment on view filemark.alerts is 'What is wrong now. Of alerts about files, at most 20 of each kind per pipeline.';
comment on column filemark.alerts.alert is
  'stale_checkpoint, large_history, large_results, infrequent_checkpoints, dead_letters, expired_claims, backlog_age, '
  'failure_ratio, maintenance_overdue, missing_files or held_snapshot.';
comment on column filemark.alerts.severity is
  'critical: files are not loaded, or will not be soon. warning: it can wait for the morning.';
comment on column filemark.alerts.pipeline is 'The pipeline; empty for the whole database.';
comment on column filemark.alerts.file_url is 'The file it is about; null for the whole pipeline.';
comment on column filemark.alerts.value is 'What was measured; its unit is that of the threshold.';
comment on column filemark.alerts.threshold is 'What it is measured against.';
comment on column filemark.alerts.since is 'Since when.';
comment on column filemark.alerts.message is 'What is wrong, with names and numbers.';
comment on column filemark.alerts.hint is 'What to do, as a statement where there is one.';

create function filemark.alert_count()
returns bigint
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  return (select count(*) from filemark.current_alerts());
end
$$;

comment on function filemark.alert_count() is
$comment$How many rows filemark.alerts has: zero when nothing is wrong, and only then.

Returns: the count.$comment$;
