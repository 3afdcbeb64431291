-- filemark: purged files
--
-- Of a file that was completed long ago purge_files (96_maintenance.sql) keeps a row of a few dozen bytes. As long as
-- its content stays the same it is answered completed; with a new etag, or requeued, it comes back.
--
-- Purging puts the small row in the place of the file's in one transaction. Who waited at the file's row for that finds
-- it gone, and looks here. Who looked here too early and made a new row meanwhile looks again, and takes it back.

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

-- Removes one file, whose row the caller has locked, and everything about it but what purged_files keeps.
create function filemark.purge_file(p_file filemark.file_checkpoints)
returns void
language plpgsql
set search_path = ''
as $$
begin
  insert into filemark.purged_files as g (
    pipeline, file_hash, etag_hash, generation, claim_token, file_timestamp, file_type)
  values (p_file.pipeline, filemark.short_hash(p_file.file_url), filemark.short_hash(p_file.etag), p_file.generation,
          p_file.claim_token, p_file.file_timestamp, p_file.file_type)
      -- A repeatable read transaction that began before a purge may have registered the file anew.
      on conflict (pipeline, file_hash) do update
     set etag_hash = excluded.etag_hash,
         generation = greatest(g.generation, excluded.generation),
         claim_token = greatest(g.claim_token, excluded.claim_token),
         file_timestamp = excluded.file_timestamp,
         file_type = excluded.file_type;
  delete from filemark.checkpoint_history h where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url;
  delete from filemark.long_histories l where l.pipeline = p_file.pipeline and l.file_url = p_file.file_url;
  delete from filemark.dead_letter_entries d where d.pipeline = p_file.pipeline and d.file_url = p_file.file_url;
  delete from filemark.file_events e where e.pipeline = p_file.pipeline and e.file_url = p_file.file_url;
  delete from filemark.file_checkpoints f where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
end
$$;

-- Whether the file is purged, and p_etag is nothing new about it.
create function filemark.stays_purged(p_pipeline text, p_file_url text, p_etag text)
returns boolean
language plpgsql
stable
set search_path = ''
as $$
begin
  return exists (
    select from filemark.purged_files g
      join filemark.pipelines p on p.pipeline = g.pipeline
     where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url)
       and (p_etag is null or g.etag_hash = filemark.short_hash(p_etag)
            or (g.etag_hash is not null and p.on_overwrite = 'ignore')));
end
$$;

-- Brings a purged file back as it was, completed and without its etag; p_etag is noted instead. Does nothing when it
-- is not purged, or another session has brought it back. Its records were counted when it was completed, and are not
-- known any more.
create function filemark.revive_file(p_pipeline text, p_file_url text, p_etag text, p_now timestamptz)
returns void
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
  if found then
    perform filemark.tally(p_pipeline, 'purged', -1);
  end if;
end
$$;

-- Takes in that a purged file was seen with an etag: notes its first one; with another one the file comes back.
create function filemark.note_purged_etag(
  p_pipeline text,
  p_file_url text,
  p_etag text,
  p_on_overwrite text,
  p_now timestamptz
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_purged filemark.purged_files;
begin
  select g.* into v_purged
    from filemark.purged_files g
   where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url)
     for update;
  if v_purged.etag_hash is null then
    update filemark.purged_files g
       set etag_hash = filemark.short_hash(p_etag)
     where g.pipeline = v_purged.pipeline and g.file_hash = v_purged.file_hash;
  elsif v_purged.etag_hash <> filemark.short_hash(p_etag) and p_on_overwrite = 'reprocess' then
    -- No etag is empty: whatever comes is another.
    perform filemark.revive_file(p_pipeline, p_file_url, '', p_now);
  end if;
end
$$;

-- Takes in that files were seen, given as register_files takes them, some of which may be purged. Answers the entries
-- of those that are not, among them those that came back.
create function filemark.note_purged(p_pipeline text, p_files jsonb, p_now timestamptz)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  v_on_overwrite text;
begin
  if not exists (select from filemark.purged_files g where g.pipeline = p_pipeline) then
    return p_files;
  end if;
  select p.on_overwrite into v_on_overwrite from filemark.pipelines p where p.pipeline = p_pipeline;

  perform filemark.note_purged_etag(p_pipeline, seen.file_url, seen.etag, v_on_overwrite, p_now)
     from (
       select latest.file_url, latest.etag
         from (
           select distinct on ((e.entry ->> 'file_url') collate "C")
                  e.entry ->> 'file_url' as file_url, e.entry ->> 'etag' as etag
             from jsonb_array_elements(p_files) with ordinality e (entry, position)
            order by (e.entry ->> 'file_url') collate "C", e.position desc
         ) latest
         join filemark.purged_files g on g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(latest.file_url)
        where latest.etag is not null and g.etag_hash is distinct from filemark.short_hash(latest.etag)
        order by latest.file_url collate "C"
     ) seen;

  return (
    select coalesce(jsonb_agg(e.entry order by e.position), '[]')
      from jsonb_array_elements(p_files) with ordinality e (entry, position)
     where not exists (
       select from filemark.purged_files g
        where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(e.entry ->> 'file_url')));
end
$$;
