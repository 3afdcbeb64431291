-- filemark: claiming the next files
--
-- The queue is one index: (pipeline, priority, available_at, file_url) of pending and failed files. Retries
-- that wait stand in it behind what is due, per priority; so the search goes priority by priority, and its
-- cost does not grow with what waits, is in progress or is done. It does grow with the number of different
-- priorities above the first one in which something is due: use a few, not one per file.

-- The urls of up to p_limit files that are due, in the order of the queue, their rows locked; files that
-- another session has locked are passed over.
create function filemark.lock_due_files(p_pipeline text, p_file_type text, p_limit int, p_now timestamptz)
returns text[]
language plpgsql
set search_path = ''
as $$
declare
  v_urls text[] := array[]::text[];
  -- Above every priority; each round searches the next lower one.
  v_priority bigint := 2147483648;
begin
  while cardinality(v_urls) < p_limit loop
    if p_file_type is null then
      v_priority := (
        select f.priority from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.status in ('pending', 'failed') and f.priority < v_priority
         order by f.priority desc
         limit 1);
      exit when v_priority is null;
      v_urls := v_urls || array(
        select f.file_url::text from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.status in ('pending', 'failed') and f.priority = v_priority
           and f.available_at <= p_now
         order by f.available_at, f.file_url
         limit p_limit - cardinality(v_urls)
           for no key update skip locked);
    else
      v_priority := (
        select f.priority from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.file_type = p_file_type and f.status in ('pending', 'failed')
           and f.priority < v_priority
         order by f.priority desc
         limit 1);
      exit when v_priority is null;
      v_urls := v_urls || array(
        select f.file_url::text from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.file_type = p_file_type and f.status in ('pending', 'failed')
           and f.priority = v_priority and f.available_at <= p_now
         order by f.available_at, f.file_url
         limit p_limit - cardinality(v_urls)
           for no key update skip locked);
    end if;
  end loop;
  return v_urls;
end
$$;

-- The urls of files whose lease is over and whose budget is not, their rows locked. A timer that fires for a
-- lease that was renewed is moved on; a file whose budget is spent is buried. Looks at a few more than p_limit;
-- lost files of other types are read over, and left to their holders until somebody wants them.
create function filemark.lock_lost_files(
  p_pipeline text,
  p_file_type text,
  p_limit int,
  p_max_attempts int,
  p_now timestamptz,
  p_actor text
)
returns text[]
language plpgsql
set search_path = ''
as $$
declare
  v_file filemark.file_checkpoints;
  v_urls text[] := array[]::text[];
begin
  for v_file in
    select f.* from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.status = 'processing' and f.lease_check_at <= p_now
       and (p_file_type is null or f.file_type = p_file_type)
     order by f.lease_check_at
     limit p_limit + 10
       for no key update skip locked
  loop
    if v_file.lease_expires_at > p_now then
      update filemark.file_checkpoints f
         set lease_check_at = v_file.lease_expires_at
       where f.pipeline = p_pipeline and f.file_url = v_file.file_url;
    elsif v_file.superseded_by is not null then
      -- Its next generation is in the queue now, with a type, a priority and a time of its own.
      perform filemark.end_lost_claim(v_file, p_now, p_actor);
    elsif v_file.attempts >= p_max_attempts then
      perform filemark.bury_lost_file(v_file, p_actor);
    else
      v_urls := v_urls || v_file.file_url::text;
    end if;
  end loop;
  return v_urls;
end
$$;

-- The first p_limit of the given files in the order of the queue. The offset keeps it a look-up per file, however
-- small the table was when this was planned.
create function filemark.first_in_queue(p_pipeline text, p_file_urls text[], p_limit int)
returns text[]
language plpgsql
stable
set search_path = ''
as $$
begin
  return array(
    select f.file_url
      from unnest(p_file_urls) given (url)
     cross join lateral (
       select c.file_url::text, c.priority, c.available_at
         from filemark.file_checkpoints c
        where c.pipeline = p_pipeline and c.file_url = given.url offset 0
     ) f
     order by f.priority desc, f.available_at, f.file_url
     limit p_limit);
end
$$;

