-- filemark: monitoring
--
-- What one asks at night, as views: which files, why, since when, who holds them, how long it will take. They run with
-- the rights of whoever reads them (filemark_monitor may) and change nothing. Time is the beginning of the statement.
--
-- All but files, which is a listing, read only what is pending, failed or in progress, by the partial indexes on
-- file_checkpoints, and never the completed files: their cost does not grow with what is done.

-- What alerts go by that is no setting of a pipeline.
create function filemark.alert_limits()
returns table (
  infrequent_after_seconds int,
  failure_minimum int,
  reclaim_within_seconds int,
  maintenance_overdue_seconds int,
  held_snapshot_seconds int,
  held_dead_rows bigint
)
language plpgsql
immutable
set search_path = ''
as $$
begin
  return query select 300, 10, 120, 3600, 900, 10000::bigint;
end
$$;

comment on function filemark.alert_limits() is
$comment$The limits of alerts that are no setting of a pipeline.

Returns: one row.
infrequent_after_seconds: how long a claim must have run before infrequent_checkpoints looks at it.
failure_minimum: how many attempts must have ended in this hour and the last before failure_ratio is looked at.
reclaim_within_seconds: how long a lost claim may wait while maintenance runs; without maintenance it may not at all.
maintenance_overdue_seconds: how long work may wait for maintenance.
held_snapshot_seconds: how long a transaction may keep dead rows from being removed.
held_dead_rows: how many dead rows of filemark.file_checkpoints it takes to slow claims.$comment$;

-- The statuses one by one, so that each is found by an index of its own: of what status = 'processing' leaves out,
-- nothing is read.
create view filemark.files with (security_invoker = true) as
select f.pipeline, f.file_url, f.file_type, f.generation, f.status,
       extract(epoch from statement_timestamp() - case f.status
         when 'processing' then f.started_at
         when 'completed' then f.completed_at
         when 'pending' then least(f.available_at, statement_timestamp())
         when 'failed' then least(f.available_at, statement_timestamp())
         else (select e.occurred_at from filemark.file_events e
                where e.pipeline = f.pipeline and e.file_url = f.file_url and e.event in ('dead_lettered', 'skipped')
                order by e.event_id desc
                limit 1)
       end)::double precision as age_seconds,
       case when f.status in ('pending', 'failed') and f.available_at > statement_timestamp() then
         extract(epoch from f.available_at - statement_timestamp())::double precision
       end as due_in_seconds,
       case when f.status = 'processing' then f.processed_by end as holder,
       case when f.status = 'processing' then
         case
           when f.lease_expires_at <= statement_timestamp() then 'expired'
           when f.lease_expires_at <= statement_timestamp() + make_interval(secs => 0.2 * p.lease_seconds)
             then 'warning'
           else 'healthy'
         end
       end as lease_state,
       extract(epoch from f.lease_expires_at - statement_timestamp())::double precision as lease_left_seconds,
       f.items_processed, f.items_total,
       least(f.items_processed::double precision / nullif(f.items_total, 0), 1) as progress_ratio,
       speed.items_per_second,
       greatest(f.items_total - f.items_processed, 0) / nullif(speed.items_per_second, 0) as estimated_seconds_left,
       f.checkpoint_seq,
       extract(epoch from statement_timestamp() - f.checkpointed_at)::double precision as checkpoint_age_seconds,
       f.history_length, f.results_bytes, f.attempts, p.max_attempts, f.error_message as last_error
  from (
    select * from filemark.file_checkpoints where status = 'processing' and lease_check_at is not null
    union all
    select * from filemark.file_checkpoints where status = 'pending'
    union all
    select * from filemark.file_checkpoints where status = 'failed'
    union all
    select * from filemark.file_checkpoints where status = 'dead_letter'
    union all
    select * from filemark.file_checkpoints where status = 'skipped'
    union all
    select * from filemark.file_checkpoints where status = 'completed' and completed_at is not null
  ) f
  join filemark.pipelines p on p.pipeline = f.pipeline
  left join lateral (
    -- Over the last ten checkpoints of the running claim. The eleventh, or the one that an earlier claim left, or the
    -- file's beginning, is where they started.
    select (max(h.items_processed) filter (where h.is_own) - coalesce(
             max(h.items_processed) filter (where not h.is_own),
             case when min(h.checkpoint_seq) = 1 then 0 end,
             min(h.items_processed)))
           / nullif(extract(epoch from max(h.saved_at) filter (where h.is_own) - case
               when bool_or(not h.is_own) or min(h.checkpoint_seq) = 1 then f.started_at
               else min(h.saved_at)
             end)::double precision, 0) as items_per_second
      from (select r.checkpoint_seq, r.items_processed, r.saved_at, r.claim_token = f.claim_token as is_own
              from filemark.checkpoint_history r
             where r.pipeline = f.pipeline and r.file_url = f.file_url
             order by r.checkpoint_seq desc
             limit 11) h
     where f.status = 'processing'
  ) speed on true;

