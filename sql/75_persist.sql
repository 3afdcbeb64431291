-- filemark: records and cursor in one transaction
--
-- Over plain HTTP every call is a transaction of its own. persist_records puts the batch's rows and its
-- checkpoint into one: both are there afterwards, or neither. It runs as its caller, whose own INSERT grant
-- on the target decides; only the checkpoint is saved with the rights of this package's owner.

-- Locks the claimed file's row until the transaction ends. Answers nothing when the checkpoint is the next
-- one, and what was saved when it is a repeat; raises when it can be neither.
create function filemark.begin_persist(
  p_file_url text,
  p_claim_token bigint,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb,
  p_checkpoint_seq bigint,
  p_pipeline text
)
returns table (records_persisted bigint, checkpoint_seq bigint, lease_expires_at timestamptz)
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_file record;
begin
  if coalesce(p_cursor, 'null') = 'null' then
    perform filemark.refuse_argument('p_cursor', null, 'the next position to process, as any JSON');
  end if;
  perform filemark.check_number('p_items_processed', p_items_processed, 0, 9223372036854775807),
          filemark.check_number('p_checkpoint_seq', coalesce(p_checkpoint_seq, 1), 1, 9223372036854775807);
  select f.checkpoint_seq, f.items_processed
    into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url
     and f.claim_token = p_claim_token and f.status = 'processing'
     for no key update;
  if not found then
    perform filemark.refuse_claim(p_pipeline, p_file_url, p_claim_token);
  elsif p_checkpoint_seq = v_file.checkpoint_seq + 1
        or (p_checkpoint_seq is null and p_items_processed > v_file.items_processed) then
    return;
  end if;
  return query
  select r.records_persisted, r.checkpoint_seq, r.lease_expires_at
    from filemark.repeated_checkpoint(
      p_pipeline, p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results,
      p_checkpoint_seq) r;
end
$$;

comment on function filemark.begin_persist(text, bigint, jsonb, bigint, jsonb, bigint, text) is
  'Internal: what persist_records, which runs as its caller, is made of.';

-- The table that p_target names; unqualified means public.
create function filemark.target_table(p_target text)
returns regclass
language plpgsql
stable
set search_path = ''
set enable_seqscan = off
as $$
declare
  v_name text[];
  v_table regclass;
begin
  begin
    v_name := parse_ident(p_target);
    v_table := to_regclass(case cardinality(v_name)
      when 1 then format('public.%I', v_name[1])
      when 2 then format('%I.%I', v_name[1], v_name[2])
    end);
  exception
    when invalid_parameter_value or invalid_name or syntax_error then
      v_table := null;
  end;
  if v_table is null
     or not exists (select from pg_catalog.pg_class c where c.oid = v_table and c.relkind in ('r', 'p', 'v', 'f'))
     -- 8: takes inserts, by rules or triggers too
     or pg_relation_is_updatable(v_table, true) & 8 = 0
     -- on conflict knows no keys that are checked later
     or exists (select from pg_catalog.pg_index i where i.indrelid = v_table and not i.indimmediate) then
    perform filemark.refuse_argument(
      'p_target', p_target, 'the name of a table that takes inserts and has no deferrable key, as schema.table');
  end if;
  return v_table;
end
$$;

comment on function filemark.target_table(text) is
  'Internal: what persist_records, which runs as its caller, is made of.';

-- Inserts records (an array of objects) as the caller; answers how many. Only the columns a record names are
-- inserted; records that meet a unique key of the target are passed over.
create function filemark.insert_records(p_target regclass, p_records jsonb)
returns bigint
language plpgsql
set search_path = public, extensions
as $$
declare
  v_shape record;
  v_names text;
  v_columns text;
  v_unknown text;
  v_rows bigint;
  v_total bigint := 0;
