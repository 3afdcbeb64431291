-- filemark: telling of alerts
--
-- check_alerts compares filemark.alerts with what alert_log has open, and sends word of the difference: a notification
-- on the channel filemark_alerts for each, and one post per webhook for all. Runs wait for each other, so two at once
-- send nothing twice. An alert that flaps is one alert: it is resolved only when it was not seen for five minutes.

-- Not for monitors: an address and its headers may be secrets.
create table filemark.alert_webhooks (
  pipeline text collate "C" primary key,
  url      text not null,
  headers  jsonb not null
);

alter table filemark.alert_webhooks enable row level security;

create policy operator_reads on filemark.alert_webhooks for select to filemark_operator using (true);

comment on table filemark.alert_webhooks is 'Where check_alerts posts to: filemark.set_alert_webhook.';
comment on column filemark.alert_webhooks.pipeline is
  'Whose alerts; empty for those of the database and of all pipelines that have no webhook of their own.';
comment on column filemark.alert_webhooks.url is 'The address.';
comment on column filemark.alert_webhooks.headers is 'Headers of the request, each a text or {"vault": name}.';

-- Says where alerts are posted to, as JSON, by pg_net. A repeat changes nothing.
create function filemark.set_alert_webhook(
  p_url text,
  p_headers jsonb = '{}',
  p_pipeline text = null,
  p_actor text = null
)
returns void
language plpgsql
security definer
set search_path = ''
as $$
declare
  v_header record;
begin
  if p_url !~ '^https?://[^\s/]+' or octet_length(p_url) > 2048 then
    perform filemark.refuse_argument('p_url', p_url, 'an http or https address of at most 2048 bytes, or null');
  elsif jsonb_typeof(p_headers) is distinct from 'object' then
    perform filemark.refuse_argument('p_headers', coalesce(jsonb_typeof(p_headers), 'null'), 'a JSON object');
  elsif p_pipeline is not null then
    perform filemark.check_pipeline(p_pipeline);
  end if;
  perform filemark.check_text('p_actor', coalesce(nullif(p_actor, ''), '-'), 200);
  for v_header in select h.key, h.value from jsonb_each(p_headers) h loop
    if jsonb_typeof(v_header.value) <> 'string'
       and (jsonb_typeof(v_header.value -> 'vault') is distinct from 'string' or v_header.value - 'vault' <> '{}') then
      -- Its value is not said: it may be a secret.
      perform filemark.refuse_argument(
        'p_headers.' || v_header.key, '…', 'a text or {"vault": the name of a secret}');
    end if;
  end loop;

  if p_url is null then
    delete from filemark.alert_webhooks w where w.pipeline = coalesce(p_pipeline, '');
  else
    insert into filemark.alert_webhooks as w (pipeline, url, headers)
    values (coalesce(p_pipeline, ''), p_url, p_headers)
        on conflict (pipeline) do update
       set url = excluded.url, headers = excluded.headers
     where (w.url, w.headers) is distinct from (excluded.url, excluded.headers);
  end if;
  if found then
    perform filemark.record_event(
      coalesce(p_pipeline, ''), null, 'settings_changed', p_actor, null,
      jsonb_build_object('alert_webhook', case when p_url is null then 'removed' else 'set' end));
  end if;
end
$$;

comment on function filemark.set_alert_webhook(text, jsonb, text, text) is
$comment$Says where check_alerts posts to when alerts open and are resolved. It takes the extension pg_net.

The request is {"text", "database", "alerts": [{"event", "alert_id", "alert", "severity", "pipeline", "file_url",
"value", "threshold", "message", "hint"}, …]}, one for all alerts of a check; event is 'opened' or 'resolved', text is
for chats.

p_url: the address, http or https; null to post no more.
p_headers: headers of the request. Each is a text, or {"vault": name} for a secret that is read from Supabase Vault
  when it is sent.
p_pipeline: whose alerts; null for those of the database and of all pipelines that have no webhook of their own.
p_actor: who says so, for the audit; the role of the call if not given.
Errors: PT400 bad argument; PT404 unknown pipeline.$comment$;

-- The headers as they are sent, with the secrets that they name.
create function filemark.webhook_headers(p_headers jsonb)
returns jsonb
language plpgsql
set search_path = ''
as $$
declare
  v_header record;
  v_secret text;
  v_headers jsonb := jsonb_build_object('Content-Type', 'application/json');
begin
  for v_header in select h.key, h.value from jsonb_each(p_headers) h loop
    if jsonb_typeof(v_header.value) = 'object' then
      -- Named in a parameter, so that no linter looks for it where there is no Vault.
      execute format('select s.decrypted_secret from %s s where s.name = $1', 'vault.decrypted_secrets')
         into v_secret
        using v_header.value ->> 'vault';
      if v_secret is null then
        raise exception 'Vault has no secret "%"', v_header.value ->> 'vault' using errcode = 'no_data_found';
      end if;
      v_headers := v_headers || jsonb_build_object(v_header.key, v_secret);
    else
      v_headers := v_headers || jsonb_build_object(v_header.key, v_header.value);
    end if;
  end loop;
  return v_headers;
end
$$;

