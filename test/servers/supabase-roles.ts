/** What new objects in schema public are granted to the API roles: everything (`old`) or nothing at all (`new`). */
export type SupabaseGrants = 'old' | 'new'

/**
 * SQL that makes the current database of a plain Postgres look like a Supabase project's: the API roles with their
 * attributes and timeouts (in the cluster, if missing) and the default privileges of schema public (in this database).
 * Run it as the role that will own the objects. Not here: safeupdate, which needs a library.
 */
export function supabaseRolesSql(grants: SupabaseGrants): string {
  return rolesSql + (grants === 'old' ? oldGrantsSql : newGrantsSql)
}

const rolesSql = `
do $roles$
begin
  if to_regrole('anon') is null then
    create role anon nologin noinherit;
  end if;
  if to_regrole('authenticated') is null then
    create role authenticated nologin noinherit;
  end if;
  if to_regrole('service_role') is null then
    create role service_role nologin noinherit bypassrls;
  end if;
  if to_regrole('authenticator') is null then
    create role authenticator login noinherit;
  end if;
end
$roles$;

alter role anon set statement_timeout = '3s';
alter role authenticated set statement_timeout = '8s';
alter role authenticator set statement_timeout = '8s';
alter role authenticator set lock_timeout = '8s';
grant anon, authenticated, service_role to authenticator;
grant usage on schema public to anon, authenticated, service_role;
`

const oldGrantsSql = `
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
`

const newGrantsSql = `
alter default privileges in schema public revoke all on tables from anon, authenticated, service_role;
alter default privileges in schema public revoke all on functions from anon, authenticated, service_role;
alter default privileges in schema public revoke all on sequences from anon, authenticated, service_role;
`
