-- filemark: operating
--
-- What a person does to files: put them back into the queue, or take them out of it.

-- Locks the row of a file that an operator acts on, and returns it; a purged file comes back for that. Refuses bad
-- arguments and unknown files.
create function filemark.lock_known_file(p_file_url text, p_reason text, p_actor text, p_pipeline text)
returns filemark.file_checkpoints
language plpgsql
set search_path = ''
as $$
declare
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_key(p_pipeline, p_file_url),
          filemark.check_text('p_reason', coalesce(nullif(p_reason, ''), '-'), 10000),
          filemark.check_text('p_actor', coalesce(nullif(p_actor, ''), '-'), 200);
  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     for no key update;
  if not found then
    perform filemark.revive_file(p_pipeline, p_file_url, null, clock_timestamp());
    select f.* into v_file
      from filemark.file_checkpoints f
     where f.pipeline = p_pipeline and f.file_url = p_file_url
       for no key update;
  end if;
  if v_file.file_url is null then
    raise exception 'file "%" is unknown in pipeline "%"',
      filemark.on_one_line(p_file_url), filemark.on_one_line(p_pipeline)
      using errcode = 'PT404';
  end if;
  return v_file;
end
$$;

-- The checkpoint of the history that p_from names, for a file whose row the caller has locked.
create function filemark.checkpoint_to_resume(p_file filemark.file_checkpoints, p_from text)
returns filemark.checkpoint_history
language plpgsql
set search_path = ''
as $$
declare
  v_seq bigint;
  v_checkpoint filemark.checkpoint_history;
  v_kept record;
begin
  if p_from is null or p_from !~ '^(checkpoint|start|checkpoint:[1-9][0-9]{0,17})$' then
    perform filemark.refuse_argument('p_from', p_from, 'checkpoint, start or checkpoint:<number>');
  elsif p_from = 'start' or (p_from = 'checkpoint' and p_file.cursor is null) then
    v_checkpoint.checkpoint_seq := 0;
    v_checkpoint.items_processed := 0;
  elsif p_from = 'checkpoint' then
    v_checkpoint.checkpoint_seq := p_file.checkpoint_seq;
    v_checkpoint.items_processed := p_file.items_processed;
    v_checkpoint.cursor := p_file.cursor;
    v_checkpoint.saved_at := p_file.checkpointed_at;
  else
    v_seq := split_part(p_from, ':', 2)::bigint;
    select h.* into v_checkpoint
      from filemark.checkpoint_history h
     where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url and h.checkpoint_seq = v_seq;
    if not found then
      select min(h.checkpoint_seq) as first, max(h.checkpoint_seq) as last
        into v_kept
        from filemark.checkpoint_history h
       where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url;
      perform filemark.refuse_argument(
        'p_from', p_from,
        case when v_kept.first is null then 'checkpoint or start: the file has no history'
             else format('a checkpoint of the file''s history (%s to %s)', v_kept.first, v_kept.last) end);
    end if;
  end if;
  return v_checkpoint;
end
$$;

-- Makes a locked file pending from the given checkpoint, with a full budget and nothing of what came after.
create function filemark.rewind_file(
  p_file filemark.file_checkpoints,
  p_checkpoint filemark.checkpoint_history,
  p_now timestamptz,
  p_reason text,
  p_actor text
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_dropped record;
begin
  with dropped as (
    delete from filemark.checkpoint_history h
     where h.pipeline = p_file.pipeline and h.file_url = p_file.file_url
       and h.checkpoint_seq > p_checkpoint.checkpoint_seq
    returning h.records_persisted
  )
  select count(*) as checkpoints, coalesce(sum(d.records_persisted), 0) as records into v_dropped from dropped d;

  update filemark.file_checkpoints f
     set status = 'pending',
         claim_ended = case when f.status = 'processing' then 'lost' else f.claim_ended end,
         lease_expires_at = null,
         lease_check_at = null,
         available_at = p_now,
         attempts = 0,
         cursor = p_checkpoint.cursor,
         items_processed = p_checkpoint.items_processed,
         checkpoint_seq = p_checkpoint.checkpoint_seq,
         checkpointed_at = p_checkpoint.saved_at,
         accumulated_results = case when p_checkpoint.checkpoint_seq = f.checkpoint_seq
                                    then f.accumulated_results end,
         results_bytes = case when p_checkpoint.checkpoint_seq = f.checkpoint_seq then f.results_bytes else 0 end,
         history_length = f.history_length - v_dropped.checkpoints,
         records_total = 0,
         records_filtered = 0,
         records_persisted = case when p_checkpoint.checkpoint_seq = 0 then 0
                                  else greatest(f.records_persisted - v_dropped.records, 0) end,
         records_rejected = 0,
         processing_time_ms = null,
         error_message = null,
         error = null,
         completed_at = null,
         kept_since = null
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;
  perform filemark.tally_reopened(p_file),
          filemark.close_dead_letter(p_file.pipeline, p_file.file_url, 'requeued', p_reason, p_actor);
end
$$;

-- Puts a file, whose row the caller has locked, back into the queue at a checkpoint, on record; answers its number.
create function filemark.put_back(
  p_file filemark.file_checkpoints,
  p_checkpoint filemark.checkpoint_history,
  p_from text,
  p_force boolean,
  p_reason text,
  p_actor text
)
returns bigint
language plpgsql
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_seq bigint := p_checkpoint.checkpoint_seq;
begin
  if p_file.superseded_by is not null then
    perform filemark.start_generation(p_file.pipeline, p_file.file_url, p_file.superseded_by, v_now, p_actor);
    v_seq := 0;
  elsif p_file.status = 'pending' and p_file.attempts = 0 and p_file.available_at <= v_now
        and p_file.checkpoint_seq = v_seq then
    return v_seq;
  else
    perform filemark.rewind_file(p_file, p_checkpoint, v_now, p_reason, p_actor);
  end if;
  if p_file.status = 'processing' then
    perform filemark.tally(p_file.pipeline, 'taken');
  end if;

  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'requeued', p_actor, p_reason,
    jsonb_build_object('from', p_from, 'checkpoint_seq', v_seq, 'force', p_force is true,
                       'old_status', p_file.status, 'old_checkpoint_seq', p_file.checkpoint_seq,
                       'old_claim_token', p_file.claim_token, 'old_processed_by', p_file.processed_by,
                       'old_error_message', p_file.error_message));
  return v_seq;
