-- filemark: maintenance
--
-- What has to be done from time to time, by pg_cron (98_schedule.sql), a cron job or a worker: end claims that
-- nobody will end, and keep less of what is no longer needed. Every task works in batches, pipeline by pipeline,
-- passes over rows that another session holds, and may be killed or run twice at once.

-- Lists the files of a pipeline whose history is longer than p_limit, as work for truncate_checkpoint_history. A
-- checkpoint lists its file when the history becomes too long; when history_limit is lowered, histories are too long
-- all at once, of files too that get no checkpoint any more.
create function filemark.list_long_histories(p_pipeline text, p_limit bigint)
returns void
language plpgsql
set search_path = ''
as $$
begin
  insert into filemark.long_histories (pipeline, file_url)
  select h.pipeline, h.file_url
    from filemark.checkpoint_history h
   where h.pipeline = p_pipeline
   group by h.pipeline, h.file_url
  having count(*) > p_limit
      on conflict do nothing;
end
$$;

-- Cuts the history of each file back to the last history_limit checkpoints of its pipeline: p_limit files per
-- pipeline, those that wait longest first. What is left of very long histories is cut by the next calls.
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
$$;

comment on function filemark.truncate_checkpoint_history(int, boolean, text) is
$comment$Cuts the history of each file back to its pipeline's history_limit.

Of each pipeline it takes at most a hundred times p_limit checkpoints at a time, or 10,000. Files that a worker holds in
an open transaction are left for later.

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

-- Adds the oldest p_limit tallies of a pipeline up: into the hours they belong to, and into what there ever was, which
-- stands under 1970, so that reading it takes no longer the older a pipeline gets. Forgets hours of more than 90 days
-- ago. Answers how many tallies that were.
create function filemark.add_up_tallies(p_pipeline text, p_limit int)
returns bigint
language plpgsql
set search_path = ''
as $$
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
$$;

-- Runs every task for the pipelines, those first whose last run is longest ago, and records the run of each. When
-- p_seconds are over it begins no further one: what a run has locked it holds to its end, and one that is stopped by a
-- timeout has done nothing.
create function filemark.maintain(p_limit int, p_seconds double precision)
returns table (task text, pipeline text, affected bigint)
language plpgsql
set search_path = ''
as $$
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
$$;

-- Runs every task for every pipeline and records the run. p_limit is that of each task; of tallies, a hundred times
-- as many are added up. Answers per pipeline and task how much there was to do. Pipelines that 10 seconds are not
-- enough for come first in the next run.
create function filemark.run_maintenance(p_limit int = 1000)
returns table (task text, pipeline text, affected bigint)
language plpgsql
security definer
set search_path = ''
as $$
begin
  perform filemark.check_number('p_limit', p_limit, 1, 1000000);
  return query select m.task, m.pipeline, m.affected from filemark.maintain(p_limit, 10) m;
end
$$;

comment on function filemark.run_maintenance(int) is
$comment$Runs every maintenance task for every pipeline and records the run in filemark.maintenance_runs.

It may be killed at any moment and run twice at once. After 10 seconds it begins with no further pipeline; those left
come first in the next run.

p_limit: how many files of a pipeline each task takes at most, 1 to 1000000; of tallies, a hundred times as many.
Returns: a row for each pipeline and task.
task: the name of the task.
pipeline: the pipeline.
affected: how many files it changed, or tallies it added up.
Errors: PT400 bad argument.$comment$;
