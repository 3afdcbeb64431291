-- filemark: the tables
--
-- Every table and every unique key begins with pipeline. Nothing crosses pipelines: no lock, no
-- sequence, no foreign key on the hot path.
--
-- No index, index predicate or generated column may mention a column that a checkpoint or a heartbeat
-- changes. One index on the lease would end HOT updates, and a single busy row would grow without end.
-- Expired leases are found by lease_check_at instead: set at the claim to the first lease's end, and
-- moved on only when it fires and finds the lease renewed.

create table filemark.pipelines (
  pipeline                   text collate "C" primary key,
  max_attempts               int not null default 3,
  lease_seconds              int not null default 300,
  backoff_base_seconds       int not null default 30,
  backoff_max_seconds        int not null default 3600,
  backoff_jitter             double precision not null default 0.2,
  max_concurrency            int,
  paused                     boolean not null default false,
  on_overwrite               text not null default 'reprocess',
  history_limit              int not null default 10,
  keep_checkpoints_days      int not null default 7,
  keep_files_days            int,
  results_limit_bytes        bigint not null default 16777216,
  cursor_limit_bytes         bigint not null default 1048576,
  stale_after_seconds        int not null default 600,
  max_history                bigint not null default 100,
  max_results_bytes          bigint not null default 1048576,
  min_checkpoints_per_minute double precision not null default 1,
  max_backlog_age_seconds    int,
  max_failure_ratio          double precision not null default 0.5,
  expect_file_every_seconds  int,
  max_rejected               bigint,
  max_rejected_ratio         double precision,
  created_at                 timestamptz not null default clock_timestamp(),
  constraint pipeline_has_a_name check (pipeline <> '' and octet_length(pipeline) <= 100),
  constraint overwrites_are_reprocessed_or_ignored check (on_overwrite in ('reprocess', 'ignore')),
  constraint settings_are_in_range check (
    max_attempts > 0 and lease_seconds > 0 and backoff_base_seconds >= 0 and backoff_max_seconds >= 0
    and backoff_jitter between 0 and 1 and max_concurrency > 0 and history_limit > 0
    and keep_checkpoints_days >= 0 and keep_files_days >= 0
    and results_limit_bytes > 0 and cursor_limit_bytes > 0
  )
);

comment on table filemark.pipelines is
  'One row per pipeline, made on first use: its settings. Change them with filemark.configure_pipeline.';

create table filemark.file_checkpoints (
  pipeline            text collate "C" not null,
  file_url            text collate "C" not null,
  -- identity
  file_type           text not null,
  file_timestamp      timestamptz not null,
  size_bytes          bigint,
  etag                text,
  generation          bigint not null default 1,
  superseded_by       jsonb,
  metadata            jsonb not null default '{}',
  -- scheduling
  status              text not null default 'pending',
  priority            int not null default 0,
  available_at        timestamptz not null,
  -- claim
  claim_token         bigint not null default 0,
  claim_ended         text,
  request_id          uuid,
  processed_by        text,
  started_at          timestamptz,
  lease_expires_at    timestamptz,
  lease_check_at      timestamptz,
  attempts            int not null default 0,
  -- checkpoint
  cursor              jsonb,
  items_processed     bigint not null default 0,
  items_total         bigint,
  accumulated_results jsonb,
  checkpoint_seq      bigint not null default 0,
  checkpointed_at     timestamptz,
  history_length      bigint not null default 0,
  -- outcome
  records_total       bigint not null default 0,
  records_filtered    bigint not null default 0,
  records_persisted   bigint not null default 0,
  records_rejected    bigint not null default 0,
  processing_time_ms  bigint,
  error_message       text,
  error               jsonb,
  completed_at        timestamptz,
  created_at          timestamptz not null default clock_timestamp(),
  -- Columns that came after the first release stand last, as they do in an upgraded table.
  kept_since          timestamptz,
  results_bytes       bigint not null default 0,

  primary key (pipeline, file_url),
  constraint file_has_a_name check (file_url <> '' and octet_length(file_url) <= 2048),
  constraint status_is_known check (
    status in ('pending', 'processing', 'completed', 'failed', 'dead_letter', 'skipped')),
  constraint claim_end_is_known check (
    claim_ended in ('completed', 'superseded', 'failed', 'released', 'lost')),
  constraint a_claimed_file_has_a_holder check (
    status <> 'processing'
    or (claim_token > 0 and processed_by is not null and started_at is not null and claim_ended is null)),
  constraint only_a_claimed_file_has_a_lease check (
    (status = 'processing') = (lease_expires_at is not null)
    and (status = 'processing') = (lease_check_at is not null)),
  constraint only_a_claimed_file_can_be_superseded check (superseded_by is null or status = 'processing'),
  constraint completed_at_says_completed check ((status = 'completed') = (completed_at is not null)),
  constraint a_failed_file_has_an_error check (status <> 'failed' or error_message is not null),
  constraint a_checkpoint_has_a_time check ((checkpoint_seq > 0) = (checkpointed_at is not null)),
  constraint a_checkpoint_has_a_cursor check (
    case when checkpoint_seq = 0 then cursor is null else cursor is not null or status in ('completed', 'skipped') end),
  constraint only_a_completed_file_is_kept check (kept_since is null or status = 'completed'),
  constraint counters_are_not_negative check (
    generation > 0 and claim_token >= 0 and attempts >= 0 and checkpoint_seq >= 0 and history_length >= 0
    and items_processed >= 0 and items_total >= 0 and size_bytes >= 0 and processing_time_ms >= 0
    and records_total >= 0 and records_filtered >= 0 and records_persisted >= 0 and records_rejected >= 0)
) with (
  -- room in each page for the next version of a row that is being worked on, so that its updates are HOT
  fillfactor = 70,
  -- claims and completions leave dead rows at the head of the queue: have them swept early
  autovacuum_vacuum_scale_factor = 0.01,
  autovacuum_vacuum_threshold = 1000,
  autovacuum_analyze_scale_factor = 0.02,
  autovacuum_analyze_threshold = 1000
);