comment on view filemark.files is
  'Every file and how it stands: ask for a pipeline and a status or a file_url, it is a listing.';
comment on column filemark.files.pipeline is 'The pipeline the file is in.';
comment on column filemark.files.file_url is 'The file.';
comment on column filemark.files.file_type is 'The kind of file.';
comment on column filemark.files.generation is 'Which content of that name it is.';
comment on column filemark.files.status is
  'pending, processing, completed, failed (waiting for its retry), dead_letter or skipped.';
comment on column filemark.files.age_seconds is
  'For how long: since the claim, the completion, the dead letter or the skip; of a pending or failed file '
  'since it may be claimed.';
comment on column filemark.files.due_in_seconds is
  'How long a pending or failed file has to wait until it may be claimed; null when it may.';
comment on column filemark.files.holder is 'The worker that has the file now; null when nobody has.';
comment on column filemark.files.lease_state is
  'healthy, warning when 80 % of the lease is used, or expired: anybody may take the file over.';
comment on column filemark.files.lease_left_seconds is 'How long the lease holds; negative when it is over.';
comment on column filemark.files.items_processed is 'Items done, as of the last checkpoint.';
comment on column filemark.files.items_total is 'Items in the file; null when unknown.';
comment on column filemark.files.progress_ratio is 'Items done of all, 0 to 1; null when unknown.';
comment on column filemark.files.items_per_second is
  'The pace of the running claim over its last ten checkpoints; null without one.';
comment on column filemark.files.estimated_seconds_left is 'How long the rest takes at that pace; null when unknown.';
comment on column filemark.files.checkpoint_seq is 'The number of the last checkpoint.';
comment on column filemark.files.checkpoint_age_seconds is 'How long ago it was saved; null without one.';
comment on column filemark.files.history_length is 'Checkpoints in the history.';
comment on column filemark.files.results_bytes is 'The size of accumulated_results.';
comment on column filemark.files.attempts is 'Claims at the position the file has now.';
comment on column filemark.files.max_attempts is 'How many of them it gets.';
comment on column filemark.files.last_error is
  'Why the last attempt that failed did; null when none did since the file was new or requeued, and when it is '
  'completed.';

-- No progress was saved for stale_after_seconds: the worker hangs, or saves too seldom.
create view filemark.stale_checkpoints with (security_invoker = true) as
select f.pipeline, f.file_url, f.processed_by as holder,
       extract(epoch from statement_timestamp() - s.since)::double precision as checkpoint_age_seconds,
       p.stale_after_seconds, s.since, f.started_at, f.lease_expires_at, f.checkpoint_seq, f.items_processed,
       f.items_total, f.attempts, p.max_attempts
  from filemark.file_checkpoints f
  join filemark.pipelines p on p.pipeline = f.pipeline
 cross join lateral (values (greatest(f.checkpointed_at, f.started_at))) s (since)
 where f.lease_check_at is not null and s.since <= statement_timestamp() - make_interval(secs => p.stale_after_seconds)
 order by s.since;

comment on view filemark.stale_checkpoints is
  'Files in progress that saved nothing for stale_after_seconds, the longest first.';
