-- filemark: monitoring
--
-- What one asks at night, as views: which files, why, since when, who holds them, how long it will take. They run with
-- the rights of whoever reads them (filemark_monitor may) and change nothing. Time is the beginning of the statement.
--
-- All but files, which is a listing, read only what is pending, failed or in progress, by the partial indexes on
-- file_checkpoints, and never the completed files: their cost does not grow with what is done. Files in progress are
-- read pipeline by pipeline; the offset keeps it so, because the planner expects fewer of them than there are.

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
rows 1
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

-- The statuses one by one, each as a constant and with an index of its own: what status = 'processing' leaves out is
-- not even planned.
create view filemark.files with (security_invoker = true) as
select f.pipeline, f.file_url, f.file_type, f.generation, f.stands as status,
       extract(epoch from statement_timestamp() - case f.stands
         when 'processing' then f.started_at
         when 'completed' then f.completed_at
         when 'pending' then least(f.available_at, statement_timestamp())
         when 'failed' then least(f.available_at, statement_timestamp())
         else (select e.occurred_at from filemark.file_events e
                where e.pipeline = f.pipeline and e.file_url = f.file_url and e.event in ('dead_lettered', 'skipped')
                order by e.event_id desc
                limit 1)
       end)::double precision as age_seconds,
       case when f.stands in ('pending', 'failed') and f.available_at > statement_timestamp() then
         extract(epoch from f.available_at - statement_timestamp())::double precision
       end as due_in_seconds,
       case when f.stands = 'processing' then f.processed_by end as holder,
       case when f.stands = 'processing' then
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
    select 'processing' as stands, c.* from filemark.file_checkpoints c
     where c.status = 'processing' and c.lease_check_at is not null
    union all
    select 'pending' as stands, c.* from filemark.file_checkpoints c where c.status = 'pending'
    union all
    select 'failed' as stands, c.* from filemark.file_checkpoints c where c.status = 'failed'
    union all
    select 'dead_letter' as stands, c.* from filemark.file_checkpoints c where c.status = 'dead_letter'
    union all
    select 'skipped' as stands, c.* from filemark.file_checkpoints c where c.status = 'skipped'
    union all
    select 'completed' as stands, c.* from filemark.file_checkpoints c
     where c.status = 'completed' and c.completed_at is not null
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
     where f.stands = 'processing'
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
  from filemark.pipelines p
 cross join lateral (
   select c.* from filemark.file_checkpoints c where c.pipeline = p.pipeline and c.lease_check_at is not null offset 0
 ) f
 cross join lateral (values (greatest(f.checkpointed_at, f.started_at))) s (since)
 where s.since <= statement_timestamp() - make_interval(secs => p.stale_after_seconds)
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
  from filemark.pipelines p
 cross join lateral (
   select c.* from filemark.file_checkpoints c where c.pipeline = p.pipeline and c.lease_check_at is not null offset 0
 ) f
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
  from filemark.pipelines p
 cross join lateral (
   select c.* from filemark.file_checkpoints c where c.pipeline = p.pipeline and c.lease_check_at is not null offset 0
 ) f
 where f.results_bytes > 100000
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
-- keeps fewer, or since the claim if it has not saved that many. The numbers of checkpoints have no gaps, so the tenth
-- from the end is found by its number.
create view filemark.infrequent_checkpoints with (security_invoker = true) as
select f.pipeline, f.file_url, f.processed_by as holder,
       extract(epoch from statement_timestamp() - f.started_at)::double precision as claim_age_seconds,
       r.checkpoints_per_minute, p.min_checkpoints_per_minute, f.checkpointed_at, f.started_at, f.items_processed,
       f.items_total
  from filemark.pipelines p
 cross join lateral (
   select c.* from filemark.file_checkpoints c where c.pipeline = p.pipeline and c.lease_check_at is not null offset 0
 ) f
 cross join filemark.alert_limits() c
 cross join lateral (values (least(10, p.history_limit))) k (last)
  left join filemark.checkpoint_history h
    on h.pipeline = f.pipeline and h.file_url = f.file_url and h.checkpoint_seq = f.checkpoint_seq - k.last + 1
   and h.claim_token = f.claim_token
 cross join lateral (
   select 60 * case
            when h.saved_at is not null then
              k.last / extract(epoch from statement_timestamp() - h.saved_at)::double precision
            else
              (select count(*) from filemark.checkpoint_history s
                where s.pipeline = f.pipeline and s.file_url = f.file_url
                  and s.checkpoint_seq > f.checkpoint_seq - k.last and s.claim_token = f.claim_token)
              / extract(epoch from statement_timestamp() - f.started_at)::double precision
          end as checkpoints_per_minute
 ) r
 where f.lease_expires_at > statement_timestamp()
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
