-- filemark: reading
--
-- What one asks about files without changing anything. All STABLE, so that the API runs them read-only.

-- Everything known about one file, or nothing when it is not known. Of a purged file that is not much.
create function public.get_file_checkpoint(p_file_url text, p_pipeline text = 'default')
returns table (
  pipeline text, file_url text, file_type text, file_timestamp timestamptz, size_bytes bigint, etag text,
  generation bigint, superseded_by jsonb, metadata jsonb, status text, priority int, available_at timestamptz,
  claim_token bigint, claim_ended text, processed_by text, started_at timestamptz, lease_expires_at timestamptz,
  lease_check_at timestamptz, attempts int, cursor jsonb, items_processed bigint, items_total bigint,
  accumulated_results jsonb, checkpoint_seq bigint, checkpointed_at timestamptz, history_length bigint,
  records_total bigint, records_filtered bigint, records_persisted bigint, records_rejected bigint,
  processing_time_ms bigint, error_message text, error jsonb, completed_at timestamptz, created_at timestamptz,
  kept_since timestamptz, results_bytes bigint
)
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  perform filemark.check_key(p_pipeline, p_file_url);
  return query
  select f.pipeline::text, f.file_url::text, f.file_type, f.file_timestamp, f.size_bytes, f.etag,
         f.generation, f.superseded_by, f.metadata, f.status, f.priority, f.available_at,
         f.claim_token, f.claim_ended, f.processed_by, f.started_at, f.lease_expires_at,
         f.lease_check_at, f.attempts, f.cursor, f.items_processed, f.items_total,
         f.accumulated_results, f.checkpoint_seq, f.checkpointed_at, f.history_length,
         f.records_total, f.records_filtered, f.records_persisted, f.records_rejected,
         f.processing_time_ms, f.error_message, f.error, f.completed_at, f.created_at,
         f.kept_since, f.results_bytes
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
  if not found then
    select g.file_type, g.file_timestamp, g.generation, g.claim_token
      into file_type, file_timestamp, generation, claim_token
      from filemark.purged_files g
     where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url);
    if found then
      pipeline := p_pipeline;
      file_url := p_file_url;
      status := 'completed';
      return next;
    end if;
  end if;
end
$$;

comment on function public.get_file_checkpoint(text, text) is
$comment$Everything known about one file.

p_file_url: the file.
p_pipeline: the pipeline of the file.
Returns: one row of filemark.file_checkpoints, or none when the file is not known.
Errors: PT400 bad argument.$comment$;

-- The same rows for many files, by file_url: the first p_limit after p_after, of one status or of all.
create function public.list_file_checkpoints(
  p_status text = null,
  p_limit int = 100,
  p_after text = null,
  p_pipeline text = 'default'
)
returns table (
  pipeline text, file_url text, file_type text, file_timestamp timestamptz, size_bytes bigint, etag text,
  generation bigint, superseded_by jsonb, metadata jsonb, status text, priority int, available_at timestamptz,
  claim_token bigint, claim_ended text, processed_by text, started_at timestamptz, lease_expires_at timestamptz,
  lease_check_at timestamptz, attempts int, cursor jsonb, items_processed bigint, items_total bigint,
  accumulated_results jsonb, checkpoint_seq bigint, checkpointed_at timestamptz, history_length bigint,
  records_total bigint, records_filtered bigint, records_persisted bigint, records_rejected bigint,
  processing_time_ms bigint, error_message text, error jsonb, completed_at timestamptz, created_at timestamptz,
  kept_since timestamptz, results_bytes bigint
)
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100),
          filemark.check_number('p_limit', p_limit, 1, 1000);
  if p_status not in ('pending', 'processing', 'completed', 'failed', 'dead_letter', 'skipped') then
    perform filemark.refuse_argument(
      'p_status', p_status, 'pending, processing, completed, failed, dead_letter, skipped or null');
  end if;
  return query
  select g.*
    from (select f.file_url
            from filemark.file_checkpoints f
           where f.pipeline = p_pipeline
             and f.file_url > coalesce(p_after, '')
             and (p_status is null or f.status = p_status)
           order by f.file_url
           limit p_limit) listed
   cross join lateral public.get_file_checkpoint(listed.file_url, p_pipeline) g
   order by listed.file_url;
