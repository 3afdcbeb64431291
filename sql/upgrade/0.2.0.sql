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
