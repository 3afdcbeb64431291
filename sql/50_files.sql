-- filemark: files and their generations
--
-- A file is known by (pipeline, file_url); its content by the etag. A new etag on a file that nobody is
-- processing starts a new generation: pending again, nothing left of the old content's progress. While
-- the file is being processed the new content is only noted (superseded_by), and whatever ends the claim
-- starts the generation: no worker ever resumes a cursor over other content.

-- Starts the next generation of a file whose row the caller has locked. p_content is an entry as
-- register_files takes it; what it does not say stays, but the size, which is then unknown. p_claim_ended
-- says how the running claim ended, if there is one.
create function filemark.start_generation(
  p_pipeline text,
  p_file_url text,
  p_content jsonb,
  p_now timestamptz,
  p_actor text = null,
  p_claim_ended text = 'lost'
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_old filemark.file_checkpoints;
begin
  select f.* into v_old
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;

  delete from filemark.checkpoint_history h where h.pipeline = p_pipeline and h.file_url = p_file_url;

  update filemark.file_checkpoints f
     set generation = f.generation + 1,
         etag = p_content ->> 'etag',
         file_type = coalesce(p_content ->> 'file_type', f.file_type),
         file_timestamp = coalesce((p_content ->> 'file_timestamp')::timestamptz, f.file_timestamp),
         size_bytes = (p_content ->> 'size_bytes')::numeric::bigint,
         metadata = coalesce(nullif(p_content -> 'metadata', 'null'), f.metadata),
         priority = coalesce((p_content ->> 'priority')::numeric::int, f.priority),
         available_at = coalesce((p_content ->> 'available_at')::timestamptz, p_now),
         superseded_by = null,
         status = 'pending',
         claim_ended = case when f.status = 'processing' then p_claim_ended else f.claim_ended end,
         lease_expires_at = null,
         lease_check_at = null,
         attempts = 0,
         cursor = null,
         items_processed = 0,
         items_total = null,
         accumulated_results = null,
         results_bytes = 0,
         checkpoint_seq = 0,
         checkpointed_at = null,
         history_length = 0,
         records_total = 0,
         records_filtered = 0,
         records_persisted = 0,
         records_rejected = 0,
         processing_time_ms = null,
         error_message = null,
         error = null,
         completed_at = null,
         kept_since = null
   where f.pipeline = p_pipeline and f.file_url = p_file_url;

  perform filemark.tally_reopened(v_old),
          filemark.tally(p_pipeline, 'overwritten'),
          filemark.close_dead_letter(
            p_pipeline, p_file_url, 'requeued', 'new content: etag ' || (p_content ->> 'etag'), p_actor);
  perform filemark.record_event(
    p_pipeline, p_file_url, 'overwritten', p_actor, null,
    jsonb_build_object('old_etag', v_old.etag, 'new_etag', p_content ->> 'etag',
                       'generation', v_old.generation + 1, 'old_status', v_old.status,
                       'old_items_processed', v_old.items_processed));
end
$$;

-- Takes in that a file, whose row the caller has locked, was seen with other content: gives it its first
-- etag, notes the content, or starts a generation. Answers whether the file has a new generation now or
-- will have one when its claim ends.
create function filemark.note_content(
  p_file filemark.file_checkpoints,
  p_content jsonb,
  p_on_overwrite text,
  p_now timestamptz,
  p_actor text = null
)
returns boolean
language plpgsql
set search_path = ''
as $$
declare
  v_etag text := p_content ->> 'etag';
begin
  -- Content that comes back while the file is processed is news too: the holder may have read the other.
  if v_etag is null or v_etag = coalesce(p_file.superseded_by ->> 'etag', p_file.etag) then
    return false;
  elsif p_file.etag is null then
    update filemark.file_checkpoints f
       set etag = v_etag
     where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
    return false;
  elsif p_on_overwrite = 'ignore' then
    return false;
  elsif p_file.status = 'processing' then
    update filemark.file_checkpoints f
       set superseded_by = p_content
     where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
    return true;
  else
    perform filemark.start_generation(p_file.pipeline, p_file.file_url, p_content, p_now, p_actor);
    return true;
  end if;
end
$$;

-- Raises PT400 for the first text under p_key in p_files that is not a finite timestamp.
create function filemark.check_times(p_files jsonb, p_key text)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_file record;
begin
  -- All in one pass; only when that fails, one by one, to name the culprit.
  if (select bool_and(isfinite((e.entry ->> p_key)::timestamptz)) from jsonb_array_elements(p_files) e (entry))
     is not false then
    return;
  end if;
  raise datetime_field_overflow;
exception
  when data_exception then
    for v_file in
      select e.entry ->> p_key as value, e.position - 1 as index
        from jsonb_array_elements(p_files) with ordinality e (entry, position)
       where e.entry ->> p_key is not null
    loop
      begin
        if isfinite(v_file.value::timestamptz) then
          continue;
        end if;
      exception
        when data_exception then
          null;
      end;
      perform filemark.refuse_argument(
        format('p_files[%s].%s', v_file.index, p_key), v_file.value, 'a finite timestamp');
    end loop;
end
$$;

-- Raises PT400 for the first entry of p_files that is not what register_files takes, PT413 for too many.
create function filemark.check_files(p_files jsonb)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_keys constant text[] := array[
    'file_url', 'file_type', 'file_timestamp', 'etag', 'size_bytes', 'priority', 'available_at', 'metadata'];
  v_bad record;
begin
  if jsonb_typeof(p_files) is distinct from 'array' then
    perform filemark.refuse_argument('p_files', p_files::text, 'a JSON array of objects');
  elsif jsonb_array_length(p_files) > 10000 then
    perform filemark.refuse_size('p_files', jsonb_array_length(p_files), 10000, 'files');
  end if;

  select e.position - 1 as index, e.entry, checked.verdict[1] as key, checked.verdict[2] as allowed
    into v_bad
    from jsonb_array_elements(p_files) with ordinality e (entry, position)
   cross join lateral (
     select case
       when jsonb_typeof(e.entry) <> 'object' then
         array[null, 'an object']
       when e.entry - v_keys <> '{}' then
         array[(select min(k.key) from jsonb_object_keys(e.entry - v_keys) k (key)), null]
       when jsonb_typeof(e.entry -> 'file_url') is distinct from 'string'
            or octet_length(e.entry ->> 'file_url') not between 1 and 2048 then
         array['file_url', 'a text of 1 to 2048 bytes']
       when jsonb_typeof(e.entry -> 'file_type') is distinct from 'string'
            or octet_length(e.entry ->> 'file_type') not between 1 and 100 then
         array['file_type', 'a text of 1 to 100 bytes']
       when jsonb_typeof(e.entry -> 'file_timestamp') is distinct from 'string' then
         array['file_timestamp', 'a finite timestamp']
       when jsonb_typeof(e.entry -> 'etag') not in ('string', 'null')
            or octet_length(e.entry ->> 'etag') not between 1 and 1024 then
         array['etag', 'a text of 1 to 1024 bytes, or null']
       when jsonb_typeof(e.entry -> 'size_bytes') not in ('number', 'null')
            or (e.entry ->> 'size_bytes')::numeric not between 0 and 9223372036854775807
            or (e.entry ->> 'size_bytes')::numeric % 1 <> 0 then
         array['size_bytes', 'a whole number of bytes, or null']
       when jsonb_typeof(e.entry -> 'priority') not in ('number', 'null')
            or (e.entry ->> 'priority')::numeric not between -2147483648 and 2147483647
            or (e.entry ->> 'priority')::numeric % 1 <> 0 then
         array['priority', 'a whole number from -2147483648 to 2147483647, or null']
       when jsonb_typeof(e.entry -> 'available_at') not in ('string', 'null') then
         array['available_at', 'a finite timestamp, or null']
       when jsonb_typeof(e.entry -> 'metadata') not in ('object', 'null') then
         array['metadata', 'an object, or null']
       end
   ) as checked (verdict)
   where checked.verdict is not null
   limit 1;
  if found and v_bad.allowed is null then
    perform filemark.refuse_key(format('p_files[%s].%s', v_bad.index, v_bad.key), v_keys);
  elsif found then
    perform filemark.refuse_argument(
      format('p_files[%s]', v_bad.index) || coalesce('.' || v_bad.key, ''),
      case when v_bad.key is null then v_bad.entry::text else v_bad.entry ->> v_bad.key end,
      v_bad.allowed);
  end if;

  perform filemark.check_times(p_files, 'file_timestamp');
  perform filemark.check_times(p_files, 'available_at');
end
$$;

-- Makes the files of checked entries known that are not, and answers how many. Rows are inserted in key order.
create function filemark.add_files(p_pipeline text, p_files jsonb, p_now timestamptz)
returns bigint
language plpgsql
set search_path = ''
as $$
declare
  v_added text[];
  v_purged text[];
begin
  with added as (
    insert into filemark.file_checkpoints as f (
      pipeline, file_url, file_type, file_timestamp, etag, size_bytes, priority, available_at, metadata, created_at)
    select p_pipeline, e.file_url, e.file_type, e.file_timestamp, e.etag, e.size_bytes::bigint,
           coalesce(e.priority::int, 0), coalesce(e.available_at, p_now), coalesce(nullif(e.metadata, 'null'), '{}'),
           p_now
      from (
        select distinct on (r.file_url collate "C") r.*
          from rows from (
            jsonb_to_recordset(p_files) as (
              file_url text, file_type text, file_timestamp timestamptz, etag text, size_bytes numeric,
              priority numeric, available_at timestamptz, metadata jsonb)
          ) with ordinality as r (
              file_url, file_type, file_timestamp, etag, size_bytes, priority, available_at, metadata, position)
         order by r.file_url collate "C", r.position desc
      ) e
        on conflict (pipeline, file_url) do nothing
    returning f.file_url
  )
  select coalesce(array_agg(a.file_url::text), '{}') into v_added from added a;

  if v_added <> '{}' and exists (select from filemark.purged_files g where g.pipeline = p_pipeline) then
    -- The insert may have waited for a purge that note_purged came too early to see.
    v_purged := array(
      select u.url from unnest(v_added) u (url)
        join filemark.purged_files g on g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(u.url));
  end if;
  if v_purged <> '{}' then
    delete from filemark.file_checkpoints f where f.pipeline = p_pipeline and f.file_url = any (v_purged);
    return cardinality(v_added) - cardinality(v_purged) + filemark.add_files(
      p_pipeline,
      filemark.note_purged(
        p_pipeline,
        (select jsonb_agg(e.entry) from jsonb_array_elements(p_files) e (entry)
          where e.entry ->> 'file_url' = any (v_purged)),
        p_now),
      p_now);
  end if;
  return cardinality(v_added);
end
$$;

-- Takes in the etags of known files, given as checked entries; answers how many files have a new generation for that,
-- or will have one when their claim ends. Rows are locked in key order.
create function filemark.note_contents(p_pipeline text, p_files jsonb, p_now timestamptz)
returns bigint
language plpgsql
set search_path = ''
as $$
declare
  v_on_overwrite text;
  v_content jsonb;
  v_known filemark.file_checkpoints;
  v_count bigint := 0;
begin
  select p.on_overwrite into v_on_overwrite from filemark.pipelines p where p.pipeline = p_pipeline;
  for v_content in
    select latest.entry
      from (
        select distinct on ((e.entry ->> 'file_url') collate "C") e.entry
          from jsonb_array_elements(p_files) with ordinality e (entry, position)
         order by (e.entry ->> 'file_url') collate "C", e.position desc
      ) latest
     cross join lateral (
       -- The offset keeps this a look-up per entry, however small the table was when this was planned.
       select coalesce(c.superseded_by ->> 'etag', c.etag) as etag from filemark.file_checkpoints c
        where c.pipeline = p_pipeline and c.file_url = latest.entry ->> 'file_url' offset 0
     ) f
     where latest.entry ->> 'etag' <> coalesce(f.etag, '')
     order by (latest.entry ->> 'file_url') collate "C"
  loop
    for attempt in 1 .. 2 loop
      select f.* into v_known
        from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = v_content ->> 'file_url'
         for no key update;
      exit when found;
      -- It was purged meanwhile.
      perform filemark.note_purged(p_pipeline, jsonb_build_array(v_content), p_now);
    end loop;
    if v_known.file_url is not null and filemark.note_content(v_known, v_content, v_on_overwrite, p_now) then
      v_count := v_count + 1;
    end if;
  end loop;
  return v_count;
end
$$;

-- Makes files known: new ones become pending, ones with a new etag start a new generation (or are noted to,
-- while they are processed), the rest is left as it is. Of two entries with one file_url the later counts.
-- A repeat finds everything unchanged.
create function public.register_files(p_files jsonb, p_pipeline text = 'default')
returns table (registered bigint, new_generations bigint, unchanged bigint)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_files jsonb;
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  perform filemark.check_files(p_files);
  perform filemark.ensure_pipeline(p_pipeline);
  v_files := filemark.note_purged(p_pipeline, p_files, v_now);
  registered := filemark.add_files(p_pipeline, v_files, v_now);
  if registered > 0 then
    perform filemark.tally(p_pipeline, 'registered', registered);
  end if;
  new_generations := case when registered < jsonb_array_length(v_files)
                          then filemark.note_contents(p_pipeline, v_files, v_now) else 0 end;
  unchanged := jsonb_array_length(p_files) - registered - new_generations;
  return next;
end
$$;

comment on function public.register_files(jsonb, text) is
$comment$Makes files known to a pipeline.

New files become pending. A known file that comes with another etag starts a new generation, now or when its claim ends,
unless on_overwrite is 'ignore'. Of two entries with one file_url the later counts. A repeat changes nothing.

p_files: array of at most 10,000 objects {file_url, file_type, file_timestamp, etag?, size_bytes?, priority?,
  available_at?, metadata?}, each key as in filemark.file_checkpoints.
p_pipeline: the pipeline, 1 to 100 bytes; made on first use.
Returns: one row.
registered: files that were not known.
new_generations: known files that came with other content.
unchanged: the other entries.
Errors: PT400 bad argument; PT413 more than 10,000 files.$comment$;