comment on column filemark.stale_checkpoints.pipeline is 'The pipeline the file is in.';
comment on column filemark.stale_checkpoints.file_url is 'The file.';
comment on column filemark.stale_checkpoints.holder is 'The worker that has it.';
comment on column filemark.stale_checkpoints.checkpoint_age_seconds is 'How long ago it was claimed or last saved.';
comment on column filemark.stale_checkpoints.stale_after_seconds is 'How long is too long, as configured.';
comment on column filemark.stale_checkpoints.since is 'When it was claimed or last saved.';
comment on column filemark.stale_checkpoints.started_at is 'When it was claimed.';
comment on column filemark.stale_checkpoints.lease_expires_at is 'Until when nobody may take it over.';
comment on column filemark.stale_checkpoints.checkpoint_seq is 'The number of the last checkpoint.';
comment on column filemark.stale_checkpoints.items_processed is 'Items done, as of the last checkpoint.';
comment on column filemark.stale_checkpoints.items_total is 'Items in the file; null when unknown.';
comment on column filemark.stale_checkpoints.attempts is 'Claims at this position.';
comment on column filemark.stale_checkpoints.max_attempts is 'How many of them it gets.';

-- What large_histories, its alert and its metric look at: files in progress, and per pipeline the first 1,000 that wait
-- on the list of truncate_checkpoint_history. Histories of other files are not longer than the pipeline keeps them.
create view filemark.watched_histories with (security_invoker = true) as
select f.pipeline, f.file_url, f.status, f.checkpoint_seq, f.history_length, p.history_limit, p.max_history,
       f.checkpointed_at
  from filemark.file_checkpoints f
  join filemark.pipelines p on p.pipeline = f.pipeline
 where f.lease_check_at is not null
union all
select p.pipeline, f.file_url, f.status, f.checkpoint_seq, f.history_length, p.history_limit, p.max_history,
       f.checkpointed_at
  from filemark.pipelines p
 cross join lateral (
   select l.file_url from filemark.long_histories l
    where l.pipeline = p.pipeline
    order by l.listed_at, l.file_url
    limit 1000
 ) listed
  join filemark.file_checkpoints f on f.pipeline = p.pipeline and f.file_url = listed.file_url
 where f.lease_check_at is null;

comment on view filemark.watched_histories is
  'The lengths of the histories that may be long: of files in progress and of those that maintenance is to cut.';
comment on column filemark.watched_histories.pipeline is 'The pipeline the file is in.';
comment on column filemark.watched_histories.file_url is 'The file.';
comment on column filemark.watched_histories.status is 'The status of the file.';
comment on column filemark.watched_histories.checkpoint_seq is 'The number of the last checkpoint.';
comment on column filemark.watched_histories.history_length is 'Checkpoints in its history.';
comment on column filemark.watched_histories.history_limit is 'How many of them maintenance keeps, as configured.';
comment on column filemark.watched_histories.max_history is 'From how many on there is an alert, as configured.';
comment on column filemark.watched_histories.checkpointed_at is 'When it was last saved.';

create view filemark.large_histories with (security_invoker = true) as
select w.pipeline, w.file_url, w.status, w.history_length, w.history_limit, w.max_history, w.checkpointed_at
  from filemark.watched_histories w
 where w.history_length > 50
 order by w.history_length desc, w.pipeline, w.file_url
 limit 20;

comment on view filemark.large_histories is
  'The 20 longest histories of more than 50 checkpoints, the longest first.';
comment on column filemark.large_histories.pipeline is 'The pipeline the file is in.';
comment on column filemark.large_histories.file_url is 'The file.';
comment on column filemark.large_histories.status is 'The status of the file.';
comment on column filemark.large_histories.history_length is 'Checkpoints in its history.';
comment on column filemark.large_histories.history_limit is 'How many of them maintenance keeps, as configured.';
comment on column filemark.large_histories.max_history is 'From how many on there is an alert, as configured.';
comment on column filemark.large_histories.checkpointed_at is 'When it was last saved.';

-- Of files in progress: these are written anew at each checkpoint and sent to whoever takes the file over.
create view filemark.large_results with (security_invoker = true) as
select f.pipeline, f.file_url, f.status, f.results_bytes, pg_size_pretty(f.results_bytes) as results_size,
       p.max_results_bytes, f.processed_by as holder, f.checkpointed_at
  from filemark.file_checkpoints f
  join filemark.pipelines p on p.pipeline = f.pipeline
 where f.lease_check_at is not null and f.results_bytes > 100000
 order by f.results_bytes desc, f.pipeline, f.file_url
 limit 20;

comment on view filemark.large_results is
  'The 20 largest accumulated_results of more than 100,000 bytes among files in progress, the largest first.';
