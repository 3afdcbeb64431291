-- filemark: the schema and the roles
--
-- Tables, internals and operations live in the schema filemark, which is never exposed over the API.
-- Three roles carry the rights:
--   filemark_worker    claims files, saves checkpoints, ends claims, reads single files
--   filemark_monitor   reads everything, changes nothing
--   filemark_operator  both of these, and requeue, settings and maintenance
-- On Supabase, service_role is an operator (99_grants.sql).
--
-- What users read of a function in psql, in Supabase Studio and in docs/reference.md is its comment. It has one form: a
-- sentence that says what the function does for its caller; if need be, more of that; then, in this order,
-- "name: meaning" for each parameter, "Returns: …", "name: meaning" for each column, "Errors: PT400 when; …". A line is
-- continued by lines that begin with a space. A column that means what it means in a table or type of filemark has no
-- line; "Returns:" names that table. What the catalog knows (types, defaults, grants) is not said again.

create schema filemark;

comment on schema filemark is
$comment$Checkpoint and resume with exactly-once effects for file pipelines. Not to be exposed over the API.

Errors: PT400 an argument cannot be right: the message names it, its value and what is allowed; PT404 no such file or
  pipeline; PT409 the claim is lost: it ended, was taken over or never was; PT412 the checkpoint does not follow the
  last one: a gap, a step back, or a repeat with other content; PT413 an argument is larger than its limit; PT422 not
  allowed in the state the file is in.$comment$;

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
