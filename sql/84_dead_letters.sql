-- filemark: dead letters
--
-- A dead letter is a file that gets no more automatic attempts. Each move there opens an entry: why, the error of
-- each attempt, the file's row as it was. The entry is the record of an investigation and not a queue: whatever
-- brings the file back, or says what became of it, resolves the entry. At most one is pending per file.

-- Moves a file, whose row the caller has locked and gives as it is, to the dead letter.
create function filemark.bury_file(
  p_file filemark.file_checkpoints,
  p_reason text,
  p_message text,
  p_error jsonb,
  p_claim_ended text,
  p_actor text
)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
begin
  update filemark.file_checkpoints f
     set status = 'dead_letter',
         claim_ended = p_claim_ended,
         lease_expires_at = null,
         lease_check_at = null,
         error_message = p_message,
         error = p_error
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;

  insert into filemark.dead_letter_entries (
    pipeline, file_url, reason, opened_at, attempts, error_message, errors, file)
  select p_file.pipeline, p_file.file_url, p_reason, v_now, p_file.attempts, p_message,
         filemark.errors_of_attempts(p_file.pipeline, p_file.file_url, p_file.attempts), to_jsonb(f)
    from filemark.file_checkpoints f
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url;

  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'dead_lettered', p_actor, p_reason,
    jsonb_build_object('attempts', p_file.attempts, 'error_message', p_message));
end
$$;

-- How the last attempts on a file ended, the oldest first, as the audit has them.
create function filemark.errors_of_attempts(p_pipeline text, p_file_url text, p_attempts int)
returns jsonb
language plpgsql
stable
set search_path = ''
as $$
begin
  return (
    select coalesce(jsonb_agg(ended.attempt order by ended.event_id), '[]')
      from (
        select e.event_id,
               jsonb_build_object('event', e.event, 'occurred_at', e.occurred_at) || (e.detail - 'items_processed')
               || jsonb_build_object('processed_by', coalesce(e.detail ->> 'processed_by', e.actor)) as attempt
          from filemark.file_events e
         where e.pipeline = p_pipeline and e.file_url = p_file_url and e.event in ('failed', 'lease_expired')
         order by e.event_id desc
         limit p_attempts
      ) ended);
end
$$;

-- Resolves the pending entry of a file, if there is one.
create function filemark.close_dead_letter(
  p_pipeline text,
  p_file_url text,
  p_resolution text,
  p_notes text,
  p_actor text
)
returns void
language plpgsql
set search_path = ''
as $$
begin
  update filemark.dead_letter_entries d
     set resolution = p_resolution,
         notes = p_notes,
         resolved_by = filemark.actor_of(p_actor),
         resolved_at = clock_timestamp()
   where d.pipeline = p_pipeline and d.file_url = p_file_url and d.resolution = 'pending';
end
$$;

