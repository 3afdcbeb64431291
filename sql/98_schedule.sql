-- filemark: scheduling
--
-- Where pg_cron is, maintenance runs itself: as jobs named filemark:… of the role that owns filemark, whoever schedules
-- them. Installing filemark schedules them. Most databases do not have pg_cron, so it is called dynamically; and it is
-- asked what it can do, rather than its version: from 1.5 on it knows seconds.

-- What runs, and how often unless somebody wants it otherwise.
create function filemark.maintenance_jobs()
returns table (job text, schedule text, command text)
language plpgsql
set search_path = ''
as $$
begin
  return query values
    ('filemark:maintenance', '30 seconds', 'select from filemark.run_maintenance()'),
    ('filemark:alerts', '* * * * *', 'select from filemark.check_alerts()'),
    ('filemark:cron-log', '17 * * * *', 'select filemark.forget_cron_runs()');
end
$$;

-- Whether pg_cron is in this database.
create function filemark.has_cron()
returns boolean
language plpgsql
stable
set search_path = ''
as $$
begin
  return exists (
    select from pg_catalog.pg_proc p
     where p.pronamespace = to_regnamespace('cron') and p.proname = 'schedule' and p.pronargs = 3);
end
$$;

-- What to do where pg_cron is not in this database.
create function filemark.cron_hint()
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_calls constant text := 'select from filemark.run_maintenance(); select from filemark.check_alerts();';
  v_here constant text := current_database();
  v_home text;
begin
  begin
    v_home := current_setting('cron.database_name', true);
  exception
    when insufficient_privilege then
      -- It is loaded; where it works is a secret of superusers.
      null;
  end;
  return case
    when v_home <> v_here then
      format('pg_cron works in database %I. Run there: select cron.schedule_in_database(%L, ''* * * * *'', %L, %L);',
             v_home, 'filemark@' || v_here, v_calls, v_here)
    when exists (select from pg_catalog.pg_available_extensions e where e.name = 'pg_cron') then
      'Run: create extension pg_cron; (on Supabase: Integrations, Cron) and then: '
      'select * from filemark.schedule_maintenance(); or have any scheduler run every minute: ' || v_calls
    else
      'Have any scheduler run every minute: ' || v_calls
  end;
end
$$;

-- Schedules a job of pg_cron, or changes the one of that name; one that is paused stays paused. Answers whether pg_cron
-- takes the schedule.
create function filemark.schedule_job(p_job text, p_schedule text, p_command text)
returns boolean
language plpgsql
set search_path = ''
as $$
begin
  execute format('select %s($1, $2, $3)', 'cron.schedule') using p_job, p_schedule, p_command;
  return true;
exception
  when invalid_parameter_value then
    return false;
end
$$;

