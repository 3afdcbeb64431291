/**
 * SQL that stands in for the extension pg_net 0.20, which does not run here: its function with the same signature, and
 * the unlogged table that its background worker takes the requests from after the commit.
 */
export const pgNetSql = `
create schema net;
create unlogged table net.http_request_queue (
  id bigint generated always as identity, method text not null, url text not null, headers jsonb, body bytea,
  timeout_milliseconds int not null);
create function net.http_post(
  url text,
  body jsonb default '{}'::jsonb,
  params jsonb default '{}'::jsonb,
  headers jsonb default '{"Content-Type": "application/json"}'::jsonb,
  timeout_milliseconds int default 5000
)
returns bigint
language sql
as $$
  insert into net.http_request_queue (method, url, headers, body, timeout_milliseconds)
  values ('POST', url, headers, convert_to(body::text, 'UTF8'), timeout_milliseconds)
  returning id
$$;
`

/** SQL that stands in for Supabase Vault: where secrets are read, and the function that makes them. */
export const vaultSql = `
create schema vault;
create table vault.secrets (
  id uuid primary key default gen_random_uuid(), name text unique, description text not null default '', secret text not null,
  created_at timestamptz not null default now(), updated_at timestamptz not null default now());
create view vault.decrypted_secrets as
  select id, name, description, secret, secret as decrypted_secret, created_at, updated_at from vault.secrets;
create function vault.create_secret(new_secret text, new_name text default null, new_description text default '')
returns uuid
language sql
as $$
  insert into vault.secrets (secret, name, description) values (new_secret, new_name, new_description) returning id
$$;
`