begin
  -- Records of one shape (the same keys) go in together, in their order.
  for v_shape in
    select s.keys, jsonb_agg(s.record order by s.position) as records
      from (select array(select jsonb_object_keys(e.record)) as keys, e.record, e.position
              from jsonb_array_elements(p_records) with ordinality e (record, position)) s
     group by s.keys
     order by min(s.position)
  loop
    select string_agg(quote_ident(a.attname), ', ' order by k.position),
           string_agg(quote_ident(a.attname) || ' ' || format_type(a.atttypid, a.atttypmod), ', ' order by k.position),
           min(k.name) filter (where a.attname is null)
      into v_names, v_columns, v_unknown
      from unnest(v_shape.keys) with ordinality k (name, position)
      left join pg_catalog.pg_attribute a
        on a.attrelid = p_target and a.attname = k.name and a.attnum > 0 and not a.attisdropped;
    if v_unknown is not null then
      raise exception 'p_records names a column "%" that % does not have',
        filemark.on_one_line(v_unknown, 100), filemark.on_one_line(p_target::text)
        using errcode = 'PT400';
    end if;
    if v_names is null then
      execute format('insert into %s select from jsonb_array_elements($1) on conflict do nothing', p_target)
        using v_shape.records;
    else
      execute format('insert into %s (%s) select %2$s from jsonb_to_recordset($1) as r (%3$s) on conflict do nothing',
                     p_target, v_names, v_columns)
        using v_shape.records;
    end if;
    get diagnostics v_rows = row_count;
    v_total := v_total + v_rows;
  end loop;
  return v_total;
end
$$;

comment on function filemark.insert_records(regclass, jsonb) is
  'Internal: what persist_records, which runs as its caller, is made of.';

-- Inserts a batch of records into p_target and saves the checkpoint, in one transaction. Answers how many
-- records went in; those that met a unique key of the target are passed over and not counted. Without
-- p_checkpoint_seq, p_items_processed must grow, so that a repeat is recognised and inserts nothing.
create function public.persist_records(
  p_file_url text,
  p_claim_token bigint,
  p_target text,
  p_records jsonb,
  p_cursor jsonb,
  p_items_processed bigint,
  p_accumulated_results jsonb = null,
  p_checkpoint_seq bigint = null,
  p_pipeline text = 'default'
)
returns table (records_persisted bigint, checkpoint_seq bigint, lease_expires_at timestamptz)
language plpgsql
-- Not empty: a trigger of the target may count on finding the user's own functions and tables.
set search_path = public, extensions
as $$
declare
  v_target regclass := filemark.target_table(p_target);
begin
  if jsonb_typeof(p_records) is distinct from 'array' then
    perform filemark.refuse_argument('p_records', p_records::text, 'a JSON array of objects');
  elsif jsonb_array_length(p_records) > 10000 then
    perform filemark.refuse_size('p_records', jsonb_array_length(p_records), 10000, 'records');
  elsif exists (select from jsonb_array_elements(p_records) e (record) where jsonb_typeof(e.record) <> 'object') then
    perform filemark.refuse_argument('p_records', p_records::text, 'a JSON array of objects');
  end if;

  return query
  select b.records_persisted, b.checkpoint_seq, b.lease_expires_at
    from filemark.begin_persist(
      p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results, p_checkpoint_seq,
      p_pipeline) b;
  if found then
    return;
  end if;

  records_persisted := filemark.insert_records(v_target, p_records);
  select s.checkpoint_seq, s.lease_expires_at
    into checkpoint_seq, lease_expires_at
    from filemark.save_checkpoint(
      p_file_url, p_claim_token, p_cursor, p_items_processed, p_accumulated_results, p_checkpoint_seq,
      null, records_persisted, p_pipeline) s;
  return next;
end
$$;

comment on function public.persist_records(text, bigint, text, jsonb, jsonb, bigint, jsonb, bigint, text) is
$comment$Inserts records and saves the checkpoint in one transaction: exactly-once loading over plain HTTP.

It runs as its caller, whose own INSERT grant on the target decides. Records that meet a unique key of the target are
passed over. What the target itself refuses (a type, a constraint, a trigger) is raised as it is. A repeat inserts
nothing.

p_file_url: the file.
p_claim_token: the token that the claim was given.
p_target: the table, as schema.table; without a schema it is in public.
p_records: array of at most 10,000 objects {column: value}; a column that a record lacks takes its default.
p_cursor: the next position to process, as any JSON, at most cursor_limit_bytes.
p_items_processed: items done in the whole file so far: a total, which must grow when p_checkpoint_seq is null.
p_accumulated_results: what was worked out so far, as any JSON, at most results_limit_bytes; null keeps what is there,
  {} clears it.
p_checkpoint_seq: the number of this checkpoint, one more than the last one's; null for the next.
p_pipeline: the pipeline of the file.
Returns: one row, checkpoint_seq and lease_expires_at as in filemark.file_checkpoints.
records_persisted: records that went in, without those passed over.
Errors: PT400 bad argument, unknown table or column; PT404 unknown file; PT409 claim lost; PT412 does not follow
  the last checkpoint; PT413 records, cursor or results too large; 42501 no INSERT grant on the target.$comment$;
