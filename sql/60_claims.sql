-- filemark: claims
--
-- A claim is a token and a lease on one file. The token grows by one at every claim of the file and is
-- presented with every later call; the lease says until when nobody may take the file over. The attempt is
-- counted here, so that a file which kills its worker reaches the dead letter too.
--
-- Lock order: the pipeline's row (only with max_concurrency), then file rows. The rows of a batch are taken
-- with SKIP LOCKED, so claims never wait for each other.
--
-- The queue is one index: (pipeline, priority, available_at, file_url) of pending and failed files. Retries
-- that wait stand in it behind what is due, per priority; so the search goes priority by priority, and its
-- cost does not grow with what waits, is in progress or is done.

-- Why a file in this state cannot be claimed at p_now, or null when it can. For a lease that is over with
-- its budget spent the answer is dead_letter, which the caller then makes true.
create function filemark.claim_refusal(
  p_status text,
  p_available_at timestamptz,
  p_lease_expires_at timestamptz,
  p_is_superseded boolean,
  p_attempts int,
  p_max_attempts int,
  p_now timestamptz
)
returns text
language plpgsql
immutable
set search_path = ''
as $$
begin
  return case
    when p_status in ('pending', 'failed') then
      case when p_available_at > p_now then 'waiting' end
    when p_status = 'processing' then
      case
        when p_lease_expires_at > p_now then 'held'
        when p_attempts >= p_max_attempts and not p_is_superseded then 'dead_letter'
      end
    else p_status
  end;
end
$$;

-- How many files of a pipeline are in progress, counted up to p_up_to.
create function filemark.count_in_progress(p_pipeline text, p_up_to int)
returns int
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select count(*)
      from (select from filemark.file_checkpoints f
             where f.pipeline = p_pipeline and f.status = 'processing' limit p_up_to) as in_progress);
end
$$;

-- How many more claims a pipeline with max_concurrency may give. Locks the pipeline's row until the
-- transaction ends, so that racing claims count one after the other; the limit is read again under the lock.
create function filemark.free_slots(p_pipeline text)
returns int
language plpgsql
set search_path = ''
as $$
declare
  v_limit int;
begin
  select p.max_concurrency into v_limit from filemark.pipelines p where p.pipeline = p_pipeline for no key update;
  return v_limit - filemark.count_in_progress(p_pipeline, v_limit);
end
$$;

-- Puts on record that a lease ended unrenewed, for a locked row that is about to be taken over, given back
-- or buried.
create function filemark.record_lost_lease(p_file filemark.file_checkpoints, p_actor text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'lease_expired', p_actor, null,
    jsonb_build_object('claim_token', p_file.claim_token, 'processed_by', p_file.processed_by,
                       'lease_expired_at', p_file.lease_expires_at, 'attempts', p_file.attempts,
                       'items_processed', p_file.items_processed));
end
$$;