comment on column filemark.large_results.pipeline is 'The pipeline the file is in.';
comment on column filemark.large_results.file_url is 'The file.';
comment on column filemark.large_results.status is 'The status of the file.';
comment on column filemark.large_results.results_bytes is 'The size of its accumulated_results as JSON text.';
comment on column filemark.large_results.results_size is 'The same, readable.';
comment on column filemark.large_results.max_results_bytes is 'From what size on there is an alert, as configured.';
comment on column filemark.large_results.holder is 'The worker that has it.';
comment on column filemark.large_results.checkpointed_at is 'When it was last saved.';

-- How often the claims that run for five minutes or longer save: over their last ten checkpoints, fewer if the pipeline
-- keeps fewer, or since the claim if it has not saved that many.
create view filemark.infrequent_checkpoints with (security_invoker = true) as
select f.pipeline, f.file_url, f.processed_by as holder,
       extract(epoch from statement_timestamp() - f.started_at)::double precision as claim_age_seconds,
       r.checkpoints_per_minute, p.min_checkpoints_per_minute, f.checkpointed_at, f.started_at, f.items_processed,
       f.items_total
  from filemark.file_checkpoints f
  join filemark.pipelines p on p.pipeline = f.pipeline
 cross join filemark.alert_limits() c
 cross join lateral (
   select count(*) * 60 / extract(epoch from statement_timestamp() - case
            when count(*) < least(10, p.history_limit) then f.started_at else min(h.saved_at)
          end)::double precision as checkpoints_per_minute
     from (select s.saved_at, s.claim_token
             from filemark.checkpoint_history s
            where s.pipeline = f.pipeline and s.file_url = f.file_url
            order by s.checkpoint_seq desc
            limit least(10, p.history_limit)) h
    where h.claim_token = f.claim_token
 ) r
 where f.lease_check_at is not null and f.lease_expires_at > statement_timestamp()
   and f.started_at <= statement_timestamp() - make_interval(secs => c.infrequent_after_seconds)
   and r.checkpoints_per_minute < p.min_checkpoints_per_minute
 order by r.checkpoints_per_minute, f.started_at;

comment on view filemark.infrequent_checkpoints is
  'Claims of five minutes or more that save less often than min_checkpoints_per_minute, the worst first.';
comment on column filemark.infrequent_checkpoints.pipeline is 'The pipeline the file is in.';
comment on column filemark.infrequent_checkpoints.file_url is 'The file.';
comment on column filemark.infrequent_checkpoints.holder is 'The worker that has it.';
comment on column filemark.infrequent_checkpoints.claim_age_seconds is 'How long the claim has been running.';
comment on column filemark.infrequent_checkpoints.checkpoints_per_minute is
  'How often it saves: over its last ten checkpoints, fewer if the pipeline keeps fewer, or since the claim.';
comment on column filemark.infrequent_checkpoints.min_checkpoints_per_minute is 'How often it should, as configured.';
comment on column filemark.infrequent_checkpoints.checkpointed_at is 'When it last did.';
comment on column filemark.infrequent_checkpoints.started_at is 'When it was claimed.';
comment on column filemark.infrequent_checkpoints.items_processed is 'Items done, as of the last checkpoint.';
comment on column filemark.infrequent_checkpoints.items_total is 'Items in the file; null when unknown.';

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
       select date_trunc('hour', t.occurred_at, 'UTC'), t.what, t.files, t.records_total, t.records_filtered,
              t.records_persisted, t.records_rejected
         from filemark.tallies t
        where t.pipeline = p.pipeline and t.occurred_at > statement_timestamp() - interval '7 days'
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
 cross join lateral (values (date_trunc('hour', statement_timestamp(), 'UTC') - interval '1 hour')) r (since)
  left join lateral (
    select h.what, h.files from filemark.activity h where h.pipeline = p.pipeline and h.hour >= r.since
    union all
    select t.what, t.files from filemark.tallies t where t.pipeline = p.pipeline and t.occurred_at >= r.since
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
          count(*) filter (where f.available_at <= statement_timestamp() and f.status = 'failed') as due_retries,
          count(*) filter (where f.available_at > statement_timestamp()) as waiting,
          min(f.available_at) filter (where f.available_at <= statement_timestamp()) as oldest_due_at
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
