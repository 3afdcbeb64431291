-- filemark: claiming a file by name
--
-- The caller knows the file; this package may see it for the first time. Most calls on a busy list are
-- refused, so a refusal costs one look: no lock, nothing written. Only what may be claimed, or brings an etag
-- to note, goes on to the locked half, which looks again under the row's lock.

-- Makes the row of a file that has none, unless another session makes it at the same time, or answers why a claim on it
-- is refused: it is new, or purged.
create function filemark.add_claimed_file(
  p_settings filemark.pipelines,
  p_slots int,
  p_content jsonb,
  p_now timestamptz
)
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_url text := p_content ->> 'file_url';
begin
  if filemark.note_purged(p_settings.pipeline, jsonb_build_array(p_content), p_now) = '[]' then
    return 'completed';
  elsif exists (select from filemark.file_checkpoints f
                 where f.pipeline = p_settings.pipeline and f.file_url = v_url) then
    -- It has come back, with its new content to note.
    return null;
  elsif p_settings.paused then
    return 'paused';
  elsif p_slots <= 0 then
    return 'busy';
  end if;
  insert into filemark.file_checkpoints (pipeline, file_url, file_type, file_timestamp, etag, available_at)
  values (p_settings.pipeline, v_url, p_content ->> 'file_type', (p_content ->> 'file_timestamp')::timestamptz,
          p_content ->> 'etag', p_now)
      on conflict do nothing;
  if found and filemark.stays_purged(p_settings.pipeline, v_url, null) then
    -- The insert waited for a purge.
    delete from filemark.file_checkpoints f where f.pipeline = p_settings.pipeline and f.file_url = v_url;
  elsif found then
    perform filemark.tally(p_settings.pipeline, 'registered');
  end if;
  return null;
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
    select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  end if;

  loop
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = p_file_url
       for no key update;
    exit when found;
    v_refusal := filemark.add_claimed_file(v_settings, v_slots, p_content, v_now);
    if v_refusal is not null then
      return v_refusal;
    end if;
  end loop;
  -- Again, now that the wait for the locks is over: the lease begins here.
  v_now := clock_timestamp();
  if v_file.request_id = p_request_id and v_file.status = 'processing' then
    return 'claimed';
  elsif filemark.note_content(v_file, p_content, v_settings.on_overwrite, v_now, p_worker_id) then
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = p_file_url;
  end if;
  if v_file.superseded_by is not null and v_file.lease_expires_at <= v_now then
    -- The claim is lost, and its end starts the next generation, which may have a time of its own.
    perform filemark.end_lost_claim(v_file, v_now, p_worker_id);
    v_slots := v_slots + 1;
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
    when v_seen.status is null and filemark.stays_purged(p_pipeline, p_file_url, p_etag) then
      'completed'
    when v_seen.is_repeat and v_seen.status = 'processing' then 'claimed'
    -- A lease that is over with its budget spent is not refused here: it is yet to become a dead letter.
    when v_seen.is_same_content and not (v_seen.status = 'processing' and v_seen.refusal = 'dead_letter') then
      v_seen.refusal
  end;
  if outcome is null then
    outcome := filemark.claim_by_name(
      p_pipeline, p_file_url, p_worker_id,
      jsonb_build_object('file_url', p_file_url, 'etag', p_etag, 'file_type', p_file_type,
                         'file_timestamp', p_file_timestamp),
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
$comment$Claims one file by name, known or not.

A refusal takes no lock and writes nothing, unless the call brings an etag to note.

p_file_url: the file: a URL or any stable id, 1 to 2048 bytes.
p_file_type: a name for the kind of file, 1 to 100 bytes; kept when the file or its content is new.
p_file_timestamp: when the file was made, as its source says; kept when the file or its content is new.
p_worker_id: who claims, 1 to 200 bytes.
p_pipeline: the pipeline, 1 to 100 bytes; made on first use.
p_etag: the version of the content, 1 to 1024 bytes; null when unknown. Another one than the file has is other content.
p_request_id: a uuid made for this call. A repeat with it answers with the same claim, and claims nothing when that
  has ended.
Returns: one row of filemark.claim. When outcome is not 'claimed', only outcome, pipeline and file_url are set.
Errors: PT400 bad argument.$comment$;
