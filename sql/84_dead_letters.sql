-- filemark: dead letters
--
-- A dead letter is a file that gets no more automatic attempts. Each move there opens an entry: why, the error of
-- each attempt, the file's row as it was. The entry is the record of an investigation and not a queue: whatever
-- brings the file back, or says what became of it, resolves the entry. At most one is pending per file.

-- Opens the entry of a file that is a dead letter now, as its row is.
create function filemark.open_dead_letter(p_file filemark.file_checkpoints, p_reason text, p_opened_at timestamptz)
returns void
language plpgsql
set search_path = ''
as $$
begin
  -- Large results stay in the file's row alone: an entry that is too large to be made would keep the file, and whoever
  -- claims next, from going on.
  if octet_length(p_file.accumulated_results::text) > 1048576 then
    p_file.accumulated_results := null;
  end if;
  insert into filemark.dead_letter_entries (
    pipeline, file_url, reason, opened_at, attempts, error_message, errors, file)
  values (p_file.pipeline, p_file.file_url, p_reason, p_opened_at, p_file.attempts, p_file.error_message,
          filemark.errors_of_attempts(p_file.pipeline, p_file.file_url, p_file.attempts), to_jsonb(p_file));
end
$$;

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
  v_buried filemark.file_checkpoints;
begin
  update filemark.file_checkpoints f
     set status = 'dead_letter',
         claim_ended = p_claim_ended,
         lease_expires_at = null,
         lease_check_at = null,
         error_message = p_message,
         error = p_error
   where f.pipeline = p_file.pipeline and f.file_url = p_file.file_url
  returning f.* into v_buried;

  perform filemark.open_dead_letter(v_buried, p_reason, clock_timestamp());

  perform filemark.record_event(
    p_file.pipeline, p_file.file_url, 'dead_lettered', p_actor, p_reason,
    jsonb_build_object('attempts', p_file.attempts, 'error_message', p_message));
end
$$;

-- How the last attempts on a file ended, at most 100, the oldest first, as the audit has them.
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
         limit least(p_attempts, 100)
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
    raise exception 'file "%" is %', filemark.on_one_line(p_file_url), v_file.status
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
    raise exception 'file "%" has no pending dead letter', filemark.on_one_line(p_file_url)
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

requeued and skipped do it. manually_resolved and permanently_failed only resolve the entry: the file stays a dead
letter that nobody needs to look at any more. A repeat changes nothing.

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
  if p_error_like is null or p_error_like ~ '^([^\\]|\\.)*\\$' then
    perform filemark.refuse_argument(
      'p_error_like', p_error_like, 'a pattern as LIKE takes it, without a lone backslash at its end');
  elsif p_dry_run is null then
    perform filemark.refuse_argument('p_dry_run', null, 'true or false');
  end if;

  for v_letter in
    select oldest.file_url, oldest.entry_id, oldest.error_message
      from (select d.file_url, d.entry_id, d.error_message
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
      continue when not found or not exists (
        select from filemark.dead_letter_entries d
         where d.pipeline = p_pipeline and d.entry_id = v_letter.entry_id and d.resolution = 'pending');
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

-- What somebody has to look at, and what to run when it is mended.
create view filemark.dead_letters with (security_invoker = true) as
select d.pipeline,
       d.file_url,
       f.file_type,
       f.priority,
       d.reason,
       d.opened_at,
       d.attempts,
       d.error_message as last_error,
       d.errors,
       f.items_processed,
       f.items_total,
       f.processed_by,
       format('select * from public.requeue_file(%L, p_pipeline => %L);', d.file_url, d.pipeline) as requeue
  from filemark.dead_letter_entries d
  join filemark.file_checkpoints f on f.pipeline = d.pipeline and f.file_url = d.file_url
 where d.resolution = 'pending'
 order by f.priority desc,
          array_position(array['lease_expired', 'max_attempts_exceeded', 'not_retryable', 'manual'], d.reason),
          d.opened_at,
          d.entry_id;

comment on view filemark.dead_letters is
  'The dead letters that nobody has dealt with, the worst first: by the priority of the file, then those that cost '
  'workers (lease_expired) before those that failed, then those that wait longest.';
comment on column filemark.dead_letters.pipeline is 'The pipeline the file is in.';
comment on column filemark.dead_letters.file_url is 'The file.';
comment on column filemark.dead_letters.file_type is 'The kind of file.';
comment on column filemark.dead_letters.priority is 'The priority it was registered with.';
comment on column filemark.dead_letters.reason is
  'Why it is a dead letter: lease_expired, max_attempts_exceeded, not_retryable or manual.';
comment on column filemark.dead_letters.opened_at is 'When it became one.';
comment on column filemark.dead_letters.attempts is 'Attempts it had at its last position.';
comment on column filemark.dead_letters.last_error is 'The last error.';
comment on column filemark.dead_letters.errors is
  'How each of these attempts ended, the oldest first, as in filemark.dead_letter_entries.';
comment on column filemark.dead_letters.items_processed is 'Items done in the whole file so far.';
comment on column filemark.dead_letters.items_total is 'How many items the file has; null when unknown.';
comment on column filemark.dead_letters.processed_by is 'Who had the last claim.';
comment on column filemark.dead_letters.requeue is 'The statement that puts the file back into the queue.';
