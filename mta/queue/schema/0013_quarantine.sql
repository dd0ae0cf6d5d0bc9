-- Quarantine by hand, also from SQL (docs/api.md); where readers of the log begin; rules of counting are the program's.

DROP FUNCTION mta.address_failed(text, boolean, smallint, smallint, text, bigint, bigint, timestamptz, integer, interval,
                                 interval);

-- Sets addresses, or domains, by hand; answers how many were another, or were set by the rules.
CREATE FUNCTION mta.quarantine_set(addresses text[], new_status smallint, because text, by_whom text) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH given AS (
        SELECT DISTINCT lower(a) AS address FROM unnest(addresses) AS a
    ), done AS (
        INSERT INTO mta.quarantine AS q (address, status, reason, text, changed_by)
        -- Reasons of mta.model.outcome: denylisted, quarantined, error ignored.
        SELECT address, new_status, CASE new_status WHEN 3 THEN 8 WHEN 4 THEN 9 WHEN 5 THEN 25 ELSE 0 END, because, by_whom
        FROM given
        -- Nothing is to be known of whoever is mailed anyway.
        WHERE new_status <> 2 OR EXISTS (SELECT FROM mta.quarantine k WHERE k.address = given.address)
        ORDER BY address
        ON CONFLICT (address) DO UPDATE SET status = excluded.status, reason = excluded.reason, category = 0,
            text = excluded.text, errors = 0, counted_at = NULL, changed_at = now(), known_at = now(),
            changed_by = excluded.changed_by
        WHERE q.status <> excluded.status OR q.changed_by = ''
        RETURNING 1
    )
    SELECT count(*) FROM done
$$;

-- What is wrong with an address, or with the domain in @example.com; raises invalid_parameter_value.
CREATE FUNCTION mta.quarantine_checked(address text) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    fault text := mta.address_fault(CASE WHEN address LIKE '@%' THEN 'any' || address ELSE address END);
BEGIN
    IF address IS NULL OR fault IS NOT NULL THEN
        RAISE EXCEPTION 'address: %: %', left(address, 100), coalesce(fault, 'must not be null')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN lower(address);
END $$;

