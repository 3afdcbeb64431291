-- filemark: what each column means
--
-- Read by psql (\d+), by Supabase Studio and by docs/reference.md. A setting says what it may be after "Allowed:"; what
-- is "Reserved" is kept and checked, but nothing reads it yet. Both are tested.

comment on column filemark.pipelines.pipeline is 'The pipeline''s name, 1 to 100 bytes.';
comment on column filemark.pipelines.max_attempts is
  'Claims a file gets at one position, the first included, before it is a dead letter. Allowed: 1 to 1000.';
comment on column filemark.pipelines.lease_seconds is
  'How long a claim, a checkpoint or extend_claim holds a file. Allowed: 1 to 604800.';
comment on column filemark.pipelines.backoff_base_seconds is
  'How long a failed file waits for its second attempt; doubled for each further one. Allowed: 0 to 604800.';
comment on column filemark.pipelines.backoff_max_seconds is
  'The longest wait between two attempts. Allowed: 0 to 31536000.';
comment on column filemark.pipelines.backoff_jitter is
  'The part of the wait that is random, up or down. Allowed: 0 to 1.';
comment on column filemark.pipelines.max_concurrency is
  'Files in progress at a time; null for no limit. Allowed: 1 to 100000 or null.';
comment on column filemark.pipelines.paused is
  'Whether claims are refused; files in progress go on. Allowed: true or false.';
comment on column filemark.pipelines.on_overwrite is
  'What another etag of a known file means: reprocess it as a new generation, or ignore it. Allowed: '
  '''reprocess'' or ''ignore''.';
comment on column filemark.pipelines.history_limit is
  'Checkpoints that maintenance keeps of a file''s history. Allowed: 1 to 1000000.';
comment on column filemark.pipelines.keep_checkpoints_days is
  'Days after which maintenance clears the checkpoint of a completed file. Allowed: 0 to 36500.';
comment on column filemark.pipelines.keep_files_days is
  'Days after which maintenance purges a completed file; null for never. Allowed: 0 to 36500 or null.';
comment on column filemark.pipelines.results_limit_bytes is
  'The largest accumulated_results that is accepted. Allowed: 1 to 268435456.';
comment on column filemark.pipelines.cursor_limit_bytes is
  'The largest cursor that is accepted. Allowed: 1 to 268435456.';
comment on column filemark.pipelines.stale_after_seconds is
  'Alert stale_checkpoint when a file in progress saves nothing for this long. Allowed: 1 to 31536000.';
comment on column filemark.pipelines.max_history is
  'Alert large_history when a file''s history is longer. Allowed: 1 to 1000000000.';
comment on column filemark.pipelines.max_results_bytes is
  'Alert large_results when the accumulated_results of a file in progress are larger. Allowed: 1 to 268435456.';
comment on column filemark.pipelines.min_checkpoints_per_minute is
  'Alert infrequent_checkpoints when a file in progress saves less often; 0 for never. Allowed: 0 to 1000000.';
comment on column filemark.pipelines.max_backlog_age_seconds is
  'Alert backlog_age when a file is due for longer; null for never. Allowed: 1 to 31536000 or null.';
comment on column filemark.pipelines.max_failure_ratio is
  'Alert failure_ratio when more of the attempts fail; 1 for never. Allowed: 0 to 1.';
comment on column filemark.pipelines.expect_file_every_seconds is
  'Alert missing_files when no new file comes for this long; null for never. Allowed: 1 to 31536000 or null.';
comment on column filemark.pipelines.max_rejected is
  'Reserved: alert when more records of a file are rejected; null for never. Allowed: 0 to 1000000000 or null.';
comment on column filemark.pipelines.max_rejected_ratio is
  'Reserved: alert when more of a file''s records are rejected; null for never. Allowed: 0 to 1 or null.';
comment on column filemark.pipelines.created_at is 'When the pipeline was first used.';

comment on column filemark.file_checkpoints.pipeline is 'The pipeline the file is in.';
comment on column filemark.file_checkpoints.file_url is
  'The file''s name in its pipeline: a URL or any stable id, 1 to 2048 bytes.';
comment on column filemark.file_checkpoints.file_type is
  'A name for the kind of file, 1 to 100 bytes; workers can claim one kind only.';
comment on column filemark.file_checkpoints.file_timestamp is 'When the file was made, as its source says.';
comment on column filemark.file_checkpoints.size_bytes is 'The file''s size; null when unknown.';
comment on column filemark.file_checkpoints.etag is
  'The version of the content, 1 to 1024 bytes; null when unknown. Another etag is other content.';
comment on column filemark.file_checkpoints.generation is 'Which content of that name it is: 1, 2, 3 and so on.';
comment on column filemark.file_checkpoints.superseded_by is
  'The newer content seen while the file is being processed, as register_files was given it.';
comment on column filemark.file_checkpoints.metadata is
  'What else is known of the file, as a JSON object; each claim hands it on.';
comment on column filemark.file_checkpoints.status is
  '''pending'', ''processing'', ''completed'', ''failed'' (waiting for its retry), ''dead_letter'' or ''skipped''.';
comment on column filemark.file_checkpoints.priority is
  'Files with a higher number are claimed first. Use few different ones.';
comment on column filemark.file_checkpoints.available_at is
  'The file is not claimed before this time: as registered, or when its retry is due.';
comment on column filemark.file_checkpoints.claim_token is
  'The number of the file''s last claim; 0 before the first. Every write presents it.';
comment on column filemark.file_checkpoints.claim_ended is
  'How the claim of claim_token ended: ''completed'', ''superseded'', ''failed'', ''released'' or ''lost''; null while it '
  'stands. So a repeat of the call that ended it is answered as before.';
