-- filemark: claims
--
-- A claim is a token and a lease on one file. The token grows by one at every claim of the file and is
-- presented with every later call; the lease says until when nobody may take the file over. The attempt is
-- counted here, so that a file which kills its worker reaches the dead letter too.
--
-- Lock order: the pipeline's row (only with max_concurrency), then file rows. The rows of a batch are taken
-- with SKIP LOCKED, so claims never wait for each other.

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
             where f.pipeline = p_pipeline and f.lease_check_at is not null limit p_up_to) as in_progress);
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
  perform filemark.tally(p_file.pipeline, 'lost');
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
begin
  perform filemark.record_lost_lease(p_file, p_actor);
  perform filemark.bury_file(
    p_file, 'lease_expired',
    format('attempt %s ended with its lease, without progress; the holder was %s', p_file.attempts, p_file.processed_by),
    null, 'lost', p_actor);
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
as $$
declare
  v_lease_end timestamptz := p_now + make_interval(secs => p_lease_seconds);
  v_url text;
begin
  -- One by one: a plan for all of them, made while the table was small, reads the whole pipeline (97_plans.sql).
  foreach v_url in array p_file_urls loop
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
     where f.pipeline = p_pipeline and f.file_url = v_url;
  end loop;
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
