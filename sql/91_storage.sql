-- filemark: storage
--
-- How much room the tables take, how much of it is dead rows, and who keeps those from being removed. Dead rows at the
-- head of the queue are what makes claims slow: each claim reads over them.

-- Who keeps dead rows from being removed, the longest first: an open transaction of a session, a prepared transaction,
-- or a replication slot. With the rights of the installer, because a role sees little of the sessions of others; where
-- the installer has not pg_read_all_stats either, only its own sessions are here.
create function filemark.held_snapshots()
returns table (kind text, name text, held_by text, since timestamptz, transactions bigint)
language plpgsql
stable
security definer
set search_path = ''
as $$
begin
  return query
  select h.*
    from (
      select 'session', a.pid::text,
             concat_ws(', ', a.usename, nullif(a.application_name, ''), host(a.client_addr), a.state), a.xact_start,
             greatest(age(a.backend_xmin), age(a.backend_xid))::bigint
        from pg_catalog.pg_stat_activity a
       where (a.backend_xmin is not null or a.backend_xid is not null) and a.pid <> pg_backend_pid()
         and (a.datname = current_database() or a.datname is null)
         -- What a vacuum looks at holds nothing back.
         and a.backend_type <> 'autovacuum worker' and a.query !~* '^\s*vacuum'
      union all
      select 'prepared transaction', x.gid, x.owner::text, x.prepared, age(x.transaction)::bigint
        from pg_catalog.pg_prepared_xacts x
       where x.database = current_database()
      union all
      -- Since when a slot is left alone, Postgres says from version 17 on.
      select 'replication slot', s.slot_name::text, case when s.active then 'in use' else 'left alone' end,
             (to_jsonb(s) ->> 'inactive_since')::timestamptz, age(s.xmin)::bigint
        from pg_catalog.pg_replication_slots s
       where s.xmin is not null
    ) h (kind, name, held_by, since, transactions)
   order by h.since, h.transactions desc;
end
$$;

comment on function filemark.held_snapshots() is
$comment$Who keeps dead rows from being removed, the longest first.

Returns: a row for each.
kind: 'session', 'prepared transaction' or 'replication slot'.
name: the process id of the session, the name of the prepared transaction or of the slot.
held_by: of a session its user, application, address and state; of a prepared transaction its owner; of a slot whether
  it is in use.
since: when the transaction began, or the slot was left alone; null when Postgres does not say.
transactions: how many transactions began since.$comment$;

create view filemark.storage_report with (security_invoker = true) as
select c.relname::text as table_name,
       case when c.reltuples >= 0 then c.reltuples::bigint end as estimated_rows,
       coalesce(s.n_dead_tup, 0) as dead_rows,
       pg_relation_size(c.oid) as rows_bytes,
       coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0) as toast_bytes,
       pg_indexes_size(c.oid) as indexes_bytes,
       pg_total_relation_size(c.oid) as total_bytes,
       greatest(s.last_vacuum, s.last_autovacuum) as last_vacuum_at,
       h.kind || ' ' || h.name || coalesce(' (' || h.held_by || ')', '') as oldest_snapshot,
       extract(epoch from statement_timestamp() - h.since)::double precision as oldest_snapshot_age_seconds
  from pg_catalog.pg_class c
  left join pg_catalog.pg_stat_all_tables s on s.relid = c.oid
  left join (select * from filemark.held_snapshots() limit 1) h on true
 where c.relnamespace = 'filemark'::regnamespace and c.relkind = 'r'
 order by total_bytes desc;

comment on view filemark.storage_report is
  'Room that each table takes, and what keeps dead rows from being removed.';
comment on column filemark.storage_report.table_name is 'The table, in schema filemark.';
comment on column filemark.storage_report.estimated_rows is
  'Rows, as of the last vacuum or analyze; null before the first.';
comment on column filemark.storage_report.dead_rows is
  'Versions of rows that nobody needs and vacuum has yet to remove, as estimated.';
comment on column filemark.storage_report.rows_bytes is 'Bytes of the rows, without what is in toast_bytes.';
comment on column filemark.storage_report.toast_bytes is
  'Bytes of values too large for a row, compressed: in file_checkpoints accumulated_results and cursors.';
comment on column filemark.storage_report.indexes_bytes is 'Bytes of the indexes.';
comment on column filemark.storage_report.total_bytes is 'Bytes of all of it.';
comment on column filemark.storage_report.last_vacuum_at is 'When it was last vacuumed; null for never.';
comment on column filemark.storage_report.oldest_snapshot is
  'Who has kept dead rows from being removed for the longest time, as filemark.held_snapshots has it; null for nobody.';
comment on column filemark.storage_report.oldest_snapshot_age_seconds is
  'For how long; null for nobody, and when Postgres does not say.';

-- What files in progress take: p_active_files x (p_checkpoint_bytes + p_history_entries x 100 + p_results_bytes).
create function filemark.estimate_storage(
  p_active_files bigint,
  p_history_entries bigint,
  p_results_bytes bigint,
  p_checkpoint_bytes bigint = 5120
)
returns bigint
language plpgsql
immutable
security definer
set search_path = ''
as $$
declare
  v_max constant bigint := 1000000000000;
begin
  perform filemark.check_number('p_active_files', p_active_files, 0, v_max),
          filemark.check_number('p_history_entries', p_history_entries, 0, v_max),
          filemark.check_number('p_results_bytes', p_results_bytes, 0, v_max),
          filemark.check_number('p_checkpoint_bytes', p_checkpoint_bytes, 0, v_max);
  return least(
    p_active_files::numeric * (p_checkpoint_bytes + p_history_entries::numeric * 100 + p_results_bytes),
    9223372036854775807);
end
$$;

comment on function filemark.estimate_storage(bigint, bigint, bigint, bigint) is
$comment$Estimates what files that are kept with their checkpoints take.

That is files x (checkpoint + history entries x 100 + results). 10,000 files of 5 KB, 50 entries and 5 KB: 150 MB. Real
tables, filled so, took 1.7 times as much, mostly because an entry takes 270 bytes with its key and its index; a large
cursor is copied into each entry and makes that more.

p_active_files: files in progress, waiting with a checkpoint, or completed within keep_checkpoints_days.
p_history_entries: checkpoints in the history of each; maintenance keeps history_limit of them.
p_results_bytes: size of the accumulated_results of each.
p_checkpoint_bytes: size of the row of each, with its cursor and metadata.
Returns: the bytes.
Errors: PT400 bad argument.$comment$;