comment on column filemark.file_checkpoints.request_id is 'The p_request_id of the last claim.';
comment on column filemark.file_checkpoints.processed_by is 'The p_worker_id of the last claim.';
comment on column filemark.file_checkpoints.started_at is 'When the last claim was made.';
comment on column filemark.file_checkpoints.lease_expires_at is
  'Until when the claim cannot be taken over; null unless the file is processing.';
comment on column filemark.file_checkpoints.lease_check_at is
  'When to look whether the lease is over: the first lease''s end, not moved by checkpoints.';
comment on column filemark.file_checkpoints.attempts is
  'Claims counted against max_attempts at the file''s position, the running one included.';
comment on column filemark.file_checkpoints.cursor is
  'The next position to process, as any JSON; null before the first checkpoint.';
comment on column filemark.file_checkpoints.items_processed is
  'Items done in the whole file so far: a total, never the size of a batch.';
comment on column filemark.file_checkpoints.items_total is 'How many items the file has; null when unknown.';
comment on column filemark.file_checkpoints.accumulated_results is 'What was worked out so far, as any JSON.';
comment on column filemark.file_checkpoints.checkpoint_seq is
  'The number of the last checkpoint; 0 before the first.';
comment on column filemark.file_checkpoints.checkpointed_at is 'When the last checkpoint was saved.';
comment on column filemark.file_checkpoints.history_length is
  'How many checkpoints filemark.checkpoint_history has of the file.';
comment on column filemark.file_checkpoints.records_total is 'Records in the file, as complete_file was told.';
comment on column filemark.file_checkpoints.records_filtered is
  'Records left out on purpose, as complete_file was told.';
comment on column filemark.file_checkpoints.records_persisted is
  'Records written: what persist_records counted or complete_file was told, whichever is more.';
comment on column filemark.file_checkpoints.records_rejected is 'Reserved: records that were refused.';
comment on column filemark.file_checkpoints.processing_time_ms is
  'How long the completed claim took: as complete_file was told, or measured from the claim.';
comment on column filemark.file_checkpoints.error_message is
  'What went wrong at the last failed attempt; null when the file is completed or requeued.';
comment on column filemark.file_checkpoints.error is 'The error in detail, as fail_file was given it.';
comment on column filemark.file_checkpoints.completed_at is 'When the file was completed; null unless it is.';
comment on column filemark.file_checkpoints.created_at is 'When the file became known.';

comment on column filemark.claim_requests.pipeline is 'The pipeline that was claimed from.';
comment on column filemark.claim_requests.request_id is 'The p_request_id of the call.';
comment on column filemark.claim_requests.file_urls is 'The files it was given.';
comment on column filemark.claim_requests.claimed_at is 'When it was answered.';

comment on column filemark.checkpoint_history.pipeline is 'The pipeline the file is in.';
comment on column filemark.checkpoint_history.file_url is 'The file.';
comment on column filemark.checkpoint_history.checkpoint_seq is
  'The checkpoint''s number: 1, 2, 3 and so on in each generation.';
comment on column filemark.checkpoint_history.cursor is 'The next position to process from there.';
comment on column filemark.checkpoint_history.items_processed is 'Items done in the whole file by then.';
comment on column filemark.checkpoint_history.records_persisted is
  'Records that were written together with this checkpoint.';
comment on column filemark.checkpoint_history.claim_token is 'The claim that saved it.';
comment on column filemark.checkpoint_history.saved_at is 'When it was saved.';

comment on column filemark.file_events.pipeline is 'The pipeline it happened in.';
comment on column filemark.file_events.event_id is 'Grows with each event.';
comment on column filemark.file_events.file_url is 'The file; null when it is about the pipeline.';
comment on column filemark.file_events.event is
  '''failed'', ''lease_expired'', ''dead_lettered'', ''released'', ''requeued'', ''skipped'', ''overwritten'' or '
  '''settings_changed''.';
comment on column filemark.file_events.occurred_at is 'When it happened.';
comment on column filemark.file_events.actor is
  'Who did it: the p_actor or the worker that was named, else the role of the call.';
comment on column filemark.file_events.reason is
  'Why: the p_reason that was given, or a word of ours, such as ''max_attempts_exceeded''.';
comment on column filemark.file_events.detail is 'What else is to be said of such an event, as a JSON object.';

-- A type says it of its columns in its own comment: tools that compare schemas pass over comments on the columns of types.
comment on type filemark.claim is
$comment$A claim as workers see it, or why there is none.

Columns: as in filemark.file_checkpoints, and these.
outcome: 'claimed'; or why not: 'held' (by a live claim), 'completed', 'waiting' (not due yet), 'dead_letter', 'skipped',
  'paused' or 'busy' (max_concurrency is reached); or 'claim_lost', of a completion.
max_attempts: the pipeline's max_attempts: the claim is the last one when attempts is as high.
lease_seconds: the pipeline's lease_seconds: how long each checkpoint renews the lease.$comment$;

comment on type filemark.completion is
$comment$What a worker says of a file that it finished.

file_url: the file.
claim_token: the token that the claim was given.
records_total: records in the whole file; 0 when left out.
records_filtered: records that were left out on purpose; 0 when left out.
records_persisted: records that were written, 0 when left out; what persist_records counted is never lowered.
processing_time_ms: how long it took, in milliseconds; measured from the claim when left out.
accumulated_results: the results, as any JSON, at most results_limit_bytes; what is there is kept when left out.
etag: the etag that was actually read, 1 to 1024 bytes.$comment$;