-- Moves a file that nobody is processing, and that is not done, to the dead letter by hand: to look into it before
-- another worker gets it. A repeat changes nothing.
create function filemark.dead_letter_file(
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
  if v_file.status = 'dead_letter' then
    return;
  elsif v_file.status not in ('pending', 'failed') then
    raise exception 'file "%" is %', p_file_url, v_file.status
      using errcode = 'PT422',
            detail = 'Only a pending or failed file can be made a dead letter by hand.';
  end if;
  perform filemark.bury_file(
    v_file, 'manual', coalesce(nullif(p_reason, ''), v_file.error_message), v_file.error, v_file.claim_ended, p_actor);
end
$$;

comment on function filemark.dead_letter_file(text, text, text, text) is
$comment$Moves a pending or failed file to the dead letter by hand, to look into it before another worker gets it.

A repeat changes nothing.

p_file_url: the file.
p_reason: why, for the audit, at most 10000 bytes.
p_actor: who does it, at most 200 bytes; the database role when null.
p_pipeline: the pipeline.
Errors: PT400 bad argument; PT404 unknown file; PT422 the file is neither pending nor failed.$comment$;

-- Says what became of a dead letter. requeued and skipped do it; manually_resolved and permanently_failed only
-- resolve the entry: the file stays a dead letter that nobody needs to look at any more. A repeat changes nothing.
create function filemark.resolve_dead_letter(
  p_file_url text,
  p_resolution text,
  p_notes text = null,
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
  v_last text;
begin
  if p_resolution is null
     or p_resolution not in ('requeued', 'skipped', 'manually_resolved', 'permanently_failed') then
    perform filemark.refuse_argument(
      'p_resolution', p_resolution, 'requeued, skipped, manually_resolved or permanently_failed');
  end if;
  perform filemark.check_text('p_notes', coalesce(nullif(p_notes, ''), '-'), 10000);
  v_file := filemark.lock_known_file(p_file_url, null, p_actor, p_pipeline);
  select d.resolution into v_last
    from filemark.dead_letter_entries d
   where d.pipeline = p_pipeline and d.file_url = p_file_url
   order by d.entry_id desc
   limit 1;
  if v_last = p_resolution then
    return;
  elsif v_last is distinct from 'pending' then
    raise exception 'file "%" has no pending dead letter', p_file_url
      using errcode = 'PT422',
            detail = format('The file is %s%s.', v_file.status,
                            coalesce('; its last dead letter was resolved as ' || v_last, ''));
  end if;

  if p_resolution = 'requeued' then
    perform public.requeue_file(p_file_url, p_reason => p_notes, p_actor => p_actor, p_pipeline => p_pipeline);
  elsif p_resolution = 'skipped' then
    perform public.skip_file(p_file_url, p_notes, p_actor, p_pipeline);
  else
    perform filemark.close_dead_letter(p_pipeline, p_file_url, p_resolution, p_notes, p_actor);
  end if;
end
$$;

comment on function filemark.resolve_dead_letter(text, text, text, text, text) is
$comment$Says what became of a dead letter.

requeued and skipped do it. manually_resolved and permanently_failed only resolve the entry: the file stays a dead letter
that nobody needs to look at any more. A repeat changes nothing.

p_file_url: the file.
p_resolution: 'requeued', 'skipped', 'manually_resolved' or 'permanently_failed'.
p_notes: what was found out, at most 10000 bytes.
p_actor: who does it, at most 200 bytes; the database role when null.
p_pipeline: the pipeline.
Errors: PT400 bad argument; PT404 unknown file; PT422 the file has no pending dead letter.$comment$;

-- Requeues dead letters of a pipeline whose last error is like p_error_like (as in LIKE), the oldest first, from
-- their last checkpoint. With p_dry_run, the default, it only says which.
create function filemark.requeue_dead_letters(
  p_pipeline text,
  p_error_like text = '%',
  p_limit int = 100,
  p_dry_run boolean = true,
  p_reason text = null,
  p_actor text = null
)
returns table (pipeline text, file_url text, action text, error_message text)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_letter record;
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_pipeline(p_pipeline),
          filemark.check_number('p_limit', p_limit, 1, 10000),
          filemark.check_text('p_reason', coalesce(nullif(p_reason, ''), '-'), 10000),
          filemark.check_text('p_actor', coalesce(nullif(p_actor, ''), '-'), 200);
  if p_error_like is null then
    perform filemark.refuse_argument('p_error_like', null, 'a pattern as LIKE takes it');
  elsif p_dry_run is null then
    perform filemark.refuse_argument('p_dry_run', null, 'true or false');
  end if;

  for v_letter in
    select oldest.file_url, oldest.error_message
      from (select d.file_url, d.error_message
              from filemark.dead_letter_entries d
             where d.pipeline = p_pipeline and d.resolution = 'pending'
               and coalesce(d.error_message, '') like p_error_like
             order by d.entry_id
             limit p_limit) oldest
     -- The rows of files are locked in the order of their keys.
     order by oldest.file_url
  loop
    if not p_dry_run then
      select f.* into v_file
        from filemark.file_checkpoints f
       where f.pipeline = p_pipeline and f.file_url = v_letter.file_url and f.status = 'dead_letter'
         for no key update skip locked;
      -- Somebody else is dealing with it, or has.
      continue when not found;
      perform filemark.put_back(
        v_file, filemark.checkpoint_to_resume(v_file, 'checkpoint'), 'checkpoint', false, p_reason, p_actor);
    end if;
    pipeline := p_pipeline;
    file_url := v_letter.file_url;
    error_message := v_letter.error_message;
    action := case when p_dry_run then 'would_requeue' else 'requeued' end;
    return next;
  end loop;
end
$$;

comment on function filemark.requeue_dead_letters(text, text, int, boolean, text, text) is
$comment$Requeues the dead letters of a pipeline whose last error is like a pattern, the oldest first.

Each goes on from its last checkpoint, with a full budget. By default it only says which would.

p_pipeline: the pipeline.
p_error_like: a pattern for the error message, as LIKE takes it.
p_limit: how many files at most, 1 to 10000.
p_dry_run: false to do it.
p_reason: why, for the audit, at most 10000 bytes.
p_actor: who does it, at most 200 bytes; the database role when null.
Returns: a row for each file, pipeline and file_url as in filemark.file_checkpoints.
action: 'requeued'; in a dry run 'would_requeue'.
error_message: the last error.
Errors: PT400 bad argument; PT404 unknown pipeline.$comment$;
