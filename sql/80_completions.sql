-- filemark: completions
--
-- A claim ends completed, failed or released (82_failures.sql), always by the holder of the token. The row
-- remembers how its last claim ended (claim_ended), so that a repeat by the same token is answered as the
-- first call was. If newer content was noted meanwhile, the end of the claim starts the next generation.

-- Finishes claims, given in key order, and answers each: completed, already_completed, superseded or
-- claim_lost. One lost claim undoes nothing else.
create function filemark.complete_files(p_pipeline text, p_completions filemark.completion[])
returns table (file_url text, outcome text)
language plpgsql
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_given filemark.completion;
  v_done record;
  v_files int := 0;
  v_total numeric := 0;
  v_filtered numeric := 0;
  v_persisted numeric := 0;
  v_rejected numeric := 0;
begin
  -- One by one, in key order: each by its key, however small the table was when this was planned (97_plans.sql).
  foreach v_given in array p_completions loop
    update filemark.file_checkpoints f
       set status = 'completed',
           claim_ended = 'completed',
           lease_expires_at = null,
           lease_check_at = null,
           etag = coalesce(f.etag, v_given.etag),
           records_total = v_given.records_total,
           records_filtered = v_given.records_filtered,
           records_persisted = greatest(f.records_persisted, v_given.records_persisted),
           processing_time_ms = coalesce(v_given.processing_time_ms,
                                         greatest(extract(epoch from v_now - f.started_at) * 1000, 0)),
           accumulated_results = coalesce(v_given.accumulated_results, f.accumulated_results),
           results_bytes = coalesce(octet_length(v_given.accumulated_results::text), f.results_bytes),
           error_message = null,
           error = null,
           completed_at = v_now,
           kept_since = case when f.checkpoint_seq > 0 or f.accumulated_results is not null
                               or v_given.accumulated_results is not null then v_now end
     where f.pipeline = p_pipeline
       and f.file_url = v_given.file_url
       and f.claim_token = v_given.claim_token
       and f.status = 'processing'
       and f.superseded_by is null
       and (v_given.etag is null or f.etag is null or v_given.etag = f.etag
            or (select p.on_overwrite = 'ignore' from filemark.pipelines p where p.pipeline = p_pipeline))
    returning f.records_total, f.records_filtered, f.records_persisted, f.records_rejected into v_done;
    file_url := v_given.file_url;
    if found then
      outcome := 'completed';
      v_files := v_files + 1;
      v_total := v_total + v_done.records_total;
      v_filtered := v_filtered + v_done.records_filtered;
      v_persisted := v_persisted + v_done.records_persisted;
      v_rejected := v_rejected + v_done.records_rejected;
    else
      outcome := filemark.complete_changed_file(
        p_pipeline, v_given.file_url, v_given.claim_token, v_given.etag, v_now);
    end if;
    return next;
  end loop;
  if v_files > 0 then
    perform filemark.tally(p_pipeline, 'completed', v_files, v_total, v_filtered, v_persisted, v_rejected);
  end if;
end
$$;

-- Answers for a completion that could not simply be made: starts the next generation when the content
-- changed while it was processed, recognises a repeat, or finds the claim lost.
create function filemark.complete_changed_file(
  p_pipeline text,
  p_file_url text,
  p_claim_token bigint,
  p_etag text,
  p_now timestamptz
)
returns text
language plpgsql
set search_path = ''
as $$
declare
  v_file filemark.file_checkpoints;
begin
  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url and f.claim_token = p_claim_token
     for no key update;
  if not found then
    return case
      when exists (select from filemark.purged_files g
                    where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url)
                      and g.claim_token = p_claim_token) then 'already_completed'
      else 'claim_lost'
    end;
  elsif v_file.status = 'processing' then
    perform filemark.start_generation(
      p_pipeline, p_file_url, coalesce(v_file.superseded_by, jsonb_build_object('etag', p_etag)), p_now,
      v_file.processed_by, 'superseded');
    perform filemark.tally(p_pipeline, 'superseded');
    return 'superseded';
  else
    return case v_file.claim_ended
      when 'completed' then 'already_completed'
      when 'superseded' then 'superseded'
      else 'claim_lost'
    end;
  end if;
end
$$;