-- Ends the claims on those of the given files that are in progress: their leases are over, and their rows locked.
create function filemark.end_lost_claims(p_pipeline text, p_file_urls text[], p_now timestamptz, p_actor text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_url text;
  v_file filemark.file_checkpoints;
begin
  foreach v_url in array p_file_urls loop
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = v_url;
    if v_file.status = 'processing' then
      perform filemark.end_lost_claim(v_file, p_now, p_actor);
    end if;
  end loop;
end
$$;

-- Of the files that a batch claim with this request id was given, those it still holds; null for a request that was
-- not made yet. Waits for a call of that request that is under way: a repeat may overtake the call it repeats.
create function filemark.held_by_request(p_pipeline text, p_request_id uuid)
returns text[]
language plpgsql
set search_path = ''
as $$
declare
  v_urls text[];
begin
  perform pg_advisory_xact_lock(hashtextextended('filemark ' || p_request_id, 0));
  select r.file_urls into v_urls
    from filemark.claim_requests r
   where r.pipeline = p_pipeline and r.request_id = p_request_id;
  if not found then
    return null;
  end if;
  return array(
    select f.file_url
      from unnest(v_urls) with ordinality u (url, position)
     cross join lateral (
       -- The offset keeps this a look-up per file, however small the table was when this was planned.
       select c.file_url::text, c.status, c.request_id
         from filemark.file_checkpoints c
        where c.pipeline = p_pipeline and c.file_url = u.url offset 0
     ) f
     where f.status = 'processing' and f.request_id = p_request_id
     order by u.position);
end
$$;

-- Claims the next files of the queue: highest priority first, then the longest available; among them files
-- whose lease is over. A repeat with the same p_request_id gets the claims that request still holds.
create function filemark.claim_next(
  p_pipeline text,
  p_worker_id text,
  p_limit int,
  p_file_type text,
  p_request_id uuid,
  p_is_limited boolean = true
)
returns setof filemark.claim
language plpgsql
set search_path = ''
as $$
declare
  v_now timestamptz;
  v_settings filemark.pipelines;
  v_is_limited boolean;
  v_room int := p_limit;
  v_lost text[];
  v_urls text[];
begin
  if p_request_id is not null then
    v_urls := filemark.held_by_request(p_pipeline, p_request_id);
    if v_urls is not null then
      return query select * from filemark.read_claims(p_pipeline, v_urls);
      return;
    end if;
  end if;

  select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  v_is_limited := p_is_limited and v_settings.max_concurrency is not null;
  if v_is_limited then
    -- Locks the pipeline's row, before any file's. It may have been paused meanwhile.
    perform filemark.free_slots(p_pipeline);
    select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  end if;
  if v_settings.paused is not false then
    return;
  end if;
  -- Now that the wait for the locks is over: the leases begin here.
  v_now := clock_timestamp();

  v_lost := filemark.lock_lost_files(
    p_pipeline, p_file_type, p_limit, v_settings.max_attempts, v_now, p_worker_id);
  if v_is_limited then
    -- Counted when the dead letters and the superseded among the lost have left their slots.
    v_room := least(p_limit, filemark.free_slots(p_pipeline));
  end if;
  v_urls := filemark.lock_due_files(p_pipeline, p_file_type, v_room, v_now);
  if v_lost <> '{}' then
    -- A file taken over has its slot already, so only the due ones were bound by v_room.
    v_urls := filemark.first_in_queue(p_pipeline, v_lost || v_urls, p_limit);
    perform filemark.end_lost_claims(p_pipeline, v_urls, v_now, p_worker_id);
  end if;
  if v_urls = '{}' then
    return;
  end if;

  if p_request_id is not null then
    insert into filemark.claim_requests (pipeline, request_id, file_urls, claimed_at)
    values (p_pipeline, p_request_id, v_urls, v_now);
  end if;
  perform filemark.take_files(
    p_pipeline, v_urls, p_worker_id, p_request_id, v_settings.lease_seconds, v_now);
  return query select * from filemark.read_claims(p_pipeline, v_urls);
end
$$;

-- Claims the next 0 to p_limit files that are due, highest priority first, then the longest available; among
-- them files whose lease is over. Never waits for another claim. A repeat with the same p_request_id gets the
-- claims that request still holds, and claims nothing more.
create function public.claim_next_files(
  p_worker_id text,
  p_limit int = 1,
  p_pipeline text = 'default',
  p_file_type text = null,
  p_request_id uuid = null
)
returns table (
  outcome text, pipeline text, file_url text, file_type text, file_timestamp timestamptz, etag text,
  size_bytes bigint, metadata jsonb, generation bigint, claim_token bigint, attempts int, max_attempts int,
  lease_seconds int, lease_expires_at timestamptz, cursor jsonb, items_processed bigint, items_total bigint,
  accumulated_results jsonb, checkpoint_seq bigint
)
language plpgsql
security definer
set search_path = ''
as $$
begin
  -- At most 100: the API cuts results at max_rows, and a claim that is cut off is a claim nobody works on.
  perform filemark.check_text('p_worker_id', p_worker_id, 200),
          filemark.check_number('p_limit', p_limit, 1, 100),
          filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_text('p_file_type', coalesce(p_file_type, '-'), 100);
  return query select * from filemark.claim_next(p_pipeline, p_worker_id, p_limit, p_file_type, p_request_id);
end
$$;

comment on function public.claim_next_files(text, int, text, text, uuid) is
$comment$Claims the next files that are due.

Among them are files whose lease is over. It never waits for another claim.

p_worker_id: who claims, 1 to 200 bytes.
p_limit: how many files at most, 1 to 100.
p_pipeline: the pipeline.
p_file_type: only files of this type; null for all.
p_request_id: a uuid made for this call. A repeat with it gets what is left of the first answer, and claims nothing
  more.
Returns: 0 to p_limit rows of filemark.claim, the highest priority first, then the longest available.
Errors: PT400 bad argument.$comment$;