end
$$;

-- Puts a file back into the queue with a full budget, from its last checkpoint, from the start, or from an
-- earlier checkpoint (whose results are not kept: they are cleared). A file being processed is taken from its
-- holder only with p_force; the holder's token is dead at once. A repeat changes nothing.
create function public.requeue_file(
  p_file_url text,
  p_from text = 'checkpoint',
  p_force boolean = false,
  p_reason text = null,
  p_actor text = null,
  p_pipeline text = 'default'
)
returns table (status text, checkpoint_seq bigint)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_file filemark.file_checkpoints;
  v_checkpoint filemark.checkpoint_history;
begin
  v_file := filemark.lock_known_file(p_file_url, p_reason, p_actor, p_pipeline);
  v_checkpoint := filemark.checkpoint_to_resume(v_file, p_from);
  if v_file.status = 'processing' and p_force is not true then
    raise exception 'file "%" is being processed by %',
      filemark.on_one_line(p_file_url), filemark.on_one_line(v_file.processed_by)
      using errcode = 'PT422',
            detail = format('Its lease ends at %s.', v_file.lease_expires_at),
            hint = 'To take it from its holder: p_force => true.';
  end if;

  return query select 'pending', filemark.put_back(v_file, v_checkpoint, p_from, p_force, p_reason, p_actor);
end
$$;

comment on function public.requeue_file(text, text, boolean, text, text, text) is
$comment$Puts a file back into the queue with a full budget.

Its results are kept only when it goes on from its last checkpoint. A repeat changes nothing.

p_file_url: the file.
p_from: 'checkpoint' for the last one, 'start', or 'checkpoint:<number>' for one of its history.
p_force: true to take the file from its holder, whose token is dead at once.
p_reason: why, at most 10000 bytes; kept in filemark.file_events.
p_actor: who, at most 200 bytes; null for the role of the call.
p_pipeline: the pipeline of the file.
Returns: one row.
status: 'pending'.
checkpoint_seq: the checkpoint it goes on from; 0 for the start.
Errors: PT400 bad argument; PT404 unknown file; PT422 being processed, and p_force is not true.$comment$;

-- Takes a file that nobody is processing out of the queue for good: no claim gets it until it is requeued or its
-- content changes. Its checkpoint stays, for a requeue. A repeat changes nothing.
create function public.skip_file(
  p_file_url text,
  p_reason text = null,
  p_actor text = null,
  p_pipeline text = 'default'
)
returns void
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_file filemark.file_checkpoints;
begin
  v_file := filemark.lock_known_file(p_file_url, p_reason, p_actor, p_pipeline);
  if v_file.status = 'skipped' then
    return;
  elsif v_file.status = 'processing' then
    raise exception 'file "%" is being processed by %',
      filemark.on_one_line(p_file_url), filemark.on_one_line(v_file.processed_by)
      using errcode = 'PT422',
            detail = format('Its lease ends at %s.', v_file.lease_expires_at),
            hint = 'To take it from its holder first: select requeue_file(…, p_force => true).';
  end if;

  update filemark.file_checkpoints f
     set status = 'skipped',
         completed_at = null,
         kept_since = null
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
  perform filemark.tally_reopened(v_file),
          filemark.close_dead_letter(p_pipeline, p_file_url, 'skipped', p_reason, p_actor);
  perform filemark.record_event(
    p_pipeline, p_file_url, 'skipped', p_actor, p_reason,
    jsonb_build_object('old_status', v_file.status, 'old_completed_at', v_file.completed_at,
                       'old_error_message', v_file.error_message, 'checkpoint_seq', v_file.checkpoint_seq));
end
$$;

comment on function public.skip_file(text, text, text, text) is
$comment$Takes a file that nobody is processing out of the queue, until it is requeued or its content changes.

It keeps its checkpoint. A repeat changes nothing.

p_file_url: the file.
p_reason: why, at most 10000 bytes; kept in filemark.file_events.
p_actor: who, at most 200 bytes; null for the role of the call.
p_pipeline: the pipeline of the file.
Errors: PT400 bad argument; PT404 unknown file; PT422 being processed.$comment$;
