-- Failures: what each attempt's failure means, addresses that are not mailed any more, what comes back by mail.

ALTER TABLE mta.delivery_log
    ADD type smallint NOT NULL DEFAULT 0,               -- mta.model.failure.FailureType
    ADD category smallint NOT NULL DEFAULT 0,           -- mta.model.failure.Category
    -- The transaction that wrote it, so that readers follow the log by a pointer and miss nothing (mta.queue.feed):
    -- times would not do, since a row may be older than its commit by days. Null: from before there were readers.
    ADD tx bigint;
ALTER TABLE mta.delivery_log ALTER tx SET DEFAULT (pg_current_xact_id()::text)::bigint;
CREATE INDEX delivery_log_tx ON mta.delivery_log USING brin (tx) WITH (pages_per_range = 16, autosummarize = on);

-- Of greylisted recipients: they are taken when they come again from where they came.
ALTER TABLE mta.delivery_part ADD egress text;

-- How far each reader of the log has come: all of this transaction and those before it.
CREATE TABLE mta.log_pointer (
    name        text PRIMARY KEY CHECK (name <> ''),
    tx          bigint NOT NULL,
    moved_at    timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE mta.delivery_stats
    ADD excluded bigint NOT NULL DEFAULT 0,             -- not mailed: quarantine, denylist; those of an append stand there
    ADD bounced bigint NOT NULL DEFAULT 0,              -- delivered, and came back by mail later
    ADD complaints bigint NOT NULL DEFAULT 0,
    ADD unsubscribed bigint NOT NULL DEFAULT 0;
-- Recipients of this append that were excluded when it was made; see delivery_stats for why not there.
ALTER TABLE mta.delivery_append ADD excluded integer NOT NULL DEFAULT 0;

-- What is known of an address, or (with nothing before its @) of a domain; only those of which there is something
-- to know. Statuses are those of the engine we replace (campaign-mta §5).
CREATE TABLE mta.quarantine (
    address     text PRIMARY KEY CHECK (address = lower(address) AND strpos(address, '@') > 0),
    status      smallint NOT NULL CHECK (status BETWEEN 1 AND 5),  -- mta.model.quarantine.AddressStatus
    errors      integer NOT NULL DEFAULT 0 CHECK (errors >= 0),    -- that were counted: one a day at most
    counted_at  timestamptz,                            -- when the last of them was
    reason      smallint NOT NULL DEFAULT 0,            -- of the last error, or of its status
    category    smallint NOT NULL DEFAULT 0,
    text        text NOT NULL DEFAULT '',               -- of the last error, or an operator's words
    delivery_id bigint,                                 -- of the last error
    number      bigint,
    created_at  timestamptz NOT NULL DEFAULT now(),
    changed_at  timestamptz NOT NULL DEFAULT now(),     -- when its status changed, by the time of its cause
    known_at    timestamptz NOT NULL DEFAULT now(),     -- the same, by the time at which we heard of it
    changed_by  text NOT NULL DEFAULT ''                -- who set the status by hand; empty: the rules did
);
CREATE INDEX quarantine_changed ON mta.quarantine (status, changed_at);
-- Who sends asks for what has become known since a part was appended; what was known then is excluded already.
CREATE INDEX quarantine_known ON mta.quarantine (known_at) WHERE status IN (3, 4);

ALTER TABLE mta.delivery ADD keeps_quarantined boolean NOT NULL DEFAULT false;  -- a proof: it excludes nobody

-- Of these addresses those that are not to be mailed, with the status that says so.
CREATE FUNCTION mta.not_mailed(addresses text[]) RETURNS TABLE (address text, status smallint)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.address, CASE WHEN q.status IN (3, 4) THEN q.status ELSE d.status END
    FROM unnest(addresses) AS a (address)
    LEFT JOIN mta.quarantine q ON q.address = lower(a.address)
    LEFT JOIN mta.quarantine d ON d.address = lower(substring(a.address FROM '@[^@]*$')) AND d.status IN (3, 4)
    WHERE q.status IN (3, 4) OR (q.status IS DISTINCT FROM 5 AND d.status IS NOT NULL)
$$;

-- Whoever appends: recipients that are not to be mailed have their outcome at once, in the same transaction.
CREATE FUNCTION mta.exclude_appended() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM mta.quarantine WHERE status IN (3, 4))
       OR NOT EXISTS (SELECT FROM fresh WHERE append_id IS NOT NULL) THEN RETURN NULL; END IF;
    WITH one AS MATERIALIZED (
        SELECT f.id, f.delivery_id, f.append_id, f.count, (r.ord - 1)::smallint AS position,
               r.recipient ->> 0 AS address, r.recipient ->> 1 AS reference
        FROM fresh f JOIN mta.delivery d ON d.id = f.delivery_id AND NOT d.keeps_quarantined,
             jsonb_array_elements(convert_from(f.recipients, 'UTF8')::jsonb) WITH ORDINALITY AS r (recipient, ord)
        WHERE f.append_id IS NOT NULL
    ), hit AS MATERIALIZED (
        SELECT one.*, n.status
        FROM mta.not_mailed((SELECT array_agg(DISTINCT address) FROM one)) n JOIN one ON one.address = n.address
    ), by_part AS MATERIALIZED (
        SELECT id, append_id, count, count(*) AS excluded, array_agg(position ORDER BY position) AS positions
        FROM hit GROUP BY id, append_id, count
    ), logged AS (
        INSERT INTO mta.delivery_log (at, delivery_id, number, part_id, attempt, status, reason, code, enhanced, address,
                                      reference, site, mx_host, peer, egress, reply, type)
        SELECT now(), delivery_id, append_id << 16 | position, id, 0, 6, CASE status WHEN 3 THEN 8 ELSE 9 END, 0, '',
               address, reference, '', '', '', '', CASE status WHEN 3 THEN 'denylisted' ELSE 'in quarantine' END, 3
        FROM hit
    ), counted AS (
        UPDATE mta.delivery_append a SET excluded = b.excluded FROM by_part b WHERE a.append_id = b.append_id
    ), emptied AS (
        DELETE FROM mta.delivery_part p USING by_part b WHERE p.id = b.id AND b.excluded = b.count
    )
    INSERT INTO mta.part_settled (part_id, positions)
    SELECT id, positions FROM by_part WHERE excluded < count;
    RETURN NULL;
