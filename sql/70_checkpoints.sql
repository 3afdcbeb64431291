-- filemark: checkpoints
--
-- A checkpoint is the next position to process, how much is done, and what was worked out so far, numbered
-- by checkpoint_seq. Saving one is two small writes: a HOT update of the file's row and one history row. It
-- renews the lease. Progress (a higher items_processed) refills the retry budget.
--
-- A repeat with the same p_checkpoint_seq, token and content is acknowledged and changes nothing; a gap, a
-- step back or other content under a number already used is refused (PT412).

-- Saves a checkpoint, with the number of records that were persisted in the same transaction.
create function filemark.save_checkpoint(
  p_file_url text,
  p_claim_token bigint,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq bigint,
  p_items_total bigint,
  p_records_persisted bigint,
  p_pipeline text
)
returns table (checkpoint_seq bigint, lease_expires_at timestamptz, history_length bigint)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_settings record;
begin
  select p.lease_seconds, p.history_limit, p.cursor_limit_bytes, p.results_limit_bytes
    into v_settings
    from filemark.pipelines p
   where p.pipeline = p_pipeline;
  if coalesce(p_cursor, 'null') = 'null' then
    perform filemark.refuse_argument('p_cursor', null, 'the next position to process, as any JSON');
  end if;
  perform filemark.check_number('p_items_processed', p_items_processed, 0, 9223372036854775807),
          filemark.check_number('p_checkpoint_seq', coalesce(p_checkpoint_seq, 1), 1, 9223372036854775807),
          filemark.check_number('p_items_total', coalesce(p_items_total, 0), 0, 9223372036854775807),
          filemark.check_size('p_cursor', p_cursor, v_settings.cursor_limit_bytes),
          filemark.check_size('p_accumulated_results', p_accumulated_results, v_settings.results_limit_bytes);

  return query
  with saved as (
    update filemark.file_checkpoints f
       set cursor = p_cursor,
           items_processed = p_items_processed,
           items_total = coalesce(p_items_total, f.items_total),
           accumulated_results = coalesce(nullif(p_accumulated_results, 'null'), f.accumulated_results),
           results_bytes = coalesce(octet_length(nullif(p_accumulated_results, 'null')::text), f.results_bytes),
           checkpoint_seq = f.checkpoint_seq + 1,
           checkpointed_at = v_now,
           history_length = f.history_length + 1,
           records_persisted = f.records_persisted + p_records_persisted,
           -- Never shorter: this call may have waited for the lock while another renewed the lease.
           lease_expires_at = greatest(f.lease_expires_at, v_now + make_interval(secs => v_settings.lease_seconds)),
           attempts = case when p_items_processed > f.items_processed then 1 else f.attempts end
     where f.pipeline = p_pipeline
       and f.file_url = p_file_url
       and f.claim_token = p_claim_token
       and f.status = 'processing'
       and f.items_processed <= p_items_processed
       and f.checkpoint_seq + 1 = coalesce(p_checkpoint_seq, f.checkpoint_seq + 1)
    returning f.checkpoint_seq, f.lease_expires_at, f.history_length
  ), noted as (
    insert into filemark.checkpoint_history (
      pipeline, file_url, checkpoint_seq, cursor, items_processed, records_persisted, claim_token, saved_at)
    select p_pipeline, p_file_url, s.checkpoint_seq, p_cursor, p_items_processed, p_records_persisted,
           p_claim_token, v_now
      from saved s
  ), listed as (
    -- Once per so many checkpoints, the history is work for truncate_checkpoint_history.
    insert into filemark.long_histories (pipeline, file_url)
    select p_pipeline, p_file_url
      from saved s
     where s.history_length > v_settings.history_limit and (s.history_length - 1) % v_settings.history_limit = 0
        on conflict do nothing
  )
  select s.checkpoint_seq, s.lease_expires_at, s.history_length from saved s;

  if not found then
    return query
    select r.checkpoint_seq, r.lease_expires_at, r.history_length
      from filemark.repeated_checkpoint(
        p_pipeline, p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results,
        p_checkpoint_seq) r;
  end if;
end
$$;

comment on function filemark.save_checkpoint(text, bigint, jsonb, bigint, jsonb, bigint, bigint, bigint, text) is
  'Internal: what persist_records, which runs as its caller, is made of.';

-- Answers for a checkpoint that was saved before by the same claim under the same number with the same
-- content, or raises why it cannot be saved. Without a number it is a repeat when its content is the last one's.
create function filemark.repeated_checkpoint(
  p_pipeline text,
  p_file_url text,
  p_claim_token bigint,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq bigint,
  out checkpoint_seq bigint,
  out lease_expires_at timestamptz,
  out history_length bigint,
  out records_persisted bigint
)
language plpgsql
set search_path = ''
as $$
declare
  v_file record;
  v_saved record;
