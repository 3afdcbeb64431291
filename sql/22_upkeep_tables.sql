-- filemark: the tables of upkeep
--
-- What is kept beside the files for those who watch over them: investigations of dead letters, what is left of
-- purged files, numbers, alerts, and the record of maintenance. Nobody works on a file through these tables.

create table filemark.dead_letter_entries (
  pipeline      text collate "C" not null,
  entry_id      bigint generated always as identity,
  file_url      text collate "C" not null,
  reason        text not null,
  opened_at     timestamptz not null,
  attempts      int not null,
  error_message text,
  errors        jsonb not null,
  file          jsonb not null,
  resolution    text not null default 'pending',
  notes         text,
  resolved_by   text,
  resolved_at   timestamptz,
  primary key (pipeline, entry_id),
  constraint reason_is_known check (
    reason in ('max_attempts_exceeded', 'not_retryable', 'lease_expired', 'manual')),
  constraint resolution_is_known check (
    resolution in ('pending', 'requeued', 'skipped', 'manually_resolved', 'permanently_failed')),
  constraint a_resolved_entry_says_when_and_by_whom check (
    (resolution = 'pending') = (resolved_at is null) and (resolution = 'pending') = (resolved_by is null))
);

comment on table filemark.dead_letter_entries is
  'One row each time a file became a dead letter: the record of its investigation. At most one is pending per file.';

create unique index dead_letter_entries_pending on filemark.dead_letter_entries
  (pipeline, file_url)
  where resolution = 'pending';

create index dead_letter_entries_by_file on filemark.dead_letter_entries (pipeline, file_url, entry_id);

-- A purged file is known by half of the SHA-256 of its url for ever, so that it is never loaded twice. Its type,
-- time, generation and token are what it takes to bring it back.
create table filemark.purged_files (
  pipeline       text collate "C" not null,
  file_hash      bytea not null,
  etag_hash      bytea,
  generation     bigint not null,
  claim_token    bigint not null,
  file_timestamp timestamptz not null,
  file_type      text not null,
  primary key (pipeline, file_hash)
);

comment on table filemark.purged_files is
  'What is left of files that were completed and purged: enough to answer completed, and to requeue them.';

create table filemark.long_histories (
  pipeline  text collate "C" not null,
  file_url  text collate "C" not null,
  listed_at timestamptz not null default clock_timestamp(),
  primary key (pipeline, file_url)
);

comment on table filemark.long_histories is
  'Files with more checkpoints in their history than the pipeline keeps: the work list of truncate_checkpoint_history.';

-- First come, first served: in the order of the keys, files that are listed again and again would shut out the rest.
create index long_histories_by_age on filemark.long_histories (pipeline, listed_at, file_url);

-- Counting ten million rows takes seconds, and a counter that every completion updates would have them all wait
-- for each other. So what happened is appended here with its amounts, and maintenance adds it up by the hour.
create table filemark.tallies (
  pipeline          text collate "C" not null,
  tally_id          bigint generated always as identity,
  occurred_at       timestamptz not null,
  what              text not null,
  files             bigint not null,
  records_total     bigint not null default 0,
  records_filtered  bigint not null default 0,
  records_persisted bigint not null default 0,
  records_rejected  bigint not null default 0,
  primary key (pipeline, tally_id),
  constraint tally_is_known check (what in (
    'registered', 'overwritten', 'completed', 'superseded', 'failed', 'released', 'lost', 'taken', 'reopened',
    'purged'))
);

comment on table filemark.tallies is
  'What happened to files since the last maintenance, as numbers. filemark.pipeline_activity shows them.';

-- Numeric, because a single tally may be as large as a bigint gets.
create table filemark.activity (
  pipeline          text collate "C" not null,
  hour              timestamptz not null,
  what              text not null,
  files             bigint not null,
  records_total     numeric not null,
  records_filtered  numeric not null,
  records_persisted numeric not null,
  records_rejected  numeric not null,
  last_at           timestamptz not null,
  primary key (pipeline, hour, what)
);

comment on table filemark.activity is
  'The tallies, added up by the hour, and under 1970 as a whole. filemark.pipeline_activity shows the hours.';

create table filemark.maintenance_runs (
  pipeline    text collate "C" not null,
  run_id      bigint generated always as identity,
  started_at  timestamptz not null,
  finished_at timestamptz not null,
  affected    jsonb not null,
  primary key (pipeline, run_id)
);

comment on table filemark.maintenance_runs is
  'The runs of run_maintenance of the last day: per task, how many files or rows it affected.';

create table filemark.alert_log (
  pipeline    text collate "C" not null,
  alert_id    bigint generated always as identity,
  alert       text not null,
  file_url    text collate "C",
  severity    text not null,
  value       double precision,
  threshold   double precision,
  message     text not null,
  hint        text not null,
  opened_at   timestamptz not null,
  last_seen   timestamptz not null,
  resolved_at timestamptz,
  primary key (pipeline, alert_id)
);

comment on table filemark.alert_log is
  'Alerts as filemark.check_alerts saw them open and close. An empty pipeline stands for the whole database.';

create unique index alert_log_open on filemark.alert_log
  (pipeline, alert, file_url) nulls not distinct
  where resolved_at is null;

do $security$
declare
  v_table text;
begin
  foreach v_table in array array[
    'dead_letter_entries', 'purged_files', 'long_histories', 'tallies', 'activity', 'maintenance_runs', 'alert_log'
  ] loop
    execute format('alter table filemark.%I enable row level security', v_table);
    execute format(
      'create policy monitor_reads on filemark.%I for select to filemark_monitor using (true)', v_table);
  end loop;
end
$security$;
