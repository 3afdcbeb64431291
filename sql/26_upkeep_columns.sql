-- filemark: what each column of upkeep means

comment on column filemark.file_checkpoints.kept_since is
  'When a file completed whose checkpoint and results are still kept; null once they are cleared.';
comment on column filemark.file_checkpoints.results_bytes is
  'The size of accumulated_results as JSON text.';

comment on column filemark.dead_letter_entries.pipeline is 'The pipeline the file is in.';
comment on column filemark.dead_letter_entries.entry_id is 'Numbers the entries in the order they were opened.';
comment on column filemark.dead_letter_entries.file_url is 'The file.';
comment on column filemark.dead_letter_entries.reason is
  'Why it is a dead letter: max_attempts_exceeded, not_retryable, lease_expired or manual.';
comment on column filemark.dead_letter_entries.opened_at is 'When it became one.';
comment on column filemark.dead_letter_entries.attempts is 'Attempts it had at its last position.';
comment on column filemark.dead_letter_entries.error_message is 'The last error.';
comment on column filemark.dead_letter_entries.errors is
  'How each of these attempts ended, the oldest first: an array of objects with event, occurred_at, claim_token, '
  'attempts, processed_by and, if the worker gave one, error_message and error.';
comment on column filemark.dead_letter_entries.file is 'The file''s row as it was then.';
comment on column filemark.dead_letter_entries.resolution is
  'What became of it: pending, requeued, skipped, manually_resolved or permanently_failed.';
comment on column filemark.dead_letter_entries.notes is 'What was found out, or why it was resolved.';
comment on column filemark.dead_letter_entries.resolved_by is 'Who resolved it; null while it is pending.';
comment on column filemark.dead_letter_entries.resolved_at is 'When it was resolved; null while it is pending.';

comment on column filemark.purged_files.pipeline is 'The pipeline the file was in.';
comment on column filemark.purged_files.file_hash is 'The first 16 bytes of the SHA-256 of its file_url.';
comment on column filemark.purged_files.etag_hash is 'The same of its etag; null when it had none.';
comment on column filemark.purged_files.generation is 'Which content of that name it was.';
comment on column filemark.purged_files.claim_token is 'The number of its last claim: a later one is higher.';
comment on column filemark.purged_files.file_timestamp is 'When the file was made, as its source said.';
comment on column filemark.purged_files.file_type is 'The kind of file.';

comment on column filemark.long_histories.pipeline is 'The pipeline the file is in.';
comment on column filemark.long_histories.file_url is 'The file.';
comment on column filemark.long_histories.listed_at is 'When its history became too long: the first is cut first.';

comment on column filemark.tallies.pipeline is 'The pipeline.';
comment on column filemark.tallies.tally_id is 'Numbers the tallies.';
comment on column filemark.tallies.occurred_at is 'When it happened.';
comment on column filemark.tallies.what is
  'What happened: files were registered, overwritten, completed or purged; completed ones were reopened; claims were '
  'superseded, failed, released, lost, or taken from their holder by force.';
comment on column filemark.tallies.files is 'To how many files, or claims.';
comment on column filemark.tallies.records_total is 'Records in these files, when they were completed or reopened.';
comment on column filemark.tallies.records_filtered is 'Records of these that were left out on purpose.';
comment on column filemark.tallies.records_persisted is 'Records of these that were written.';
comment on column filemark.tallies.records_rejected is 'Records of these that were rejected.';

comment on column filemark.activity.pipeline is 'The pipeline.';
comment on column filemark.activity.hour is
  'The beginning of the hour, in UTC, for 90 days; in the rows of 1970 stands what there ever was.';
comment on column filemark.activity.what is 'What happened, as in filemark.tallies.';
comment on column filemark.activity.files is 'To how many files, or claims.';
comment on column filemark.activity.records_total is 'Sum of the tallies.';
comment on column filemark.activity.records_filtered is 'Sum of the tallies.';
comment on column filemark.activity.records_persisted is 'Sum of the tallies.';
comment on column filemark.activity.records_rejected is 'Sum of the tallies.';
comment on column filemark.activity.last_at is 'When it last happened in that hour.';

comment on column filemark.maintenance_runs.pipeline is 'The pipeline.';
comment on column filemark.maintenance_runs.run_id is 'Numbers the runs.';
comment on column filemark.maintenance_runs.started_at is 'When the run began with this pipeline.';
comment on column filemark.maintenance_runs.finished_at is 'When it was done with it.';
comment on column filemark.maintenance_runs.affected is 'Per task, how many files it changed, or tallies it added up.';

comment on column filemark.alert_log.pipeline is 'The pipeline; empty for the whole database.';
comment on column filemark.alert_log.alert_id is 'Numbers the alerts.';
comment on column filemark.alert_log.alert is 'Which alert it is.';
comment on column filemark.alert_log.file_url is 'The file it is about; null for the whole pipeline.';
comment on column filemark.alert_log.severity is 'warning or critical.';
comment on column filemark.alert_log.value is 'What was measured, as last seen.';
comment on column filemark.alert_log.threshold is 'What it is measured against.';
comment on column filemark.alert_log.message is 'What is wrong, as last seen.';
comment on column filemark.alert_log.hint is 'What to do.';
comment on column filemark.alert_log.opened_at is 'When it was first seen.';
comment on column filemark.alert_log.last_seen is 'When it was last seen.';
comment on column filemark.alert_log.resolved_at is 'When it was seen to be gone; null while it is open.';
