-- Deliverability: updates of what is shipped, each attempt to take one, and alerts about our own faults.

-- Updates that were put into force; the newest holds on all nodes. Rows are never changed, so a rollback is a row too.
CREATE TABLE mta.deliverability_update (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    version     bigint NOT NULL CHECK (version >= 0),   -- 0: none, each program goes by the files that came with it
    created_at  timestamptz,                            -- when its bundle was made
    digest      text NOT NULL,                          -- SHA-256 of the bundle's manifest, hexadecimal
    signed_by   text NOT NULL,                          -- the public key that fitted
    note        text NOT NULL,                          -- of who made it
    source      text NOT NULL,                          -- where it was had
    applied_by  text NOT NULL,
    texts       jsonb NOT NULL CHECK (jsonb_typeof(texts) = 'object'),  -- each shipped file's text by its name
    restores    bigint REFERENCES mta.deliverability_update  -- the update that a rollback put back into force
);

-- Rules for hosts and rules for failures both may be others now.
CREATE FUNCTION mta.deliverability_updated() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('mta_rules', 'update'), pg_notify('mta_failures', 'update');
    RETURN NULL;
END $$;
CREATE TRIGGER deliverability_notify AFTER INSERT ON mta.deliverability_update
    FOR EACH ROW EXECUTE FUNCTION mta.deliverability_updated();

-- Each attempt to take an update, and what came of it.
CREATE TABLE mta.deliverability_attempt (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    by_whom     text NOT NULL,                          -- user and host of a command; empty: the schedule
    source      text NOT NULL,
    version     bigint,                                 -- null: it did not come so far
    result      text NOT NULL CHECK (result IN ('applied', 'current', 'tried', 'refused', 'failed', 'rolled-back')),
    detail      text NOT NULL DEFAULT '',
    update_id   bigint REFERENCES mta.deliverability_update
);
CREATE INDEX deliverability_attempt_scheduled ON mta.deliverability_attempt (id) WHERE by_whom = '';

-- Alerts about an egress or a sender domain, which are no delivery's. Such a one is open as long as it is seen.
ALTER TABLE mta.alert
    ALTER delivery_id DROP NOT NULL,
    ADD egress      text NOT NULL DEFAULT '',
    ADD sender      text NOT NULL DEFAULT '',           -- domain of the address in From
    ADD site        text NOT NULL DEFAULT '',           -- empty: several
    ADD category    smallint NOT NULL DEFAULT 0,        -- mta.model.failure.Category
    ADD reply       text NOT NULL DEFAULT '',           -- a sample
    ADD since       timestamptz,                        -- the first refusal that was seen
    ADD seen_at     timestamptz,                        -- when it was last above its bounds
    ADD ended_at    timestamptz;
CREATE UNIQUE INDEX alert_open ON mta.alert (kind, egress, sender, site, category)
    WHERE delivery_id IS NULL AND ended_at IS NULL;
-- Who has looked for them last: of all nodes one looks, once a minute.
CREATE TABLE mta.alert_look (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    looked_at   timestamptz NOT NULL
);
INSERT INTO mta.alert_look (looked_at) VALUES ('-infinity');