end
$$;

comment on function public.list_file_checkpoints(text, int, text, text) is
$comment$Everything known about many files, page by page.

p_status: only files in this status; null for all.
p_limit: how many files at most, 1 to 1000.
p_after: the last file_url of the page before; null for the first page.
p_pipeline: the pipeline.
Returns: rows of filemark.file_checkpoints, by file_url.
Errors: PT400 bad argument.$comment$;

-- Of the given urls (at most 1,000), known or not, those that claim_file would get now; each once, in the
-- order given.
create function public.pending_files(p_file_urls text[], p_pipeline text = 'default')
returns table (file_url text)
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_is_full boolean := false;
begin
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  -- At most 1,000: the API cuts results at max_rows, and a file that is cut off would look taken.
  if p_file_urls is null or array_ndims(p_file_urls) > 1 then
    perform filemark.refuse_argument('p_file_urls', p_file_urls::text, 'an array of texts');
  elsif cardinality(p_file_urls) > 1000 then
    perform filemark.refuse_size('p_file_urls', cardinality(p_file_urls), 1000, 'urls');
  end if;
  perform filemark.check_text(format('p_file_urls[%s]', u.position), u.url, 2048)
     from unnest(p_file_urls) with ordinality u (url, position);

  select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
  if v_settings.paused then
    return;
  end if;
  if v_settings.max_concurrency is not null then
    v_is_full := filemark.count_in_progress(p_pipeline, v_settings.max_concurrency) >= v_settings.max_concurrency;
  end if;

  return query
  select u.url
    from unnest(p_file_urls) with ordinality u (url, position)
    left join filemark.file_checkpoints f on f.pipeline = p_pipeline and f.file_url = u.url
    left join filemark.purged_files g
      on f.status is null and g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(u.url)
   where case
           when f.status is null then not v_is_full and g.file_hash is null
           else filemark.claim_refusal(
                  f.status, f.available_at, f.lease_expires_at, f.superseded_by is not null, f.attempts,
                  v_settings.max_attempts, v_now) is null
                and (f.status = 'processing' or not v_is_full)
         end
   group by u.url
   order by min(u.position);
end
$$;

comment on function public.pending_files(text[], text) is
$comment$Of the given files, known or not, those that claim_file would get now.

p_file_urls: at most 1,000 file_urls.
p_pipeline: the pipeline.
Returns: a row for each of them, in the order given, file_url as in filemark.file_checkpoints.
Errors: PT400 bad argument; PT413 more than 1,000 file_urls.$comment$;

-- What was tallied of each pipeline, since it began.
create function filemark.totals(p_pipeline text)
returns table (
  what text, files bigint, records_total bigint, records_filtered bigint, records_persisted bigint,
  records_rejected bigint, last_at timestamptz
)
language plpgsql
stable
set search_path = ''
as $$
declare
  v_max constant bigint := 9223372036854775807;
begin
  return query
  select s.what, sum(s.files)::bigint, least(sum(s.records_total), v_max)::bigint,
         least(sum(s.records_filtered), v_max)::bigint, least(sum(s.records_persisted), v_max)::bigint,
         least(sum(s.records_rejected), v_max)::bigint, max(s.last_at)
    from (
      select a.what, a.files, a.records_total, a.records_filtered, a.records_persisted, a.records_rejected, a.last_at
        from filemark.activity a
       where a.pipeline = p_pipeline and a.hour = 'epoch'
      union all
      -- Added up among themselves first: of bigints, that is much faster.
      select t.what, sum(t.files), sum(t.records_total), sum(t.records_filtered), sum(t.records_persisted),
             sum(t.records_rejected), max(t.occurred_at)
        from filemark.tallies t
       where t.pipeline = p_pipeline
       group by t.what
    ) s
   group by s.what;
end
$$;