-- Posts what changed to the webhooks it is for. The request is sent after the commit; where it cannot even be asked
-- for, the server's log has a warning, and everything else goes on.
create function filemark.post_alerts(p_changes jsonb)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_webhook record;
begin
  for v_webhook in
    select w.url, w.headers, c.changes, c.text
      from filemark.alert_webhooks w
     cross join lateral (
       select jsonb_agg(e.change order by e.position) as changes,
              string_agg(format('%s: %s', e.change ->> 'event', e.change ->> 'message'), chr(10) order by e.position)
                as text
         from jsonb_array_elements(p_changes) with ordinality e (change, position)
        where w.pipeline = coalesce(
                (select o.pipeline from filemark.alert_webhooks o where o.pipeline = e.change ->> 'pipeline'), '')
     ) c
     where c.changes is not null
  loop
    if to_regprocedure('net.http_post(text, jsonb, jsonb, jsonb, integer)') is null then
      raise warning 'filemark: alerts are not posted: the extension pg_net is not installed';
      return;
    end if;
    begin
      execute format('select %s(url := $1, body := $2, headers := $3)', 'net.http_post')
        using v_webhook.url,
              jsonb_build_object('text', v_webhook.text, 'database', current_database(), 'alerts', v_webhook.changes),
              filemark.webhook_headers(v_webhook.headers);
    exception
      when others then
        raise warning 'filemark: alerts could not be posted: %', sqlerrm;
    end;
  end loop;
end
$$;

-- Sends what changed to those who listen. What would not fit into a notification is left out.
create function filemark.notify_alert(p_change jsonb)
returns void
language plpgsql
set search_path = ''
as $$
declare
  v_payload jsonb := p_change;
  v_key text;
begin
  foreach v_key in array array['hint', 'message', 'file_url'] loop
    exit when octet_length(v_payload::text) < 8000;
    v_payload := v_payload - v_key;
  end loop;
  perform pg_notify('filemark_alerts', v_payload::text);
end
$$;

-- Brings alert_log up to date and sends word of each alert that opened or was resolved. Waits for another run.
create function filemark.check_alerts(p_resolve_after_seconds int = 300)
returns table (
  event text, alert_id bigint, alert text, severity text, pipeline text, file_url text, value double precision,
  threshold double precision, message text, hint text
)
language plpgsql
security definer
set search_path = ''
set jit = off
as $$
declare
  v_now timestamptz;
  v_changes jsonb := jsonb_build_array();
  v_change record;
begin
  perform filemark.check_number('p_resolve_after_seconds', p_resolve_after_seconds, 0, 86400),
          pg_advisory_xact_lock(hashtextextended('filemark check_alerts', 0));
  v_now := clock_timestamp();

  for v_change in
    with seen as materialized (
      select * from filemark.current_alerts()
    ), again as (
      update filemark.alert_log l
         set severity = s.severity, value = s.value, threshold = s.threshold, message = s.message, hint = s.hint,
             last_seen = v_now
        from seen s
       where l.pipeline = s.pipeline and l.alert = s.alert and l.file_url is not distinct from s.file_url
         and l.resolved_at is null
      returning l.pipeline, l.alert, l.file_url
    ), opened as (
      insert into filemark.alert_log (
        pipeline, alert, file_url, severity, value, threshold, message, hint, opened_at, last_seen)
      select s.pipeline, s.alert, s.file_url, s.severity, s.value, s.threshold, s.message, s.hint, v_now, v_now
        from seen s
       where not exists (select from again a
                          where a.pipeline = s.pipeline and a.alert = s.alert
                            and a.file_url is not distinct from s.file_url)
      returning alert_log.*
    ), resolved as (
      update filemark.alert_log l
         set resolved_at = v_now
       where l.resolved_at is null and l.last_seen <= v_now - make_interval(secs => p_resolve_after_seconds)
         and not exists (select from seen s
                          where s.pipeline = l.pipeline and s.alert = l.alert
                            and s.file_url is not distinct from l.file_url)
      returning l.*
    )
    select c.*
      from (select 'opened' as event, o.* from opened o union all select 'resolved', r.* from resolved r) c
     order by c.event, c.pipeline, c.alert, c.file_url
  loop
    event := v_change.event;
    alert_id := v_change.alert_id;
    alert := v_change.alert;
    severity := v_change.severity;
    pipeline := v_change.pipeline;
    file_url := v_change.file_url;
    value := v_change.value;
    threshold := v_change.threshold;
    message := v_change.message;
    hint := v_change.hint;
    v_changes := v_changes || jsonb_build_object(
      'event', event, 'alert_id', alert_id, 'alert', alert, 'severity', severity, 'pipeline', pipeline,
      'file_url', file_url, 'value', value, 'threshold', threshold, 'message', message, 'hint', hint);
    return next;
  end loop;

  if v_changes <> '[]' then
    perform filemark.notify_alert(c.change) from jsonb_array_elements(v_changes) c (change);
    perform filemark.post_alerts(v_changes);
  end if;
  delete from filemark.alert_log l where l.resolved_at < v_now - interval '90 days';
end
$$;

comment on function filemark.check_alerts(int) is
$comment$Brings filemark.alert_log up to date and sends word of each alert that opened or was resolved.

Each is a notification on the channel filemark_alerts, a JSON object with event and the columns below, without hint,
message or file_url where it would be too long for one; and part of a post to the webhook, where there is one. An
alert that comes back before it is resolved is the same alert. Resolved ones are forgotten after 90 days.

p_resolve_after_seconds: how long an alert must have been gone to be resolved, 0 to 86400.
Returns: a row for each alert that opened or was resolved; the other columns as in filemark.alert_log.
event: 'opened' or 'resolved'.
Errors: PT400 bad argument.$comment$;