CREATE FUNCTION mta.quarantine_add(
    address text, status text DEFAULT 'quarantined', because text DEFAULT '', by_whom text DEFAULT session_user
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    number smallint := CASE status WHEN 'denylisted' THEN 3 WHEN 'quarantined' THEN 4 WHEN 'allowlisted' THEN 5 END;
BEGIN
    IF number IS NULL THEN
        RAISE EXCEPTION 'status: %: must be quarantined, denylisted or allowlisted', left(status, 100)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN mta.quarantine_set(ARRAY[mta.quarantine_checked(address)], number, coalesce(because, ''),
                              coalesce(nullif(by_whom, ''), session_user)) = 1;
END $$;

CREATE FUNCTION mta.quarantine_lift(address text, because text DEFAULT '', by_whom text DEFAULT session_user)
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT mta.quarantine_set(ARRAY[mta.quarantine_checked(address)], 2::smallint, coalesce(because, ''),
                              coalesce(nullif(by_whom, ''), session_user)) = 1
$$;

-- After a provider's outage: what its errors of that time put here is valid again. Chosen by a part of their text, by
-- domain, or both; what operators set stays.
CREATE FUNCTION mta.quarantine_outage(
    since timestamptz, until timestamptz, error_text text DEFAULT NULL, domain text DEFAULT NULL,
    by_whom text DEFAULT session_user
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lifted bigint;
BEGIN
    IF since IS NULL OR until IS NULL OR since >= until THEN
        RAISE EXCEPTION 'since, until: must be the begin and the end of a time' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF coalesce(error_text, '') = '' AND coalesce(domain, '') = '' THEN
        RAISE EXCEPTION 'outage: name a text, a domain, or both' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    WITH of_outage AS (
        SELECT q.address FROM mta.quarantine q
        WHERE q.status IN (1, 4) AND q.changed_by = '' AND strpos(q.address, '@') > 1
          AND (coalesce(error_text, '') = '' OR strpos(lower(q.text), lower(error_text)) > 0)
          AND (coalesce(domain, '') = '' OR substring(q.address FROM '[^@]*$') = lower(ltrim(domain, '@')))
          AND CASE q.status WHEN 4 THEN q.changed_at ELSE q.counted_at END >= since
          AND CASE q.status WHEN 4 THEN q.changed_at ELSE q.counted_at END < until
        ORDER BY q.address FOR UPDATE
    )
    UPDATE mta.quarantine q
    SET status = 2, errors = 0, counted_at = NULL, changed_at = now(), known_at = now(),
        changed_by = coalesce(nullif(by_whom, ''), session_user)
    FROM of_outage o WHERE q.address = o.address;
    GET DIAGNOSTICS lifted = ROW_COUNT;
    RETURN lifted;
END $$;

-- They run with their owner's rights; nobody has them unasked.
REVOKE ALL ON FUNCTION mta.quarantine_set(text[], smallint, text, text),
    mta.quarantine_add(text, text, text, text), mta.quarantine_lift(text, text, text),
    mta.quarantine_outage(timestamptz, timestamptz, text, text, text) FROM PUBLIC;

-- Of these addresses those that are not to be mailed, with the status that says so. Nearly always nobody is, and there
-- is no domain in quarantine; so what costs is one probe an address.
CREATE INDEX quarantine_domains ON mta.quarantine (address) WHERE strpos(address, '@') = 1;
CREATE OR REPLACE FUNCTION mta.not_mailed(addresses text[]) RETURNS TABLE (address text, status smallint)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    folded  text[] := ARRAY(SELECT lower(a) FROM unnest(addresses) AS a);
    found   text[] := ARRAY(SELECT q.address FROM mta.quarantine q WHERE q.address = ANY (folded) AND q.status IN (3, 4));
    domains text[] := '{}';
BEGIN
    IF EXISTS (SELECT FROM mta.quarantine q WHERE strpos(q.address, '@') = 1 AND q.status IN (3, 4)) THEN
        domains := ARRAY(
            SELECT q.address FROM mta.quarantine q
            WHERE strpos(q.address, '@') = 1 AND q.status IN (3, 4)
              AND q.address = ANY (ARRAY(SELECT DISTINCT '@' || split_part(a, '@', -1) FROM unnest(folded) AS a)));
    END IF;
    IF found = '{}' AND domains = '{}' THEN RETURN; END IF;
    RETURN QUERY
    SELECT a.address, CASE WHEN q.status IN (3, 4) THEN q.status ELSE d.status END
    FROM unnest(addresses) AS a (address)
    LEFT JOIN mta.quarantine d
        ON d.address = '@' || split_part(lower(a.address), '@', -1) AND d.address = ANY (domains)
    LEFT JOIN mta.quarantine q
        ON q.address = lower(a.address) AND (d.address IS NOT NULL OR q.address = ANY (found))
    WHERE q.status IN (3, 4) OR (q.status IS DISTINCT FROM 5 AND d.status IS NOT NULL);
END $$;

-- Whoever appends: recipients that are not to be mailed have their outcome at once, in the same transaction.
CREATE OR REPLACE FUNCTION mta.exclude_appended() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    not_mailed  text[];
    statuses    smallint[];
BEGIN
    IF NOT EXISTS (SELECT FROM mta.quarantine WHERE status IN (3, 4))
       OR NOT EXISTS (SELECT FROM fresh WHERE append_id IS NOT NULL) THEN RETURN NULL; END IF;
    SELECT array_agg(n.address), array_agg(n.status) INTO not_mailed, statuses
    FROM mta.not_mailed(ARRAY(
        SELECT r ->> 0
        FROM fresh f JOIN mta.delivery d ON d.id = f.delivery_id AND NOT d.keeps_quarantined,
             jsonb_array_elements(convert_from(f.recipients, 'UTF8')::jsonb) AS r
        WHERE f.append_id IS NOT NULL
    )) n;
    IF not_mailed IS NULL THEN RETURN NULL; END IF;
    WITH hit AS MATERIALIZED (
        SELECT f.id, f.delivery_id, f.append_id, f.count, (r.ord - 1)::smallint AS position,
               r.recipient ->> 0 AS address, r.recipient ->> 1 AS reference, n.status
        FROM fresh f JOIN mta.delivery d ON d.id = f.delivery_id AND NOT d.keeps_quarantined,
             jsonb_array_elements(convert_from(f.recipients, 'UTF8')::jsonb) WITH ORDINALITY AS r (recipient, ord)
        JOIN (SELECT DISTINCT * FROM unnest(not_mailed, statuses) AS u (address, status)) n
            ON n.address = r.recipient ->> 0
        WHERE f.append_id IS NOT NULL
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

-- Readers ask for the newest lines each second: ranges of blocks are not summarised by then, and are read whole each time.
-- Transactions only grow and have many lines each, so this costs some eight bytes a line and a microsecond.
DROP INDEX mta.delivery_log_tx;
CREATE INDEX delivery_log_tx ON mta.delivery_log (tx) WHERE tx IS NOT NULL;

-- The keeper begins where lines began to have their transaction, not with the first one of the server.
INSERT INTO mta.log_pointer (name, tx)
SELECT 'failures', here - ((here - begun) & 4294967295) - 1
FROM (SELECT pg_current_xact_id()::text::bigint AS here, xmin::text::bigint AS begun
      FROM mta.schema_migration WHERE version = 11) m
ON CONFLICT (name) DO NOTHING;