begin
  select f.checkpoint_seq, f.items_processed, f.accumulated_results, f.lease_expires_at, f.history_length
    into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     and f.claim_token = p_claim_token and f.status = 'processing'
     for no key update;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;

  if coalesce(p_checkpoint_seq, v_file.checkpoint_seq) = v_file.checkpoint_seq then
    select h.cursor, h.items_processed, h.records_persisted
      into v_saved
      from filemark.checkpoint_history h
     where h.pipeline = p_pipeline and h.file_url = p_file_url
       and h.checkpoint_seq = v_file.checkpoint_seq and h.claim_token = p_claim_token;
    if v_saved.cursor = p_cursor and v_saved.items_processed = p_items_processed
       and coalesce(nullif(p_accumulated_results, 'null') = v_file.accumulated_results,
                    nullif(p_accumulated_results, 'null') is null) then
      checkpoint_seq := v_file.checkpoint_seq;
      lease_expires_at := v_file.lease_expires_at;
      history_length := v_file.history_length;
      records_persisted := v_saved.records_persisted;
      return;
    end if;
  end if;

  if p_checkpoint_seq > v_file.checkpoint_seq + 1 then
    raise exception 'p_checkpoint_seq % leaves a gap: the last checkpoint of file "%" is %',
      p_checkpoint_seq, filemark.on_one_line(p_file_url), v_file.checkpoint_seq using errcode = 'PT412';
  elsif p_checkpoint_seq <= v_file.checkpoint_seq then
    raise exception 'p_checkpoint_seq % of file "%" was saved before, with other content or by another claim; '
      'the last checkpoint is %', p_checkpoint_seq, filemark.on_one_line(p_file_url), v_file.checkpoint_seq
      using errcode = 'PT412';
  else
    raise exception 'p_items_processed % of file "%" %: % are saved already',
      p_items_processed, filemark.on_one_line(p_file_url),
      case when p_items_processed < v_file.items_processed then 'steps back' else 'does not advance' end,
      v_file.items_processed
      using errcode = 'PT412', hint = 'It is the total done in the file so far, not the size of a batch.';
  end if;
end
$$;

-- Saves the file's progress and renews the lease. Null results or total keep what is there; '{}' clears the
-- results. Null p_checkpoint_seq means the next one.
create function public.checkpoint_file(
  p_file_url text,
  p_claim_token bigint,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb = null,
  p_checkpoint_seq bigint = null,
  p_items_total bigint = null,
  p_pipeline text = 'default'
)
returns table (checkpoint_seq bigint, lease_expires_at timestamptz, history_length bigint)
language plpgsql
security definer
set search_path = ''
as $$
begin
  return query
  select s.checkpoint_seq, s.lease_expires_at, s.history_length
    from filemark.save_checkpoint(
      p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results, p_checkpoint_seq,
      p_items_total, 0, p_pipeline) s;
end
$$;

comment on function public.checkpoint_file(text, bigint, jsonb, bigint, jsonb, bigint, bigint, text) is
$comment$Saves the progress of a claimed file and renews the lease.

A higher p_items_processed refills the retry budget. A repeat with the same p_checkpoint_seq and content changes
nothing.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_cursor: the next position to process, as any JSON, at most cursor_limit_bytes.
p_items_processed: items done in the whole file so far: a total, which never falls.
p_accumulated_results: what was worked out so far, as any JSON, at most results_limit_bytes; null keeps what is there,
  {} clears it.
p_checkpoint_seq: the number of this checkpoint, one more than the last one's; null for the next.
p_items_total: how many items the file has; null keeps what is there.
p_pipeline: the pipeline of the file.
Returns: one row, columns as in filemark.file_checkpoints.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost; PT412 does not follow the last checkpoint;
  PT413 cursor or results too large.$comment$;

-- Renews the lease: until p_pipeline's lease_seconds from now. Answers the new end.
create function public.extend_claim(p_file_url text, p_claim_token bigint, p_pipeline text = 'default')
returns timestamptz
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_lease_end timestamptz;
begin
  update filemark.file_checkpoints f
     set lease_expires_at = greatest(f.lease_expires_at, v_now + make_interval(secs => (
           select p.lease_seconds from filemark.pipelines p where p.pipeline = p_pipeline)))
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     and f.claim_token = p_claim_token and f.status = 'processing'
  returning f.lease_expires_at into v_lease_end;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;
  return v_lease_end;
end
$$;

comment on function public.extend_claim(text, bigint, text) is
$comment$Renews the lease of a claim, to lease_seconds from now.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_pipeline: the pipeline of the file.
Returns: the new end of the lease.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost.$comment$;

-- Locks the claimed file's row until the transaction ends, or raises that the claim is lost. Call it first in
-- your own transaction or function: what you write then commits only while the claim stands.
create function filemark.assert_claim(p_file_url text, p_claim_token bigint, p_pipeline text = 'default')
returns void
language plpgsql
security definer
set search_path = ''
as $$
begin
  perform from filemark.file_checkpoints f
    where f.pipeline = p_pipeline and f.file_url = p_file_url
      and f.claim_token = p_claim_token and f.status = 'processing'
      for no key update;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;
end
$$;

comment on function filemark.assert_claim(text, bigint, text) is
$comment$Locks a claimed file until the transaction ends, or raises that the claim is lost.

Call it first in your own transaction or function: what you write then commits only while the claim stands.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_pipeline: the pipeline of the file.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost.$comment$;