END $$;
CREATE TRIGGER delivery_part_exclude AFTER INSERT ON mta.delivery_part REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION mta.exclude_appended();

-- One failure of an address, as the log has it. Hard: quarantined at once. Soft: counted when the last counted one is
-- at least `every` older, from one again when it is more than `quiet` older; quarantined when `most` are counted.
CREATE FUNCTION mta.address_failed(
    failed text, is_hard boolean, why smallint, of_category smallint, said text, of_delivery bigint, of_number bigint,
    failed_at timestamptz, most integer, every interval, quiet interval
) RETURNS smallint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    known   mta.quarantine;
    counted integer;
    new_status smallint;
BEGIN
    SELECT * INTO known FROM mta.quarantine q WHERE q.address = lower(failed) FOR UPDATE;
    IF NOT FOUND THEN
        INSERT INTO mta.quarantine (address, status, errors, counted_at, reason, category, text, delivery_id, number,
                                    created_at, changed_at)
        VALUES (lower(failed), CASE WHEN is_hard OR most <= 1 THEN 4 ELSE 1 END, 1, failed_at, why, of_category, said,
                of_delivery, of_number, failed_at, failed_at)
        RETURNING status INTO new_status;
        RETURN new_status;
    END IF;
    counted := CASE
        WHEN known.counted_at IS NULL OR failed_at > known.counted_at + quiet THEN 1
        WHEN failed_at >= known.counted_at + every THEN known.errors + 1
        ELSE known.errors END;
    new_status := CASE WHEN known.status IN (3, 4, 5) THEN known.status WHEN is_hard OR counted >= most THEN 4 ELSE 1 END;
    UPDATE mta.quarantine q SET
        errors = counted, reason = why, category = of_category, text = said, delivery_id = of_delivery, number = of_number,
        counted_at = CASE WHEN counted <> known.errors OR known.counted_at IS NULL OR failed_at > known.counted_at + quiet
                          THEN failed_at ELSE known.counted_at END,
        status = new_status,
        changed_at = CASE WHEN new_status <> known.status THEN failed_at ELSE known.changed_at END,
        known_at = CASE WHEN new_status <> known.status THEN now() ELSE known.known_at END,
        changed_by = CASE WHEN new_status <> known.status THEN '' ELSE known.changed_by END
    -- Of what is not mailed the cause stays on record, not what came after it.
    WHERE q.address = known.address AND known.status NOT IN (3, 4);
    RETURN new_status;
END $$;

-- Each text of a failure once, as it is without addresses, numbers and names.
CREATE TABLE mta.failure_text (
    digest      bytea PRIMARY KEY CHECK (octet_length(digest) = 16),
    text        text NOT NULL,
    sample      text NOT NULL,                          -- the first, as it came
    stage       text NOT NULL DEFAULT '',
    provider    text NOT NULL DEFAULT '',               -- who said it first
    occurrences integer NOT NULL DEFAULT 0,             -- counted up to 100,000
    first_at    timestamptz NOT NULL,
    last_at     timestamptz NOT NULL,
    status      text NOT NULL DEFAULT 'to-qualify' CHECK (status IN ('to-qualify', 'keep', 'ignore')),
    -- As it is qualified: by the rules, or (status keep or ignore, qualified_by set) by an operator.
    type        smallint NOT NULL DEFAULT 0,
    reason      smallint NOT NULL DEFAULT 0,
    category    smallint NOT NULL DEFAULT 0,
    rule        text NOT NULL DEFAULT '',
    qualified_by text NOT NULL DEFAULT '',
    qualified_at timestamptz
);
CREATE INDEX failure_text_status ON mta.failure_text (status, occurrences);

-- What came back about a recipient, by its kind once: whatever is sent again later changes nothing.
CREATE TABLE mta.feedback (
    number      bigint NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('bounce', 'complaint', 'unsubscribe')),
    delivery_id bigint NOT NULL,
    at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (number, kind)
);
