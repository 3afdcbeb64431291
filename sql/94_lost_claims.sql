-- filemark: lost claims
--
-- A claim takes over a file whose lease is over by itself. Where no worker claims any more, or wants files of another
-- type, the first task of maintenance (96_maintenance.sql) ends such claims.

-- Refuses what no task takes.
create function filemark.check_task(p_limit int, p_dry_run boolean, p_pipeline text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform filemark.check_number('p_limit', p_limit, 1, 1000000);
  if p_dry_run is null then
    perform filemark.refuse_argument('p_dry_run', null, 'true or false');
  elsif p_pipeline is not null then
    perform filemark.check_pipeline(p_pipeline);
  end if;
end
$$;

-- Ends claims whose lease is over, without a worker: files with budget left become pending again and keep
-- their checkpoint, the others are dead letters. At most p_limit per pipeline. With p_dry_run it only says
-- what it would do. May run twice at once: rows another session works on are passed over.
create function filemark.reclaim_stale_claims(
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
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_task(p_limit, p_dry_run, p_pipeline);

  for v_settings in
    select p.* from filemark.pipelines p where p_pipeline is null or p.pipeline = p_pipeline order by p.pipeline
  loop
    if p_dry_run then
      return query
      select f.pipeline::text, f.file_url::text,
             case when f.attempts >= v_settings.max_attempts and f.superseded_by is null
                  then 'would_dead_letter' else 'would_reclaim' end
        from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline and f.status = 'processing' and f.lease_check_at <= v_now
         and f.lease_expires_at <= v_now
       order by f.lease_check_at
       limit p_limit;
      continue;
    end if;

    for v_file in
      select f.* from filemark.file_checkpoints f
       where f.pipeline = v_settings.pipeline and f.status = 'processing' and f.lease_check_at <= v_now
       order by f.lease_check_at
       limit p_limit
         for no key update skip locked
    loop
      pipeline := v_file.pipeline;
      file_url := v_file.file_url;
      if v_file.lease_expires_at > v_now then
        update filemark.file_checkpoints f
           set lease_check_at = v_file.lease_expires_at
         where f.pipeline = v_file.pipeline and f.file_url = v_file.file_url;
        continue;
      elsif v_file.attempts >= v_settings.max_attempts and v_file.superseded_by is null then
        perform filemark.bury_lost_file(v_file, 'reclaim_stale_claims');
        action := 'dead_lettered';
      else
        perform filemark.end_lost_claim(v_file, v_now, 'reclaim_stale_claims');
        update filemark.file_checkpoints f
           set status = 'pending', claim_ended = 'lost', lease_expires_at = null, lease_check_at = null
         where f.pipeline = v_file.pipeline and f.file_url = v_file.file_url;
        action := 'reclaimed';
      end if;
      return next;
    end loop;

    -- A repeat of a batch claim comes within minutes; its request is forgotten after a day.
    delete from filemark.claim_requests r
     where r.pipeline = v_settings.pipeline
       and r.request_id = any (array(
         select o.request_id from filemark.claim_requests o
          where o.pipeline = v_settings.pipeline and o.claimed_at < v_now - interval '1 day'
          order by o.claimed_at
          limit p_limit
            for update skip locked));
  end loop;
end
$$;

comment on function filemark.reclaim_stale_claims(int, boolean, text) is
$comment$Ends claims whose lease is over, without a worker.

Files with budget left become pending again and keep their checkpoint, the others are dead letters. It may run twice at
once.

p_limit: how many claims of a pipeline at most, 1 to 1000000.
p_dry_run: true only to say what would be done.
p_pipeline: the pipeline; null for all.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: 'reclaimed' or 'dead_lettered'; in a dry run 'would_reclaim' or 'would_dead_letter'.
Errors: PT400 bad argument; PT404 unknown pipeline.$comment$;