comment on table filemark.file_checkpoints is
  'One row per file of a pipeline: identity, schedule, claim, checkpoint, outcome.';

-- With the status, so that counting the queue reads the index alone.
create index file_checkpoints_queue on filemark.file_checkpoints
  (pipeline, priority desc, available_at, file_url) include (status)
  where status in ('pending', 'failed');

create index file_checkpoints_queue_by_type on filemark.file_checkpoints
  (pipeline, file_type, priority desc, available_at, file_url)
  where status in ('pending', 'failed');

-- Not where status = 'processing': look-ups by key that say so would be planned on it while it is small.
create index file_checkpoints_leases on filemark.file_checkpoints
  (pipeline, lease_check_at)
  where lease_check_at is not null;

create index file_checkpoints_parked on filemark.file_checkpoints
  (pipeline, status, file_url)
  where status in ('dead_letter', 'skipped');

-- For maintenance: what to purge, and what to clear.
create index file_checkpoints_completed on filemark.file_checkpoints
  (pipeline, completed_at)
  where completed_at is not null;

create index file_checkpoints_kept on filemark.file_checkpoints
  (pipeline, kept_since)
  where kept_since is not null;

-- What batch claims were answered, so that a repeat after a lost answer gets what is left of that answer and
-- claims nothing more, even when every file of it is finished. Forgotten after a day (96_maintenance.sql).
create table filemark.claim_requests (
  pipeline   text collate "C" not null,
  request_id uuid not null,
  file_urls  text[] not null,
  claimed_at timestamptz not null,
  primary key (pipeline, request_id)
);

comment on table filemark.claim_requests is
  'The answers to the last day''s batch claims: a repeated claim_next_files claims nothing more.';

create index claim_requests_by_age on filemark.claim_requests (pipeline, claimed_at);

create table filemark.checkpoint_history (
  pipeline          text collate "C" not null,
  file_url          text collate "C" not null,
  checkpoint_seq    bigint not null,
  cursor            jsonb not null,
  items_processed   bigint not null,
  records_persisted bigint not null,
  claim_token       bigint not null,
  saved_at          timestamptz not null,
  primary key (pipeline, file_url, checkpoint_seq)
);

comment on table filemark.checkpoint_history is
  'One row per saved checkpoint of a file''s current generation; records_persisted is of that save alone.';

create table filemark.file_events (
  pipeline    text collate "C" not null,
  event_id    bigint generated always as identity,
  file_url    text collate "C",
  event       text not null,
  occurred_at timestamptz not null,
  actor       text not null,
  reason      text,
  detail      jsonb not null default '{}',
  primary key (pipeline, event_id),
  constraint event_is_known check (event in (
    'failed', 'lease_expired', 'dead_lettered', 'released', 'requeued', 'skipped', 'overwritten',
    'settings_changed'))
);

comment on table filemark.file_events is
  'Append-only audit of what is not routine: who did what to which file, when and why.';

create index file_events_by_file on filemark.file_events (pipeline, file_url, event_id);

alter table filemark.pipelines enable row level security;
alter table filemark.file_checkpoints enable row level security;
alter table filemark.claim_requests enable row level security;
alter table filemark.checkpoint_history enable row level security;
alter table filemark.file_events enable row level security;

create policy monitor_reads on filemark.pipelines for select to filemark_monitor using (true);
create policy monitor_reads on filemark.file_checkpoints for select to filemark_monitor using (true);
create policy monitor_reads on filemark.claim_requests for select to filemark_monitor using (true);
create policy monitor_reads on filemark.checkpoint_history for select to filemark_monitor using (true);
create policy monitor_reads on filemark.file_events for select to filemark_monitor using (true);

-- A claim as workers see it.
create type filemark.claim as (
  outcome             text,
  pipeline            text,
  file_url            text,
  file_type           text,
  file_timestamp      timestamptz,
  etag                text,
  size_bytes          bigint,
  metadata            jsonb,
  generation          bigint,
  claim_token         bigint,
  attempts            int,
  max_attempts        int,
  lease_seconds       int,
  lease_expires_at    timestamptz,
  cursor              jsonb,
  items_processed     bigint,
  items_total         bigint,
  accumulated_results jsonb,
  checkpoint_seq      bigint
);

-- What a worker says of a file it finished.
create type filemark.completion as (
  file_url            text,
  claim_token         bigint,
  records_total       bigint,
  records_filtered    bigint,
  records_persisted   bigint,
  processing_time_ms  bigint,
  accumulated_results jsonb,
  etag                text
);
