-- filemark: metrics
--
-- The same numbers for Prometheus, which reads them straight from the API: GET /rpc/filemark_metrics with
-- Accept: text/plain, as Prometheus sends it. The series are bounded: per pipeline, and of files only sums and maxima.
-- Counters come from the tallies and never fall; gauges say how things are now.

-- PostgREST answers with the media type that the returned domain is named after, whatever schema it is in.
create domain filemark."text/plain" as text;

comment on domain filemark."text/plain" is 'Text that the API answers as it is, not as JSON.';

-- The metrics in the order in which they are shown.
create function filemark.metric_families()
returns table (metric text, type text, help text)
language plpgsql
immutable
set search_path = ''
as $$
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
$$;

-- A label with its value: name="value".
create function filemark.metric_label(p_name text, p_value text)
returns text
language plpgsql
immutable
set search_path = ''
as $$
begin
  return format('%s="%s"', p_name,
                replace(replace(replace(p_value, '\', '\\'), '"', '\"'), chr(10), '\n'));
end
$$;

-- Of pipelines. A claim is counted when it ends, and while it is in progress.
create function filemark.pipeline_samples()
returns table (metric text, labels text, value numeric)
language plpgsql
stable
set search_path = ''
as $$
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
$$;

-- Of upkeep. What is zero is said too, so that a query about it has an answer.
create function filemark.upkeep_samples()
returns table (metric text, labels text, value numeric)
language plpgsql
stable
set search_path = ''
as $$
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
$$;

create function public.filemark_metrics()
returns filemark."text/plain"
language plpgsql
stable
security definer
set search_path = ''
set jit = off
set enable_seqscan = off
as $$
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
$$;

comment on function public.filemark_metrics() is
$comment$Metrics of all pipelines in the text format of Prometheus.

Over the API: GET /rpc/filemark_metrics with Accept: text/plain; with Accept: */* the API answers with the text as a
JSON string.

Returns: HELP, TYPE and samples of each metric.$comment$;