-- The jobs that are scheduled in this database.
create function filemark.scheduled_jobs()
returns table (job text, schedule text, active boolean, jobid bigint)
language plpgsql
set search_path = ''
as $$
begin
  for job, schedule, active, jobid in execute format(
    'select j.jobname::text, j.schedule, j.active, j.jobid
       from %s j
       join filemark.maintenance_jobs() m on m.job = j.jobname
      where j.username = current_user and j.database = current_database()
      order by j.jobname', 'cron.job')
  loop
    return next;
  end loop;
end
$$;

-- Has pg_cron run maintenance and look for alerts. Null p_every keeps the schedule that maintenance has; new, it is
-- every 30 seconds. Where pg_cron knows no seconds it is every minute. A repeat changes nothing, and a job that was
-- paused stays paused.
create function filemark.schedule_maintenance(p_every text = null)
returns table (job text, schedule text, active boolean)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_seconds constant text := '^\s*\d+\s+seconds?\s*$';
  v_allowed constant text := 'a number of seconds from 1 to 59, as in 30 seconds, or a schedule as cron takes it';
  v_job record;
  v_every text;
begin
  -- pg_cron itself passes over what stands behind the fifth field.
  if octet_length(p_every) > 100 or p_every !~ v_seconds and p_every !~ '^\s*(@\w+|(\S+\s+){4}\S+)\s*$'
     or p_every ~ v_seconds and substring(p_every, '\d+')::numeric not between 1 and 59 then
    perform filemark.refuse_argument('p_every', p_every, v_allowed);
  elsif not filemark.has_cron() then
    raise exception 'pg_cron is not in this database' using errcode = 'PT422', hint = filemark.cron_hint();
  elsif not has_schema_privilege('cron', 'usage') then
    raise exception '%, who owns filemark, may not use pg_cron', current_user
      using errcode = 'insufficient_privilege',
            hint = format('Have an administrator run: grant usage on schema cron to %I;', current_user);
  end if;

  for v_job in select m.job, m.schedule, m.command from filemark.maintenance_jobs() m loop
    v_every := coalesce(
      case when v_job.job = 'filemark:maintenance' then p_every end,
      (select s.schedule from filemark.scheduled_jobs() s where s.job = v_job.job),
      v_job.schedule);
    if not filemark.schedule_job(v_job.job, v_every, v_job.command) then
      if v_every !~ v_seconds then
        perform filemark.refuse_argument('p_every', v_every, v_allowed);
      end if;
      perform filemark.schedule_job(v_job.job, '* * * * *', v_job.command);
    end if;
  end loop;
  return query select s.job, s.schedule, s.active from filemark.scheduled_jobs() s;
end
$$;

comment on function filemark.schedule_maintenance(text) is
$comment$Has pg_cron run maintenance, and look for alerts every minute.

The jobs run as the role that owns filemark, which needs usage on schema cron. One that was paused stays paused. A repeat changes nothing.

p_every: how often maintenance runs: '30 seconds' (1 to 59; every minute where pg_cron is older than 1.5), or a schedule
  as cron takes it; null for what it is, or every 30 seconds.
Returns: a row for each job that is scheduled now.
job: 'filemark:maintenance', 'filemark:alerts', or 'filemark:cron-log', which forgets the runs of these three.
schedule: when it runs, as pg_cron has it.
active: false when somebody paused it.
Errors: PT400 bad argument; PT422 pg_cron is not in this database.$comment$;

-- Ends what schedule_maintenance began. A repeat changes nothing.
create function filemark.unschedule_maintenance()
returns table (job text)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_job record;
begin
  if not filemark.has_cron() then
    return;
  end if;
  for v_job in select s.job, s.jobid from filemark.scheduled_jobs() s loop
    execute format('select %s($1)', 'cron.unschedule') using v_job.jobid;
    job := v_job.job;
    return next;
  end loop;
end
$$;

comment on function filemark.unschedule_maintenance() is
$comment$Takes the jobs of schedule_maintenance from pg_cron.

A repeat changes nothing, and neither does a call where pg_cron is not there.

Returns: a row for each job that was scheduled.
job: its name.$comment$;

-- Forgets runs in pg_cron's log, of our own jobs only: after a day, and after a week those that failed.
create function filemark.forget_cron_runs()
returns void
language plpgsql
set search_path = ''
as $$
begin
  -- Of a run that failed to begin, no time is known: it is as old as its number says.
  execute format(
    'with ours as (
       select d.runid, d.status, d.end_time
         from %1$s d
         join filemark.maintenance_jobs() m on m.command = d.command
        where d.username = current_user and d.database = current_database()
     )
     delete from %1$s d
      where d.runid = any (array(
        select o.runid from ours o
         where (o.status = ''succeeded'' and o.end_time < now() - interval ''1 day'')
            or o.runid <= (select max(w.runid) from ours w where w.end_time < now() - interval ''7 days'')
         order by o.runid
         limit 10000))', 'cron.job_run_details');
end
$$;

-- Schedules maintenance where that is possible, and says what to run where it is not. Never raises: no installation
-- fails because of pg_cron.
create function filemark.schedule_at_installation()
returns void
language plpgsql
set search_path = ''
as $$
begin
  if filemark.has_cron() then
    perform filemark.schedule_maintenance();
  else
    raise notice 'filemark: nothing runs maintenance here yet. %', filemark.cron_hint();
  end if;
exception
  when others then
    raise notice 'filemark: maintenance could not be scheduled: %. When that is mended, run: '
      'select * from filemark.schedule_maintenance();', sqlerrm;
end
$$;

do $schedule$
begin
  perform filemark.schedule_at_installation();
end
$schedule$;
