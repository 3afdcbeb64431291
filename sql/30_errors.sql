-- filemark: errors and arguments
--
-- SQLSTATEs of the form PTxyz become the HTTP status xyz in PostgREST. The SDK maps the code, never the
-- text, to a class. A bad argument is always named, with its value and with what is allowed.
-- 40001 is never raised: PostgREST up to version 14 repeats such a call for ever.

-- A text of the caller's as it stands in a message: on one line, and shortened. PostgREST puts the message of a PTxyz
-- error into the status line of its answer, where a line break would begin headers of the caller's choice.
create function filemark.on_one_line(p_text text, p_length int = 3000)
returns text
language plpgsql
immutable
set search_path = ''
as $$
begin
  return regexp_replace(
    case when length(p_text) > p_length then left(p_text, p_length) || '…' else p_text end,
    '[\u0001-\u001f\u007f]', '�', 'g');
end
$$;

comment on function filemark.on_one_line(text, int) is
  'Internal: what persist_records, which runs as its caller, is made of.';

-- Raises PT400 for an argument: its name, its value, what it may be.
create function filemark.refuse_argument(p_name text, p_value text, p_allowed text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception '% must be %, not %', filemark.on_one_line(p_name), p_allowed,
    coalesce('"' || filemark.on_one_line(p_value, 100) || '"', 'null')
    using errcode = 'PT400';
end
$$;

comment on function filemark.refuse_argument(text, text, text) is
  'Internal: what persist_records, which runs as its caller, is made of.';

-- Raises PT400 for a key that nobody asked for, so that a typing error is not taken for a default.
create function filemark.refuse_key(p_name text, p_known text[])
returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception '% is unknown; known are %',
    filemark.on_one_line(p_name, 100), array_to_string(p_known, ', ')
    using errcode = 'PT400';
end
$$;

-- Raises PT413 for an argument that is larger than its limit.
create function filemark.refuse_size(p_name text, p_size bigint, p_limit bigint, p_unit text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  raise exception '% has % %, the limit is %', filemark.on_one_line(p_name), p_size, p_unit, p_limit
    using errcode = 'PT413';
end
$$;

comment on function filemark.refuse_size(text, bigint, bigint, text) is
  'Internal: what persist_records, which runs as its caller, is made of.';

-- Refuses a text that is null, empty or longer than p_max_bytes.
create function filemark.check_text(p_name text, p_value text, p_max_bytes int)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_value is null or p_value = '' or octet_length(p_value) > p_max_bytes then
    perform filemark.refuse_argument(p_name, p_value, format('a text of 1 to %s bytes', p_max_bytes));
  end if;
end
$$;

-- Refuses a number that is null or out of range.
create function filemark.check_number(p_name text, p_value numeric, p_min bigint, p_max bigint)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_value is null or p_value not between p_min and p_max then
    perform filemark.refuse_argument(p_name, p_value::text, format('a number from %s to %s', p_min, p_max));
  end if;
end
$$;

-- Refuses a moment that is null or infinite (JSON and JavaScript have no infinite dates).
create function filemark.check_time(p_name text, p_value timestamptz)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_value is null or not isfinite(p_value) then
    perform filemark.refuse_argument(p_name, p_value::text, 'a finite timestamp');
  end if;
end
$$;

-- Refuses a key of a file that cannot be one.
create function filemark.check_key(p_pipeline text, p_file_url text)
returns void
language plpgsql
set search_path = ''
as $$
begin
  if p_pipeline <> '' and octet_length(p_pipeline) <= 100
     and p_file_url <> '' and octet_length(p_file_url) <= 2048 then
    return;
  end if;
  perform filemark.check_text('p_pipeline', p_pipeline, 100);
  perform filemark.check_text('p_file_url', p_file_url, 2048);
end
$$;

-- Refuses a JSON value that is larger than p_limit bytes of text. Null is fine.
create function filemark.check_size(p_name text, p_value jsonb, p_limit bigint)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_bytes bigint;
begin
  -- Small values end here, without being turned into text.
  if p_value is null or pg_column_size(p_value) * 8 < p_limit then
    return;
  end if;
  v_bytes := octet_length(p_value::text);
  if v_bytes > p_limit then
    perform filemark.refuse_size(p_name, v_bytes, p_limit, 'bytes');
  end if;
end
$$;

-- Says why a claim does not stand: PT400 for a key that cannot be one, PT404 for an unknown file, PT409
-- for a claim that was lost. Called when a write found no row with that token; never returns.
create function filemark.refuse_claim(p_pipeline text, p_file_url text, p_claim_token bigint)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_file record;
begin
  perform filemark.check_key(p_pipeline, p_file_url);
  if p_claim_token is null or p_claim_token < 1 then
    perform filemark.refuse_argument('p_claim_token', p_claim_token::text, 'the token of a claim');
  end if;
  select f.status, f.claim_token, f.claim_ended, f.processed_by
    into v_file
    from filemark.file_checkpoints f
   where f.pipeline = p_pipeline and f.file_url = p_file_url;
  if not found then
    select 'completed' as status, g.claim_token, 'completed' as claim_ended, null as processed_by
      into v_file
      from filemark.purged_files g
     where g.pipeline = p_pipeline and g.file_hash = filemark.short_hash(p_file_url);
  end if;
  if not found then
    raise exception 'file "%" is unknown in pipeline "%"',
      filemark.on_one_line(p_file_url), filemark.on_one_line(p_pipeline)
      using errcode = 'PT404', hint = 'Claim it with claim_file, or register it with register_files.';
  end if;
  raise exception 'claim % on file "%" is lost', p_claim_token, filemark.on_one_line(p_file_url)
    using errcode = 'PT409',
          detail = case
            when v_file.claim_token > p_claim_token then
              format('It is now %s; the last claim is %s, by %s.',
                     v_file.status, v_file.claim_token, coalesce(v_file.processed_by, 'nobody'))
            when v_file.claim_token < p_claim_token then
              format('There was no such claim: the last one is %s.', v_file.claim_token)
            else
              format('The claim ended (%s); the file is now %s.', v_file.claim_ended, v_file.status)
          end,
          hint = 'Stop working on the file: what was not saved with this token will be done by another worker.';
end
$$;
