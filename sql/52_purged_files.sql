-- filemark: purged files
--
-- Of a file that was completed long ago purge_files (96_maintenance.sql) keeps a row of a few dozen bytes. As long as
-- its content stays the same it is answered completed; with a new etag, or requeued, it comes back.

-- What purged_files keeps of a url or an etag.
create function filemark.short_hash(p_text text)
returns bytea
language plpgsql
immutable
set search_path = ''
as $$
begin
  return substr(sha256(convert_to(p_text, 'UTF8')), 1, 16);
end
$$;

-- Brings a purged file back as it was, completed and without its etag; p_etag is noted instead. Answers false when
-- it was not purged.
create function filemark.revive_file(p_pipeline text, p_file_url text, p_etag text, p_now timestamptz)
returns boolean
language plpgsql
set search_path = ''
as $$
begin
  with purged as (
    delete from filemark.purged_files g
     where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url)
    returning g.*
  )
  insert into filemark.file_checkpoints (
    pipeline, file_url, file_type, file_timestamp, etag, generation, status, available_at, claim_token, claim_ended,
    completed_at)
  select g.pipeline, p_file_url, g.file_type, g.file_timestamp, p_etag, g.generation, 'completed', p_now,
         g.claim_token, 'completed', p_now
    from purged g;
  if not found then
    return false;
  end if;
  perform filemark.tally(p_pipeline, 'purged', -1);
  return true;
end
$$;

-- Takes in that files were seen, some of which may be purged: those with a new etag come back, and are then like any
-- known file; one without an etag takes the first it is given. Answers the urls that stay purged.
create function filemark.note_purged(p_pipeline text, p_files jsonb, p_now timestamptz)
returns text[]
language plpgsql
set search_path = ''
as $$
declare
  v_seen record;
  v_purged text[] := '{}';
begin
  if not exists (select from filemark.purged_files g where g.pipeline = p_pipeline) then
    return v_purged;
  end if;
  for v_seen in
    select latest.file_url, latest.etag, g.etag_hash, p.on_overwrite
      from (
        select distinct on ((e.entry ->> 'file_url') collate "C")
               e.entry ->> 'file_url' as file_url, e.entry ->> 'etag' as etag
          from jsonb_array_elements(p_files) with ordinality e (entry, position)
         order by (e.entry ->> 'file_url') collate "C", e.position desc
      ) latest
      join filemark.purged_files g on g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(latest.file_url)
      join filemark.pipelines p on p.pipeline = p_pipeline
     order by latest.file_url collate "C"
  loop
    if v_seen.etag_hash is null and v_seen.etag is not null then
      update filemark.purged_files g
         set etag_hash = filemark.short_hash(v_seen.etag)
       where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(v_seen.file_url);
    elsif v_seen.etag_hash <> filemark.short_hash(v_seen.etag) and v_seen.on_overwrite = 'reprocess' then
      -- No etag is empty: whatever comes is another.
      perform filemark.revive_file(p_pipeline, v_seen.file_url, '', p_now);
      continue;
    end if;
    v_purged := v_purged || v_seen.file_url;
  end loop;
  return v_purged;
end
$$;
