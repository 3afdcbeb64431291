import type { Sql } from 'postgres'

/**
 * Everything that the catalog says about the schemas `public` and `filemark`, what is in them, and filemark's roles:
 * one entry per object, named as Postgres describes it, with its full definition, owner, grants and comment. Two
 * databases are the same when these are equal. Tables that migration tools keep for themselves are left out.
 */
export async function readCatalog(sql: Sql): Promise<Record<string, string>> {
  const rows = await sql<{ object: string; definition: string }[]>`
    with schemas as (
      select oid from pg_namespace where nspname in ('public', 'filemark')
    ), relations as (
      select c.* from pg_class c join schemas s on s.oid = c.relnamespace
      where c.relname not in ('schema_migrations', 'schema_migrations_pkey')
    ), facts (classid, objid, objsubid, owner, grants, definition) as (
      select 'pg_namespace'::regclass, n.oid, 0, n.nspowner, n.nspacl, ''
      from pg_namespace n join schemas using (oid)
      union all
      select 'pg_class'::regclass, c.oid, 0, c.relowner, c.relacl, jsonb_build_object(
        'kind', c.relkind, 'persistence', c.relpersistence, 'options', c.reloptions, 'columns', c.relnatts,
        'rls', c.relrowsecurity, 'rls forced', c.relforcerowsecurity, 'identity', c.relreplident,
        'method', (select amname from pg_am where oid = c.relam),
        'view', case when c.relkind in ('v', 'm') then pg_get_viewdef(c.oid) end,
        'index', case when c.relkind in ('i', 'I') then pg_get_indexdef(c.oid) end,
        'state', (select to_jsonb(i) - '{indexrelid,indrelid,indclass,indcollation,indexprs,indpred}'::text[]
                  from pg_index i where i.indexrelid = c.oid),
        'sequence', (select to_jsonb(q) - '{seqrelid,seqtypid}'::text[] from pg_sequence q where q.seqrelid = c.oid)
      )::text
      from relations c
      union all
      select 'pg_class'::regclass, a.attrelid, a.attnum, null, a.attacl, jsonb_build_object(
        'number', a.attnum, 'type', format_type(a.atttypid, a.atttypmod), 'not null', a.attnotnull,
        'default', (select pg_get_expr(d.adbin, d.adrelid) from pg_attrdef d
                    where d.adrelid = a.attrelid and d.adnum = a.attnum),
        'generated', a.attgenerated, 'identity', a.attidentity, 'storage', a.attstorage,
        'compression', a.attcompression, 'statistics', a.attstattarget,
        -- Minor releases since November 2026 note a version of their own there.
        'options', (select jsonb_agg(o order by o) from unnest(a.attoptions) o where o not like 'pg_attver=%'),
        'collation', (select collname from pg_collation where oid = a.attcollation)
      )::text
      from pg_attribute a join relations c on c.oid = a.attrelid
      where a.attnum > 0 and not a.attisdropped
      union all
      select 'pg_constraint'::regclass, k.oid, 0, null, null,
        pg_get_constraintdef(k.oid) || ' validated: ' || k.convalidated
      from pg_constraint k join schemas s on s.oid = k.connamespace
      where k.conrelid = 0 or k.conrelid in (select oid from relations)
      union all
      select 'pg_proc'::regclass, p.oid, 0, p.proowner, p.proacl,
        case when p.prokind = 'a' then 'aggregate' else pg_get_functiondef(p.oid) end
      from pg_proc p join schemas s on s.oid = p.pronamespace
      union all
      select 'pg_trigger'::regclass, t.oid, 0, null, null, pg_get_triggerdef(t.oid) || ' enabled: ' || t.tgenabled::text
      from pg_trigger t join relations c on c.oid = t.tgrelid
      where not t.tgisinternal
      union all
      select 'pg_policy'::regclass, y.oid, 0, null, null, jsonb_build_object(
        'command', y.polcmd, 'permissive', y.polpermissive, 'roles', y.polroles::regrole[],
        'using', pg_get_expr(y.polqual, y.polrelid), 'check', pg_get_expr(y.polwithcheck, y.polrelid))::text
      from pg_policy y join relations c on c.oid = y.polrelid
      union all
      select 'pg_rewrite'::regclass, w.oid, 0, null, null, pg_get_ruledef(w.oid)
      from pg_rewrite w join relations c on c.oid = w.ev_class
      union all
      select 'pg_type'::regclass, t.oid, 0, t.typowner, t.typacl, jsonb_build_object(
        'type', t.typtype, 'base', format_type(nullif(t.typbasetype, 0), t.typtypmod), 'not null', t.typnotnull,
        'default', t.typdefault, 'collation', (select collname from pg_collation where oid = t.typcollation),
        'labels', (select jsonb_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid)
      )::text
      from pg_type t join schemas s on s.oid = t.typnamespace
      where (t.typrelid = 0 or t.typrelid in (select oid from relations))
        and not exists (select from pg_type element where element.typarray = t.oid)
      union all
      select 'pg_statistic_ext'::regclass, x.oid, 0, x.stxowner, null, pg_get_statisticsobjdef(x.oid)
      from pg_statistic_ext x join schemas s on s.oid = x.stxnamespace
      union all
      select 'pg_default_acl'::regclass, d.oid, 0, d.defaclrole, d.defaclacl, d.defaclobjtype::text
      from pg_default_acl d
      union all
      select 'pg_extension'::regclass, e.oid, 0, e.extowner, null, e.extnamespace::regnamespace::text
      from pg_extension e
      union all
      select 'pg_event_trigger'::regclass, v.oid, 0, v.evtowner, null, v.evtevent || ' ' || v.evtfoid::regprocedure
      from pg_event_trigger v
    )
    select pg_describe_object(classid, objid, objsubid) as object,
      jsonb_pretty(jsonb_build_object(
        'owner', owner::regrole,
        'grants', (select jsonb_agg(g::text order by g::text) from unnest(grants) g),
        'comment', case when objsubid = 0 then obj_description(objid, classid::regclass::name)
                        else col_description(objid, objsubid) end
      )) || e'\n' || definition as definition
    from facts
    union all
    select 'role ' || r.rolname, jsonb_pretty(to_jsonb(r) - '{oid,rolname,rolpassword}'::text[] || jsonb_build_object(
      'member of', (select jsonb_agg(m.roleid::regrole order by m.roleid::regrole::text)
                    from pg_auth_members m where m.member = r.oid),
      'members', (select jsonb_agg(m.member::regrole order by m.member::regrole::text)
                  from pg_auth_members m where m.roleid = r.oid)))
    from pg_roles r where r.rolname like 'filemark%'
    order by 1`
  const catalog: Record<string, string> = {}
  for (const { object, definition } of rows) {
    if (catalog[object] !== undefined) throw new Error(`two catalog entries are called ${object}`)
    catalog[object] = definition
  }
  return catalog
}
