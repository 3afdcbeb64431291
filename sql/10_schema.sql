-- filemark: the schema and the roles
--
-- Tables, internals and operations live in the schema filemark, which is never exposed over the API.
-- Three roles carry the rights:
--   filemark_worker    claims files, saves checkpoints, ends claims, reads single files
--   filemark_monitor   reads everything, changes nothing
--   filemark_operator  both of these, and requeue, settings and maintenance
-- On Supabase, service_role is an operator (99_grants.sql).

create schema filemark;

comment on schema filemark is
  'Checkpoint and resume with exactly-once effects for file pipelines. Not to be exposed over the API.';

revoke all on schema filemark from public;

-- Roles belong to the whole cluster: another database of it may have made them, or be making them now.
do $roles$
declare
  v_role text;
begin
  foreach v_role in array array['filemark_worker', 'filemark_monitor', 'filemark_operator'] loop
    if not exists (select from pg_catalog.pg_roles where rolname = v_role) then
      begin
        execute format('create role %I nologin', v_role);
      exception
        when duplicate_object or unique_violation then
          null;
        when insufficient_privilege then
          raise exception 'filemark needs the role %, which % may not create', v_role, current_user
            using errcode = 'insufficient_privilege',
                  hint = 'Ask an administrator to run: create role filemark_worker nologin; '
                         'create role filemark_monitor nologin; create role filemark_operator nologin; '
                         'grant filemark_worker, filemark_monitor to filemark_operator;';
      end;
    end if;
  end loop;
  if not pg_has_role('filemark_operator', 'filemark_worker', 'usage')
     or not pg_has_role('filemark_operator', 'filemark_monitor', 'usage') then
    begin
      grant filemark_worker, filemark_monitor to filemark_operator;
    exception
      when unique_violation then
        null;
    end;
  end if;
end
$roles$;
