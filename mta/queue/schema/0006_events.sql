-- Traffic events: what is in force besides the rules, and what was. Nodes and operators write them, all nodes obey.

CREATE TABLE mta.traffic_event (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    key        text NOT NULL,                           -- who caused it and whom it concerns
    name       text NOT NULL CHECK (name <> ''),        -- of the automation, or as an operator called it
    kind       text NOT NULL,                           -- mta.traffic.effects.EffectKind
    target     text NOT NULL,                           -- mta.traffic.effects.Target
    on_what    text NOT NULL CHECK (on_what <> ''),
    began_at   timestamptz NOT NULL DEFAULT now(),
    until_at   timestamptz NOT NULL,                    -- infinity: until it is cancelled
    ended_at   timestamptz,
    ended_why  text CHECK (ended_why IN ('over', 'cancelled', 'replaced')),
    by_whom    text NOT NULL DEFAULT '',                -- the operator who made it; empty: an automation
    touched_by text NOT NULL DEFAULT '',                -- the operator who changed or ended it last
    node       text NOT NULL DEFAULT '',                -- that first told of it; empty: none
    automation text NOT NULL DEFAULT '',
    rule       text NOT NULL DEFAULT '',
    limits     jsonb NOT NULL DEFAULT '{}',             -- that hold besides the rule's
    base       jsonb NOT NULL DEFAULT '{}',             -- that the rule set when it began: recovery grows back to them
    pool       text NOT NULL DEFAULT '',
    step       integer NOT NULL DEFAULT 0,              -- of the recovery
    replies    bigint NOT NULL DEFAULT 0,               -- that matched so far, on all nodes
    detail     text NOT NULL DEFAULT '',                -- the last of them, or an operator's words
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- so that nodes ask for what is new, and miss nothing
    version    integer NOT NULL DEFAULT 1,
    CHECK ((ended_at IS NULL) = (ended_why IS NULL))
);
-- In force, each is there once, however many nodes tell of it.
CREATE UNIQUE INDEX traffic_event_in_force ON mta.traffic_event (key) WHERE ended_at IS NULL;
CREATE INDEX traffic_event_changed ON mta.traffic_event (changed_by);
CREATE INDEX traffic_event_began ON mta.traffic_event (began_at);

-- By whatever hand it is changed, the nodes hear of it.
CREATE FUNCTION mta.traffic_event_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_LEVEL = 'STATEMENT' THEN
        PERFORM pg_notify('mta_traffic', '');
        RETURN NULL;
    END IF;
    NEW.changed_at := clock_timestamp();
    NEW.changed_by := pg_current_xact_id();
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER traffic_event_version BEFORE UPDATE ON mta.traffic_event
    FOR EACH ROW EXECUTE FUNCTION mta.traffic_event_changed();
CREATE TRIGGER traffic_event_notify AFTER INSERT OR UPDATE ON mta.traffic_event
    FOR EACH STATEMENT EXECUTE FUNCTION mta.traffic_event_changed();

-- Of two sets of limits the tighter, limit by limit; see mta.traffic.limits.tighter.
CREATE FUNCTION mta.tighter_limits(one jsonb, other jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(jsonb_object_agg(key, CASE WHEN key = 'ramp_up_s' THEN most ELSE least END), '{}')
    FROM (
        SELECT key, min(value::bigint) AS least, max(value::bigint) AS most
        FROM (SELECT * FROM jsonb_each_text(one) UNION ALL SELECT * FROM jsonb_each_text(other)) given
        GROUP BY key
    ) of_key
$$;

-- Recipients of a blocked domain are in parts whose site is "@" and the domain: found at once when the block ends early.
CREATE INDEX delivery_part_put_off ON mta.delivery_part (site, due_at) WHERE owner IS NULL AND site LIKE '@%';
