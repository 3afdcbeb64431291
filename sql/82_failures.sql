-- filemark: failures and releases
--
-- An attempt is charged at the claim. A failure keeps the charge: the file waits for its retry, or is a dead
-- letter once the budget is spent. A release gives it back: nothing was wrong with the file.

-- When a failed attempt is tried again: base x 2^(attempts - 1) seconds, capped, give or take the jitter.
create function filemark.backoff(p_settings filemark.pipelines, p_attempts int)
returns interval
language plpgsql
volatile
set search_path = ''
as $$
begin
  return make_interval(secs => least(
    p_settings.backoff_max_seconds,
    least(p_settings.backoff_base_seconds * 2.0 ^ least(p_attempts - 1, 30), p_settings.backoff_max_seconds)
      * (1 + p_settings.backoff_jitter * (2 * random() - 1))));
end
$$;

-- Gives the file back with an error. With budget left and p_retryable it is tried again after the backoff, or
-- after p_retry_after_seconds; otherwise it is a dead letter. If newer content was noted, that is next.
-- Answers the file's new state; a repeat by the same token answers the same.
create function public.fail_file(
  p_file_url text,
  p_claim_token bigint,
  p_error_message text,
  p_retryable boolean = true,
  p_error jsonb = null,
  p_retry_after_seconds int = null,
  p_pipeline text = 'default'
)
returns table (status text, attempts int, available_at timestamptz)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_now timestamptz := clock_timestamp();
  v_settings filemark.pipelines;
  v_file filemark.file_checkpoints;
begin
  perform filemark.check_text('p_error_message', p_error_message, 65536),
          filemark.check_number('p_retry_after_seconds', coalesce(p_retry_after_seconds, 0), 0, 31536000),
          filemark.check_size('p_error', p_error, 1048576);
  if p_retryable is null then
    perform filemark.refuse_argument('p_retryable', null, 'true or false');
  end if;

  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url and f.claim_token = p_claim_token
     for no key update;
  if not found or (v_file.status <> 'processing' and v_file.claim_ended is distinct from 'failed') then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;

  if v_file.status = 'processing' then
    select p.* into v_settings from filemark.pipelines p where p.pipeline = p_pipeline;
    perform filemark.record_event(
      p_pipeline, p_file_url, 'failed', v_file.processed_by, null,
      jsonb_build_object('claim_token', p_claim_token, 'attempts', v_file.attempts, 'error_message', p_error_message,
                         'error', p_error, 'items_processed', v_file.items_processed));
    perform filemark.tally(p_pipeline, 'failed');
    if v_file.superseded_by is not null then
      perform filemark.start_generation(
        p_pipeline, p_file_url, v_file.superseded_by, v_now, v_file.processed_by, 'failed');
    elsif not p_retryable or v_file.attempts >= v_settings.max_attempts then
      perform filemark.bury_file(
        v_file, case when p_retryable then 'max_attempts_exceeded' else 'not_retryable' end,
        p_error_message, p_error, 'failed', v_file.processed_by);
    else
      update filemark.file_checkpoints f
         set status = 'failed',
             claim_ended = 'failed',
             lease_expires_at = null,
             lease_check_at = null,
             available_at = v_now + coalesce(make_interval(secs => p_retry_after_seconds),
                                             filemark.backoff(v_settings, v_file.attempts)),
             error_message = p_error_message,
             error = p_error
       where f.pipeline = p_pipeline and f.file_url = p_file_url;
    end if;
  end if;

  return query
  select f.status, f.attempts, case when f.status in ('pending', 'failed') then f.available_at end
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
end
$$;

comment on function public.fail_file(text, bigint, text, boolean, jsonb, int, text) is
$comment$Gives a claimed file back with an error, to be tried again or as a dead letter.

It is a dead letter when its budget is spent or the error is not retryable. When newer content was seen meanwhile, that
is next instead. A repeat is answered as the first call was.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_error_message: what went wrong, 1 to 65536 bytes.
p_retryable: false when more attempts will not help.
p_error: the error in detail, as any JSON, at most 1 MiB.
p_retry_after_seconds: when to try again, 0 to 31536000; null for the backoff.
p_pipeline: the pipeline of the file.
Returns: one row, attempts as in filemark.file_checkpoints.
status: 'failed', 'dead_letter', or 'pending' with newer content.
available_at: when the file is due again; null for a dead letter.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost; PT413 p_error too large.$comment$;

-- Gives the file back at once, with its checkpoint, its place in the queue and the attempt it was charged:
-- for a shutdown or a time budget that ends. A repeat by the same token changes nothing.
create function public.release_file(p_file_url text, p_claim_token bigint, p_pipeline text = 'default')
returns void
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_file filemark.file_checkpoints;
begin
  select f.* into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url and f.claim_token = p_claim_token
     for no key update;
  if v_file.claim_ended = 'released' then
    return;
  elsif v_file.status is distinct from 'processing' then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  end if;

  if v_file.superseded_by is not null then
    perform filemark.start_generation(
      p_pipeline, p_file_url, v_file.superseded_by, clock_timestamp(), v_file.processed_by, 'released');
  else
    update filemark.file_checkpoints f
       set status = 'pending',
           claim_ended = 'released',
           lease_expires_at = null,
           lease_check_at = null,
           attempts = f.attempts - 1
     where f.pipeline = p_pipeline and f.file_url = p_file_url;
  end if;
  perform filemark.tally(p_pipeline, 'released');
  perform filemark.record_event(
    p_pipeline, p_file_url, 'released', v_file.processed_by, null,
    jsonb_build_object('claim_token', p_claim_token, 'items_processed', v_file.items_processed));
end
$$;

comment on function public.release_file(text, bigint, text) is
$comment$Gives a claimed file back at once, for a shutdown or a time budget that ends.

It keeps its checkpoint and its place in the queue, and the attempt is not counted. A repeat changes nothing.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_pipeline: the pipeline of the file.
Errors: PT400 bad argument; PT404 unknown file; PT409 claim lost.$comment$;
