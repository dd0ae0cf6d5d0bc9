-- What was learnt of MX hosts: what a server can do, and how much it takes. Nodes write it, all nodes obey.

CREATE TABLE mta.host_fact (
    host       text NOT NULL CHECK (host <> ''),        -- address, with a port where a rule gives one
    fact       text NOT NULL CHECK (fact <> ''),        -- mta.model.host.HostFact
    value      integer NOT NULL DEFAULT 0,              -- of facts that have a number
    cause      text NOT NULL DEFAULT '',                -- what the host did
    mx_host    text NOT NULL DEFAULT '',                -- by which name it was reached then
    node       text NOT NULL DEFAULT '',                -- that learnt it
    times      integer NOT NULL DEFAULT 0,              -- that it was learnt again
    learnt_at  timestamptz NOT NULL DEFAULT now(),
    valued_at  timestamptz NOT NULL DEFAULT now(),      -- when the value changed last
    until_at   timestamptz NOT NULL,                    -- then one session at a time tries without it
    gone_at    timestamptz,                             -- forgotten: by an operator, or a session did without it
    gone_why   text NOT NULL DEFAULT '',
    changed_by xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- so that nodes ask for what is new, and miss nothing
    version    integer NOT NULL DEFAULT 1,
    PRIMARY KEY (host, fact)
);
CREATE INDEX host_fact_changed ON mta.host_fact (changed_by);

-- By whatever hand it is changed, the nodes hear of it.
CREATE FUNCTION mta.host_fact_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_LEVEL = 'STATEMENT' THEN
        PERFORM pg_notify('mta_hosts', '');
        RETURN NULL;
    END IF;
    NEW.changed_by := pg_current_xact_id();
    NEW.version := OLD.version + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER host_fact_version BEFORE UPDATE ON mta.host_fact
    FOR EACH ROW EXECUTE FUNCTION mta.host_fact_changed();
CREATE TRIGGER host_fact_notify AFTER INSERT OR UPDATE ON mta.host_fact
    FOR EACH STATEMENT EXECUTE FUNCTION mta.host_fact_changed();
