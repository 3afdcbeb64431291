-- filemark: monitoring of whole pipelines
--
-- What happened in a pipeline and what waits there, as numbers.

-- Per hour of the last seven days, what the tallies say: those that maintenance has added up, and those it has yet to.
create view filemark.pipeline_activity with (security_invoker = true) as
select p.pipeline, a.hour, a.files_registered, a.files_overwritten, a.files_completed, a.records_total,
       a.records_filtered, a.records_persisted, a.records_rejected, a.failures, a.lost_leases, a.releases
  from filemark.pipelines p
 cross join lateral (
   select w.hour,
          coalesce(sum(w.files) filter (where w.what = 'registered'), 0)::bigint as files_registered,
          coalesce(sum(w.files) filter (where w.what = 'overwritten'), 0)::bigint as files_overwritten,
          coalesce(sum(w.files) filter (where w.what = 'completed'), 0)::bigint as files_completed,
          coalesce(sum(w.records_total) filter (where w.what = 'completed'), 0) as records_total,
          coalesce(sum(w.records_filtered) filter (where w.what = 'completed'), 0) as records_filtered,
          coalesce(sum(w.records_persisted) filter (where w.what = 'completed'), 0) as records_persisted,
          coalesce(sum(w.records_rejected) filter (where w.what = 'completed'), 0) as records_rejected,
          coalesce(sum(w.files) filter (where w.what = 'failed'), 0)::bigint as failures,
          coalesce(sum(w.files) filter (where w.what = 'lost'), 0)::bigint as lost_leases,
          coalesce(sum(w.files) filter (where w.what = 'released'), 0)::bigint as releases
     from (
       select h.hour, h.what, h.files, h.records_total, h.records_filtered, h.records_persisted, h.records_rejected
         from filemark.activity h
        where h.pipeline = p.pipeline and h.hour > statement_timestamp() - interval '7 days'
       union all
       select date_trunc('hour', t.occurred_at, 'UTC'), t.what, sum(t.files), sum(t.records_total),
              sum(t.records_filtered), sum(t.records_persisted), sum(t.records_rejected)
         from filemark.tallies t
        where t.pipeline = p.pipeline and t.occurred_at > statement_timestamp() - interval '7 days'
        group by 1, t.what
     ) w
    group by w.hour
 ) a
 order by p.pipeline, a.hour desc;

comment on view filemark.pipeline_activity is
  'What happened in each hour of the last seven days. Those of 90 days are in filemark.activity.';
comment on column filemark.pipeline_activity.pipeline is 'The pipeline.';
comment on column filemark.pipeline_activity.hour is 'The beginning of the hour, in UTC.';
comment on column filemark.pipeline_activity.files_registered is 'Files that became known.';
comment on column filemark.pipeline_activity.files_overwritten is 'Files that came with new content.';
comment on column filemark.pipeline_activity.files_completed is 'Files that were completed.';
comment on column filemark.pipeline_activity.records_total is 'Records in these.';
comment on column filemark.pipeline_activity.records_filtered is 'Records of these that were left out on purpose.';
comment on column filemark.pipeline_activity.records_persisted is 'Records of these that were written.';
comment on column filemark.pipeline_activity.records_rejected is 'Records of these that were rejected.';
comment on column filemark.pipeline_activity.failures is 'Claims that ended with an error.';
comment on column filemark.pipeline_activity.lost_leases is 'Claims that ended with their lease.';
comment on column filemark.pipeline_activity.releases is 'Claims that were given back.';

-- What happened in this hour and the last one, as one sum: what failure_ratio and backlog go by.
create view filemark.recent_activity with (security_invoker = true) as
select p.pipeline, r.since,
       coalesce(sum(a.files) filter (where a.what = 'completed'), 0)::bigint as files_completed,
       coalesce(sum(a.files) filter (where a.what = 'failed'), 0)::bigint as failures,
       coalesce(sum(a.files) filter (where a.what = 'lost'), 0)::bigint as lost_leases
  from filemark.pipelines p
 cross join (select date_trunc('hour', statement_timestamp(), 'UTC') - interval '1 hour' as since offset 0) r
  left join lateral (
    select h.what, h.files from filemark.activity h where h.pipeline = p.pipeline and h.hour >= r.since
    union all
    select t.what, sum(t.files) from filemark.tallies t
     where t.pipeline = p.pipeline and t.occurred_at >= r.since
     group by t.what
  ) a on true
 group by p.pipeline, r.since;

comment on view filemark.recent_activity is 'What happened in this hour and the last one.';
comment on column filemark.recent_activity.pipeline is 'The pipeline.';
comment on column filemark.recent_activity.since is 'The beginning of the last hour.';
comment on column filemark.recent_activity.files_completed is 'Files that were completed.';
comment on column filemark.recent_activity.failures is 'Claims that ended with an error.';
comment on column filemark.recent_activity.lost_leases is 'Claims that ended with their lease.';

-- What waits, and how long it will take at the pace of this hour and the last.
create view filemark.backlog with (security_invoker = true) as
select p.pipeline, p.paused, q.due, q.due_retries, q.waiting, q.oldest_due_at,
       extract(epoch from statement_timestamp() - q.oldest_due_at)::double precision as oldest_due_age_seconds,
       p.max_backlog_age_seconds, w.in_progress, p.max_concurrency, d.completed_per_hour,
       q.due * 3600 / nullif(d.completed_per_hour, 0) as estimated_seconds_left
  from filemark.pipelines p
 cross join lateral (
   select count(*) filter (where f.available_at <= statement_timestamp()) as due,
          count(*) filter (where f.status = 'failed' and f.available_at <= statement_timestamp()) as due_retries,
          count(*) - count(*) filter (where f.available_at <= statement_timestamp()) as waiting,
          case when min(f.available_at) <= statement_timestamp() then min(f.available_at) end as oldest_due_at
     from filemark.file_checkpoints f
    where f.pipeline = p.pipeline and f.status in ('pending', 'failed')
 ) q
 cross join lateral (
   select count(*) as in_progress
     from filemark.file_checkpoints f
    where f.pipeline = p.pipeline and f.lease_check_at is not null
 ) w
 cross join lateral (
   select a.files_completed * 3600 / extract(epoch from statement_timestamp() - a.since)::double precision
            as completed_per_hour
     from filemark.recent_activity a
    where a.pipeline = p.pipeline
 ) d
 order by p.pipeline;

comment on view filemark.backlog is 'What waits in each pipeline, and how long it will take.';
comment on column filemark.backlog.pipeline is 'The pipeline.';
comment on column filemark.backlog.paused is 'Whether claims are refused.';
comment on column filemark.backlog.due is 'Files that may be claimed now.';
comment on column filemark.backlog.due_retries is 'Those of them that failed before.';
comment on column filemark.backlog.waiting is 'Files that may be claimed later.';
comment on column filemark.backlog.oldest_due_at is
  'Since when the first of the due ones may be claimed; null when none is due.';
comment on column filemark.backlog.oldest_due_age_seconds is 'How long that is.';
comment on column filemark.backlog.max_backlog_age_seconds is
  'From how long on there is an alert, as configured; null for never.';
comment on column filemark.backlog.in_progress is 'Files in progress.';
comment on column filemark.backlog.max_concurrency is 'How many there may be; null for no limit.';
comment on column filemark.backlog.completed_per_hour is
  'Files completed per hour, on average in this hour and the last.';
comment on column filemark.backlog.estimated_seconds_left is
  'How long the due files take at that pace; null when none was completed.';