-- Refuses what cannot be said of a finished file. p_prefix stands before the names in the message.
create function filemark.check_completion(p_completion filemark.completion, p_pipeline text, p_prefix text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_max constant bigint := 9223372036854775807;
begin
  perform filemark.check_text(p_prefix || 'file_url', p_completion.file_url, 2048),
          filemark.check_number(p_prefix || 'claim_token', p_completion.claim_token, 1, v_max),
          filemark.check_number(p_prefix || 'records_total', p_completion.records_total, 0, v_max),
          filemark.check_number(p_prefix || 'records_filtered', p_completion.records_filtered, 0, v_max),
          filemark.check_number(p_prefix || 'records_persisted', p_completion.records_persisted, 0, v_max),
          filemark.check_number(p_prefix || 'processing_time_ms', coalesce(p_completion.processing_time_ms, 0), 0, v_max),
          filemark.check_text(p_prefix || 'etag', coalesce(p_completion.etag, '-'), 1024);
  if p_completion.accumulated_results is not null then
    perform filemark.check_size(
      p_prefix || 'accumulated_results', p_completion.accumulated_results,
      (select p.results_limit_bytes from filemark.pipelines p where p.pipeline = p_pipeline));
  end if;
end
$$;

-- Marks the file as done. Answers completed; already_completed for a repeat by the same token; superseded when
-- newer content was seen meanwhile or p_etag, the etag actually read, is not the claimed one: the file is then
-- pending again as a new generation. Counts are totals of the whole file; what persist_records counted is
-- never lowered. Null p_processing_time_ms is measured from the claim.
create function public.complete_file(
  p_file_url text,
  p_claim_token bigint,
  p_records_total bigint = 0,
  p_records_filtered bigint = 0,
  p_records_persisted bigint = 0,
  p_processing_time_ms bigint = null,
  p_accumulated_results jsonb = null,
  p_etag text = null,
  p_pipeline text = 'default'
)
returns table (outcome text)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_completion filemark.completion := (
    p_file_url, p_claim_token, p_records_total, p_records_filtered, p_records_persisted,
    p_processing_time_ms, nullif(p_accumulated_results, 'null'), p_etag);
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_completion(v_completion, p_pipeline, 'p_');
  select c.outcome into outcome from filemark.complete_files(p_pipeline, array[v_completion]) c;
  if outcome = 'claim_lost' then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;
  return next;
end
$$;

comment on function public.complete_file(text, bigint, bigint, bigint, bigint, bigint, jsonb, text, text) is
$comment$Marks a claimed file as done.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_records_total: records in the whole file.
p_records_filtered: records that were left out on purpose.
p_records_persisted: records that were written; what persist_records counted is never lowered.
p_processing_time_ms: how long it took, in milliseconds; null to measure from the claim.
p_accumulated_results: the results, as any JSON, at most results_limit_bytes; null keeps what is there.
p_etag: the etag that was actually read, 1 to 1024 bytes; null when unknown.
p_pipeline: the pipeline of the file.
Returns: one row.
outcome: 'completed'; 'already_completed' for a repeat; 'superseded' when newer content was seen meanwhile or p_etag is
  not the claimed one: the file is then pending again as a new generation.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost; PT413 results too large.$comment$;

-- The completions in p_completions, checked, with their defaults, in key order.
create function filemark.parse_completions(p_completions jsonb, p_pipeline text)
returns filemark.completion[]
language plpgsql
set search_path = ''
as $$
declare
  v_keys constant text[] := array[
    'file_url', 'claim_token', 'records_total', 'records_filtered', 'records_persisted', 'processing_time_ms',
    'accumulated_results', 'etag'];
  v_bad record;
  v_completions filemark.completion[];
begin
  if jsonb_typeof(p_completions) is distinct from 'array' then
    perform filemark.refuse_argument('p_completions', p_completions::text, 'a JSON array of objects');
  elsif jsonb_array_length(p_completions) > 100 then
    perform filemark.refuse_size('p_completions', jsonb_array_length(p_completions), 100, 'completions');
  end if;

  select e.position - 1 as index, e.entry, checked.verdict,
         case when jsonb_typeof(e.entry) = 'object' then
           (select min(k.key) from jsonb_object_keys(e.entry - v_keys) k (key))
         end as unknown_key
    into v_bad
    from jsonb_array_elements(p_completions) with ordinality e (entry, position)
   cross join lateral (
     select case
       when jsonb_typeof(e.entry) <> 'object' or e.entry - v_keys <> '{}' then
         'an object'
       when jsonb_typeof(e.entry -> 'file_url') is distinct from 'string'
            or jsonb_typeof(e.entry -> 'etag') not in ('string', 'null') then
         'an object with texts as file_url and etag'
       when exists (select from jsonb_each_text(e.entry - array['file_url', 'etag', 'accumulated_results']) n (key, value)
                     where case when n.value ~ '^[0-9]{1,19}(\.0+)?$'
                                then n.value::numeric > 9223372036854775807 else n.value is not null end) then
         'an object with a claim_token, and whole numbers of 0 or more as counts and time'
       end
   ) as checked (verdict)
   where checked.verdict is not null
   limit 1;
  if found and v_bad.unknown_key is not null then
    perform filemark.refuse_key(format('p_completions[%s].%s', v_bad.index, v_bad.unknown_key), v_keys);
  elsif found then
    perform filemark.refuse_argument(
      format('p_completions[%s]', v_bad.index), v_bad.entry::text, v_bad.verdict);
  end if;

  if (select count(distinct e.entry ->> 'file_url') from jsonb_array_elements(p_completions) e (entry))
     < jsonb_array_length(p_completions) then
    perform filemark.refuse_argument('p_completions', p_completions::text, 'an array that names each file_url once');
  end if;

  v_completions := array(
    select (c.file_url, c.claim_token, coalesce(c.records_total, 0), coalesce(c.records_filtered, 0),
            coalesce(c.records_persisted, 0), c.processing_time_ms,
            nullif(c.accumulated_results, 'null'), c.etag)::filemark.completion
      from jsonb_to_recordset(p_completions) as c (
             file_url text, claim_token numeric, records_total numeric, records_filtered numeric,
             records_persisted numeric, processing_time_ms numeric, accumulated_results jsonb, etag text)
     order by c.file_url collate "C");
  perform filemark.check_completion(c, p_pipeline, format('p_completions[%s].', c.file_url))
     from unnest(v_completions) c;
  return v_completions;
end
$$;

-- Finishes files and claims the next ones in one transaction: a busy worker's only round trip. Answers the
-- new claims; before them, a row with outcome claim_lost for each completion whose claim was lost, which
-- undoes nothing else. A repeat with the same p_request_id completes nothing twice and claims nothing more.
create function public.complete_and_claim_next(
  p_worker_id text,
  p_completions jsonb,
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
declare
  v_completions filemark.completion[];
  v_finished record;
  v_is_limited boolean;
begin
  perform filemark.check_text('p_worker_id', p_worker_id, 200),
          filemark.check_number('p_limit', p_limit, 1, 100),
          filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_text('p_file_type', coalesce(p_file_type, '-'), 100);
  v_completions := filemark.parse_completions(p_completions, p_pipeline);

  -- The pipeline's row before any file's, where a limit will have it locked.
  perform from filemark.pipelines p
    where p.pipeline = p_pipeline and p.max_concurrency is not null
      for no key update;
  v_is_limited := found;
  for v_finished in select c.file_url, c.outcome from filemark.complete_files(p_pipeline, v_completions) c loop
    if v_finished.outcome = 'claim_lost' then
      outcome := 'claim_lost';
      pipeline := p_pipeline;
      file_url := v_finished.file_url;
      return next;
    end if;
  end loop;

  -- A limit that was set since counts from the next call on: the pipeline is not locked behind files.
  return query
  select * from filemark.claim_next(p_pipeline, p_worker_id, p_limit, p_file_type, p_request_id, v_is_limited);
end
$$;

comment on function public.complete_and_claim_next(text, jsonb, int, text, text, uuid) is
$comment$Finishes files and claims the next ones in one transaction.

p_worker_id: who claims, 1 to 200 bytes.
p_completions: array of at most 100 objects {file_url, claim_token, records_total?, …}, each key as in
  filemark.completion and each file_url once.
p_limit: how many files to claim at most, 1 to 100.
p_pipeline: the pipeline.
p_file_type: claim only files of this type; null for all.
p_request_id: a uuid made for this call. A repeat with it completes nothing twice, gets what is left of the first
  answer's claims, and claims nothing more.
Returns: rows of filemark.claim: one with outcome 'claim_lost' for each completion whose claim was lost, which undoes
  nothing else, then the new claims, as claim_next_files.
Errors: PT400 bad argument; PT413 more than 100 completions, or results too large.$comment$;