-- Per pipeline, or of the one given: how many files are in which state, how old the backlog is, what completed files
-- loaded, what fails. failure_ratio: failed and dead files among all that were finished or failed. Purged files
-- count as completed. The cost grows with what is pending or failed, not with what is completed.
create function public.pipeline_stats(p_pipeline text = null)
returns table (
  pipeline text, pending bigint, processing bigint, completed bigint, failed bigint, dead_letter bigint,
  skipped bigint, total bigint, oldest_pending_age_seconds double precision, records_total bigint,
  records_filtered bigint, records_persisted bigint, records_rejected bigint, failure_ratio double precision,
  last_completed_at timestamptz
)
language plpgsql
stable
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  return query
  select p.pipeline::text, q.pending, w.processing, t.completed, q.failed, k.dead_letter, k.skipped,
         q.pending + w.processing + t.completed + q.failed + k.dead_letter + k.skipped,
         case when q.first_pending <= v_now then extract(epoch from v_now - q.first_pending)::double precision end,
         t.records_total, t.records_filtered, t.records_persisted, t.records_rejected,
         (q.failed + k.dead_letter)::double precision / nullif(t.completed + q.failed + k.dead_letter, 0),
         l.completed_at
    from filemark.pipelines p
   cross join lateral (
     -- As few comparisons per file as will do: most of the time goes into these.
     select count(*) - count(*) filter (where f.status = 'failed') as pending,
            count(*) filter (where f.status = 'failed') as failed,
            min(f.available_at) filter (where f.status = 'pending') as first_pending
       from filemark.file_checkpoints f
      where f.pipeline = p.pipeline and f.status in ('pending', 'failed')
   ) q
   cross join lateral (
     select count(*) as processing
       from filemark.file_checkpoints f
      where f.pipeline = p.pipeline and f.lease_check_at is not null
   ) w
   cross join lateral (
     select count(*) filter (where f.status = 'dead_letter') as dead_letter,
            count(*) filter (where f.status = 'skipped') as skipped
       from filemark.file_checkpoints f
      where f.pipeline = p.pipeline and f.status in ('dead_letter', 'skipped')
   ) k
   cross join lateral (
     -- What was completed and is no more, because it was requeued, skipped or overwritten, counts against it.
     select coalesce(sum(s.files * s.sign), 0)::bigint as completed,
            least(coalesce(sum(s.records_total * s.sign), 0), 9223372036854775807)::bigint as records_total,
            least(coalesce(sum(s.records_filtered * s.sign), 0), 9223372036854775807)::bigint as records_filtered,
            least(coalesce(sum(s.records_persisted * s.sign), 0), 9223372036854775807)::bigint as records_persisted,
            least(coalesce(sum(s.records_rejected * s.sign), 0), 9223372036854775807)::bigint as records_rejected
       from (select n.*, case n.what when 'completed' then 1 when 'reopened' then -1 end as sign
               from filemark.totals(p.pipeline) n) s
   ) t
    left join lateral (
      select f.completed_at
        from filemark.file_checkpoints f
       where f.pipeline = p.pipeline and f.completed_at is not null
       order by f.completed_at desc
       limit 1
   ) l on true
   where p_pipeline is null or p.pipeline = p_pipeline
   order by p.pipeline;
end
$$;

comment on function public.pipeline_stats(text) is
$comment$How many files are in which status, how old the backlog is, what was loaded and what fails.

p_pipeline: the pipeline; null for all.
Returns: one row per pipeline.
pipeline: the pipeline.
pending: files in this status.
processing: files in this status.
completed: files in this status, purged ones included.
failed: files in this status: waiting for their retry.
dead_letter: files in this status.
skipped: files in this status.
total: files in all.
oldest_pending_age_seconds: how long the oldest pending file has been due, in seconds; null when none is due.
records_total: sum over the completed files.
records_filtered: sum over the completed files.
records_persisted: sum over the completed files.
records_rejected: sum over the completed files.
failure_ratio: failed and dead files among all that are completed, failed or dead; null when there are none.
last_completed_at: when a file was last completed; null when none is.$comment$;
