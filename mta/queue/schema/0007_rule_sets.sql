-- Sets of rules that were applied, when and by whom. The newest is in force on all nodes; rows are never changed.

CREATE TABLE mta.rule_set (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    how        text NOT NULL CHECK (how IN ('start', 'sighup', 'apply', 'rollback')),
    applied_by text NOT NULL,                           -- user and host of a command; empty: the node did it
    node       text NOT NULL,                           -- whose file it was; empty: a command's
    digest     bytea NOT NULL CHECK (octet_length(digest) = 32),  -- SHA-256 of the texts and their names
    root       text NOT NULL CHECK (root <> ''),        -- the file that was named; it may include others
    texts      jsonb NOT NULL CHECK (jsonb_typeof(texts) = 'object'),  -- each file's text by its name
    note       text NOT NULL DEFAULT '' CHECK (length(note) <= 500),
    restores   bigint REFERENCES mta.rule_set           -- the set that a rollback put back into force
);
CREATE INDEX rule_set_digest ON mta.rule_set (digest);

-- Nodes that hear it look at once; the others at their next look.
CREATE FUNCTION mta.rule_set_applied() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_notify('mta_rules', NEW.id::text);
    RETURN NULL;
END $$;
CREATE TRIGGER rule_set_notify AFTER INSERT ON mta.rule_set
    FOR EACH ROW EXECUTE FUNCTION mta.rule_set_applied();