-- Ends the claim on a locked file whose lease is over and that is about to be claimed again: on record, and
-- with the new generation that was waiting for the claim's end.
create function filemark.end_lost_claim(p_file filemark.file_checkpoints, p_now timestamptz, p_actor text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  perform filemark.record_lost_lease(p_file, p_actor);
  if p_file.superseded_by is not null then
    perform filemark.start_generation(p_file.pipeline, p_file.file_url, p_file.superseded_by, p_now, p_actor);
  end if;
end
$$;

-- Moves a locked file whose lease is over and whose budget is spent to the dead letter.
create function filemark.bury_lost_file(p_file filemark.file_checkpoints, p_actor text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_message text := format('attempt %s ended with its lease, without progress; the holder was %s',
                           p_file.attempts, p_file.processed_by);
begin
  perform filemark.record_lost_lease(p_file, p_actor);
  update filemark.file_checkpoints f
     set status = 'dead_letter',
         claim_ended = 'lost',
         lease_expires_at = null,
         lease_check_at = null,
         error_message = v_message,
         error = null
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'dead_lettered', p_actor, 'lease_expired',
    jsonb_build_object('attempts', p_file.attempts, 'error_message', v_message));
end
$$;

-- Claims files whose rows the caller has locked and found claimable.
create function filemark.take_files(
  p_pipeline text,
  p_file_urls text[],
  p_worker_id text,
  p_request_id uuid,
  p_lease_seconds int,
  p_now timestamptz
)
returns void
language plpgsql
set search_path = ''
-- A plan made while the table was small must not read all of it when it has grown.
set enable_seqscan = off
as $$
declare
  v_lease_end timestamptz := p_now + make_interval(secs => p_lease_seconds);
begin
  update filemark.file_checkpoints f
     set status = 'processing',
         claim_token = f.claim_token + 1,
         claim_ended = null,
         request_id = p_request_id,
         processed_by = p_worker_id,
         started_at = p_now,
         lease_expires_at = v_lease_end,
         lease_check_at = v_lease_end,
         attempts = f.attempts + 1
   where f.pipeline = p_pipeline and f.file_url = any (p_file_urls);
end
$$;

-- The claims on the given files, in the given order.
create function filemark.read_claims(p_pipeline text, p_file_urls text[])
returns setof filemark.claim
language plpgsql
stable
set search_path = ''
as $$
begin
  return query
  select 'claimed', f.pipeline::text, f.file_url::text, f.file_type, f.file_timestamp, f.etag, f.size_bytes,
         f.metadata, f.generation, f.claim_token, f.attempts, p.max_attempts, p.lease_seconds,
         f.lease_expires_at, f.cursor, f.items_processed, f.items_total, f.accumulated_results, f.checkpoint_seq
    from filemark.pipelines p
   cross join unnest(p_file_urls) as wanted (file_url)
   cross join lateral (
     -- The offset keeps this a look-up per wanted file, in their order.
     select c.* from filemark.file_checkpoints c
      where c.pipeline = p_pipeline and c.file_url = wanted.file_url offset 0
   ) f
   where p.pipeline = p_pipeline;
end
$$;

-- The locked half of claim_file: looks again under the row's lock and claims, or answers why not. The first
-- time a file is seen its row is made here.
create function filemark.claim_by_name(
  p_pipeline text,
  p_file_url text,
  p_worker_id text,
  p_content jsonb,
  p_request_id uuid
)
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_file filemark.file_checkpoints;
  v_slots int;
  v_refusal text;
begin
  perform filemark.ensure_pipeline(p_pipeline);
  select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  if v_settings.max_concurrency is not null then
    v_slots := filemark.free_slots(p_pipeline);
  end if;

  if not exists (select from filemark.file_checkpoints f
                  where f.pipeline = p_pipeline and f.file_url = p_file_url) then
    if v_settings.paused then
      return 'paused';
    elsif v_slots <= 0 then
      return 'busy';
    end if;
    insert into filemark.file_checkpoints (pipeline, file_url, file_type, file_timestamp, etag, available_at)
    values (p_pipeline, p_file_url, p_content ->> 'file_type', (p_content ->> 'file_timestamp')::timestamptz,
            p_content ->> 'etag', v_now)
        on conflict do nothing;
  end if;

  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     for no key update;
  if v_file.request_id = p_request_id and v_file.status = 'processing' then
    return 'claimed';
  elsif filemark.note_content(v_file, p_content, v_settings.on_overwrite, v_now, p_worker_id) then
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = p_file_url;
  end if;

  v_refusal := filemark.claim_refusal(
    v_file.status, v_file.available_at, v_file.lease_expires_at, v_file.superseded_by is not null,
    v_file.attempts, v_settings.max_attempts, v_now);
  if v_refusal = 'dead_letter' and v_file.status = 'processing' then
    perform filemark.bury_lost_file(v_file, p_worker_id);
  elsif v_refusal is null then
    v_refusal := case
      when v_settings.paused then 'paused'
      when v_slots <= 0 and v_file.status <> 'processing' then 'busy'
    end;
  end if;
  if v_refusal is not null then
    return v_refusal;
  end if;

  if v_file.status = 'processing' then
    perform filemark.end_lost_claim(v_file, v_now, p_worker_id);
  end if;
  perform filemark.take_files(
    p_pipeline, array[p_file_url], p_worker_id, p_request_id, v_settings.lease_seconds, v_now);
  return 'claimed';
end
$$;

-- Claims one file by name, known or not. Answers one row: outcome claimed, or why not. A refusal takes no
-- lock and writes nothing, unless the call brings an etag to note. A repeat with the same p_request_id
-- answers with the claim it already holds, and claims nothing when that has ended.
create function public.claim_file(
  p_file_url text,
  p_file_type text,
  p_file_timestamp timestamptz,
  p_worker_id text,
  p_pipeline text = 'default',
  p_etag text = null,
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
declare
  v_now timestamptz := clock_timestamp();
  v_seen record;
begin
  perform filemark.check_key(p_pipeline, p_file_url),
          filemark.check_text('p_file_type', p_file_type, 100),
          filemark.check_time('p_file_timestamp', p_file_timestamp),
          filemark.check_text('p_worker_id', p_worker_id, 200),
          filemark.check_text('p_etag', coalesce(p_etag, '-'), 1024);

  -- A look without a lock: refusals end here.
  select f.request_id = p_request_id as is_repeat,
         f.status,
         p_etag is null or f.status is null or p_etag is not distinct from coalesce(f.superseded_by ->> 'etag', f.etag)
           or (p.on_overwrite = 'ignore' and f.etag is not null) as is_same_content,
         coalesce(
           filemark.claim_refusal(f.status, f.available_at, f.lease_expires_at, f.superseded_by is not null,
                                  f.attempts, p.max_attempts, v_now),
           case
             when f.request_id = p_request_id then 'waiting'
             when p.paused then 'paused'
             when p.max_concurrency is not null and f.status is distinct from 'processing'
                  and filemark.count_in_progress(p_pipeline, p.max_concurrency) >= p.max_concurrency then 'busy'
           end) as refusal
    into v_seen
    from filemark.pipelines p
    left join filemark.file_checkpoints f on f.pipeline = p.pipeline and f.file_url = p_file_url
   where p.pipeline = p_pipeline;

  outcome := case
    when v_seen.is_repeat and v_seen.status = 'processing' then 'claimed'
    -- A lease that is over with its budget spent is not refused here: it is yet to become a dead letter.
    when v_seen.is_same_content and not (v_seen.status = 'processing' and v_seen.refusal = 'dead_letter') then
      v_seen.refusal
  end;
  if outcome is null then
    outcome := filemark.claim_by_name(
      p_pipeline, p_file_url, p_worker_id,
      jsonb_build_object('etag', p_etag, 'file_type', p_file_type, 'file_timestamp', p_file_timestamp),
      p_request_id);
  end if;

  if outcome = 'claimed' then
    return query select * from filemark.read_claims(p_pipeline, array[p_file_url]);
  else
    pipeline := p_pipeline;
    file_url := p_file_url;
    return next;
  end if;
end
$$;

comment on function public.claim_file(text, text, timestamptz, text, text, text, uuid) is
  'Claims one file by name, known or not. One row: outcome claimed with the claim, or held, completed, '
  'waiting, dead_letter, skipped, paused or busy.';

-- The urls of up to p_limit files that are due, in the order of the queue, their rows locked; files that
-- another session has locked are passed over.
create function filemark.lock_due_files(p_pipeline text, p_file_type text, p_limit int, p_now timestamptz)
returns text[]
language plpgsql
set search_path = ''
as $$
declare
  v_urls text[] := '{}';
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
-- lease that was renewed is moved on; a file whose budget is spent is buried. Looks at a few more than p_limit.
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
  v_urls text[] := '{}';
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
    elsif v_file.attempts >= p_max_attempts and v_file.superseded_by is null then
      perform filemark.bury_lost_file(v_file, p_actor);
    else
      v_urls := v_urls || v_file.file_url::text;
    end if;
  end loop;
  return v_urls;
end
$$;

-- Claims the next files of the queue: highest priority first, then the longest available; among them files
-- whose lease is over. A repeat with the same p_request_id gets the claims that request still holds.
create function filemark.claim_next(
  p_pipeline text,
  p_worker_id text,
  p_limit int,
  p_file_type text,
  p_request_id uuid
)
returns setof filemark.claim
language plpgsql
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_room int := p_limit;
  v_lost text[];
  v_urls text[];
  v_file filemark.file_checkpoints;
begin
  if p_request_id is not null then
    -- A repeat may overtake the call it repeats: it waits here for that call's end.
    perform pg_advisory_xact_lock(hashtextextended('filemark ' || p_request_id, 0));
    if exists (select from filemark.claim_requests r
                where r.pipeline = p_pipeline and r.request_id = p_request_id) then
      return query select * from filemark.read_claims(p_pipeline, array(
        select f.file_url::text from filemark.file_checkpoints f
         where f.pipeline = p_pipeline and f.status = 'processing' and f.request_id = p_request_id
         order by f.priority desc, f.available_at, f.file_url));
      return;
    end if;
  end if;

  select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  if not found or v_settings.paused then
    return;
  end if;
  if v_settings.max_concurrency is not null then
    v_room := least(p_limit, filemark.free_slots(p_pipeline));
  end if;

  v_lost := filemark.lock_lost_files(
    p_pipeline, p_file_type, p_limit, v_settings.max_attempts, v_now, p_worker_id);
  v_urls := filemark.lock_due_files(p_pipeline, p_file_type, v_room, v_now);
  if v_lost <> '{}' then
    -- A file taken over has its slot already, so only the due ones are bound by v_room.
    v_urls := array(
      select f.file_url::text from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = any (v_lost || v_urls)
       order by f.priority desc, f.available_at, f.file_url
       limit p_limit);
    for v_file in
      select f.* from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = any (v_urls) and f.status = 'processing'
    loop
      perform filemark.end_lost_claim(v_file, v_now, p_worker_id);
    end loop;
  end if;
  if v_urls = '{}' then
    return;
  end if;

  if p_request_id is not null then
    insert into filemark.claim_requests (pipeline, request_id, claimed_at)
    values (p_pipeline, p_request_id, v_now);
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
  'Claims the next 0 to p_limit (1 to 100) files that are due, highest priority first, then the longest '
  'available. A repeat with the same p_request_id gets the claims it still holds and claims nothing more.';
