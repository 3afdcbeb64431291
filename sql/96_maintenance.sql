-- filemark: maintenance
--
-- What has to be done from time to time, by pg_cron (98_schedule.sql), a cron job or a worker: end claims that
-- nobody will end, and keep less of what is no longer needed. Every task works in batches, pipeline by pipeline,
-- passes over rows that another session holds, and may be killed or run twice at once.

-- Cuts the history of each file back to the last history_limit checkpoints of its pipeline: p_limit files per
-- pipeline, at most 10,000 checkpoints of each at a time.
create function filemark.truncate_checkpoint_history(
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
  v_settings filemark.pipelines;
  v_file record;
  v_deleted bigint;
begin
  perform filemark.check_task(p_limit, p_dry_run, p_pipeline);
  for v_settings in
    select p.* from filemark.pipelines p where p_pipeline is null or p.pipeline = p_pipeline order by p.pipeline
  loop
    for v_file in
      select f.pipeline, f.file_url, f.checkpoint_seq, f.history_length
        from (select l.file_url from filemark.long_histories l
               where l.pipeline = v_settings.pipeline
               order by l.file_url
               limit p_limit) long
       cross join lateral (
         select c.* from filemark.file_checkpoints c
          where c.pipeline = v_settings.pipeline and c.file_url = long.file_url
            for no key update skip locked
       ) f
    loop
      pipeline := v_file.pipeline;
      file_url := v_file.file_url;
      action := case when p_dry_run then 'would_truncate' else 'truncated' end;
      v_deleted := 0;
      if not p_dry_run then
        delete from filemark.checkpoint_history h
         where h.pipeline = v_file.pipeline and h.file_url = v_file.file_url
           and h.checkpoint_seq <= v_file.checkpoint_seq - v_settings.history_limit
           and h.checkpoint_seq <= v_file.checkpoint_seq - v_file.history_length + 10000;
        get diagnostics v_deleted = row_count;
        if v_file.history_length - v_deleted <= v_settings.history_limit then
          delete from filemark.long_histories l where l.pipeline = v_file.pipeline and l.file_url = v_file.file_url;
        end if;
      end if;
      if v_deleted > 0 then
        update filemark.file_checkpoints f
           set history_length = f.history_length - v_deleted
         where f.pipeline = v_file.pipeline and f.file_url = v_file.file_url;
      end if;
      if v_deleted > 0 or (p_dry_run and v_file.history_length > v_settings.history_limit) then
        return next;
      end if;
    end loop;
  end loop;
end
$$;

comment on function filemark.truncate_checkpoint_history(int, boolean, text) is
$comment$Cuts the history of each file back to its pipeline's history_limit.

Of each file at most 10,000 checkpoints at a time. Files that a worker holds in an open transaction are left for later.

p_limit: how many files of a pipeline at most, 1 to 1000000.
p_dry_run: true only to say what would be done.
p_pipeline: the pipeline; null for all.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: 'truncated'; in a dry run 'would_truncate'.
Errors: PT400 bad argument; PT404 unknown pipeline.$comment$;

-- Clears cursor, results and history of files that completed more than keep_checkpoints_days ago: p_limit files per
-- pipeline, the oldest first. The file's row and its counts stay.
create function filemark.clear_completed_checkpoints(
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
begin
  perform filemark.check_task(p_limit, p_dry_run, p_pipeline);
  for v_settings in
    select p.* from filemark.pipelines p where p_pipeline is null or p.pipeline = p_pipeline order by p.pipeline
  loop
    for pipeline, file_url in
      select f.pipeline, f.file_url from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline
         and f.kept_since <= v_now - make_interval(days => v_settings.keep_checkpoints_days)
       order by f.kept_since
       limit p_limit
         for no key update skip locked
    loop
      action := case when p_dry_run then 'would_clear' else 'cleared' end;
      if not p_dry_run then
        delete from filemark.checkpoint_history h
         where h.pipeline = v_settings.pipeline and h.file_url = clear_completed_checkpoints.file_url;
        update filemark.file_checkpoints f
           set cursor = null,
               accumulated_results = null,
               history_length = 0,
               kept_since = null
         where f.pipeline = v_settings.pipeline and f.file_url = clear_completed_checkpoints.file_url;
      end if;
      return next;
    end loop;
  end loop;
end
$$;

comment on function filemark.clear_completed_checkpoints(int, boolean, text) is
$comment$Clears cursor, results and history of files completed more than keep_checkpoints_days ago.

The file's row and its counts stay.

p_limit: how many files of a pipeline at most, 1 to 1000000.
p_dry_run: true only to say what would be done.
p_pipeline: the pipeline; null for all.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: 'cleared'; in a dry run 'would_clear'.
Errors: PT400 bad argument; PT404 unknown pipeline.$comment$;

-- Removes files that completed more than keep_files_days ago, with their history, audit and resolved dead letters:
-- p_limit files per pipeline, the oldest first. What is left of each in purged_files answers completed.
create function filemark.purge_files(p_limit int = 1000, p_dry_run boolean = false, p_pipeline text = null)
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
  perform filemark.check_task(p_limit, p_dry_run, p_pipeline);
  for v_settings in
    select p.* from filemark.pipelines p
     where (p_pipeline is null or p.pipeline = p_pipeline) and p.keep_files_days is not null
     order by p.pipeline
  loop
    for v_file in
      select f.* from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline
         and f.completed_at <= v_now - make_interval(days => v_settings.keep_files_days)
       order by f.completed_at
       limit p_limit
         for update skip locked
    loop
      pipeline := v_file.pipeline;
      file_url := v_file.file_url;
      action := case when p_dry_run then 'would_purge' else 'purged' end;
      if not p_dry_run then
        perform filemark.purge_file(v_file);
      end if;
      return next;
    end loop;
  end loop;
end
$$;

comment on function filemark.purge_files(int, boolean, text) is
$comment$Removes files completed more than keep_files_days ago, with their history and audit.

They are still answered completed, and come back with new content or when they are requeued.

p_limit: how many files of a pipeline at most, 1 to 1000000.
p_dry_run: true only to say what would be done.
p_pipeline: the pipeline; null for all.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: 'purged'; in a dry run 'would_purge'.
Errors: PT400 bad argument; PT404 unknown pipeline.$comment$;

-- Removes one file, whose row the caller has locked, and everything about it but what purged_files keeps.
create function filemark.purge_file(p_file filemark.file_checkpoints)
returns void
language plpgsql
set search_path = ''
as $$
begin
  insert into filemark.purged_files (
    pipeline, file_hash, etag_hash, generation, claim_token, file_timestamp, file_type)
  values (p_file.pipeline, filemark.short_hash(p_file.file_url), filemark.short_hash(p_file.etag), p_file.generation,
          p_file.claim_token, p_file.file_timestamp, p_file.file_type);
  delete from filemark.checkpoint_history h where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url;
  delete from filemark.long_histories l where l.pipeline = p_file.pipeline and l.file_url = p_file.file_url;
  delete from filemark.dead_letter_entries d where d.pipeline = p_file.pipeline and d.file_url = p_file.file_url;
  delete from filemark.file_events e where e.pipeline = p_file.pipeline and e.file_url = p_file.file_url;
  delete from filemark.file_checkpoints f where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
  perform filemark.tally(p_file.pipeline, 'purged');
end
$$;

-- Adds the oldest p_limit tallies of a pipeline up into the hours they belong to, and hours of more than 90 days ago
-- into one. Answers how many tallies that were.
create function filemark.add_up_tallies(p_pipeline text, p_limit int)
returns bigint
language plpgsql
set search_path = ''
as $$
declare
  v_added bigint;
begin
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
  ), aged as (
    delete from filemark.activity a
     where a.pipeline = p_pipeline and a.hour < clock_timestamp() - interval '90 days' and a.hour > 'epoch'
    returning a.*
  ), hours as (
    select date_trunc('hour', t.occurred_at, 'UTC') as hour, t.what, t.files, t.records_total, t.records_filtered,
           t.records_persisted, t.records_rejected, t.occurred_at as last_at, 1 as tallies
      from tallied t
    union all
    select 'epoch', a.what, a.files, a.records_total, a.records_filtered, a.records_persisted, a.records_rejected,
           a.last_at, 0
      from aged a
  ), added as (
    insert into filemark.activity as a (
      pipeline, hour, what, files, records_total, records_filtered, records_persisted, records_rejected, last_at)
    select p_pipeline, h.hour, h.what, sum(h.files), sum(h.records_total), sum(h.records_filtered),
           sum(h.records_persisted), sum(h.records_rejected), max(h.last_at)
      from hours h
     group by h.hour, h.what
     order by h.hour, h.what
        on conflict (pipeline, hour, what) do update
       set files = a.files + excluded.files,
           records_total = a.records_total + excluded.records_total,
           records_filtered = a.records_filtered + excluded.records_filtered,
           records_persisted = a.records_persisted + excluded.records_persisted,
           records_rejected = a.records_rejected + excluded.records_rejected,
           last_at = greatest(a.last_at, excluded.last_at)
  )
  select count(*) into v_added from tallied;
  return v_added;
end
$$;

-- Runs every task for every pipeline and records the run. p_limit is that of each task; of tallies, a hundred times
-- as many are added up. Answers per pipeline and task how much there was to do.
create function filemark.run_maintenance(p_limit int = 1000)
returns table (task text, pipeline text, affected bigint)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_started timestamptz;
  v_done jsonb;
begin
  perform filemark.check_number('p_limit', p_limit, 1, 1000000);
  for pipeline in select p.pipeline from filemark.pipelines p order by p.pipeline loop
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
    values (run_maintenance.pipeline, v_started, clock_timestamp(), v_done);
    delete from filemark.maintenance_runs r
     where r.pipeline = run_maintenance.pipeline
       and r.run_id = any (array(
         select o.run_id from filemark.maintenance_runs o
          where o.pipeline = run_maintenance.pipeline and o.finished_at < v_started - interval '1 day'
          order by o.run_id
          limit 100));
  end loop;
end
$$;

comment on function filemark.run_maintenance(int) is
$comment$Runs every maintenance task for every pipeline and records the run in filemark.maintenance_runs.

p_limit: how many files of a pipeline each task takes at most, 1 to 1000000; of tallies, a hundred times as many.
Returns: a row for each pipeline and task.
task: the name of the task.
pipeline: the pipeline.
affected: how many files it changed, or tallies it added up.
Errors: PT400 bad argument.$comment$;
