-- Daily partitions of the log (UTC days), made ahead of time and dropped whole.

-- Makes the partition of one day; false when it is there already. Rows that went to the default partition
-- meanwhile move over, so that it is never too late. Attaching, unlike CREATE ... PARTITION OF, lets writers
-- of other partitions go on.
CREATE FUNCTION mta.create_log_partition(day date) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    partition   text := 'delivery_log_' || to_char(day, 'YYYYMMDD');
    day_begin   timestamptz := day::timestamptz;
    day_end     timestamptz := (day + 1)::timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('mta.create_log_partition', 0));
    IF to_regclass(format('mta.%I', partition)) IS NOT NULL THEN
        RETURN false;
    END IF;
    LOCK TABLE mta.delivery_log_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('CREATE TABLE mta.%I (LIKE mta.delivery_log INCLUDING DEFAULTS,'
                   ' CONSTRAINT %I CHECK (at >= %L AND at < %L))', partition, partition || '_day', day_begin, day_end);
    EXECUTE format('WITH moved AS (DELETE FROM mta.delivery_log_default WHERE at >= %L AND at < %L RETURNING *)'
                   ' INSERT INTO mta.%I SELECT * FROM moved', day_begin, day_end, partition);
    EXECUTE format('ALTER TABLE mta.delivery_log ATTACH PARTITION mta.%I FOR VALUES FROM (%L) TO (%L)',
                   partition, day_begin, day_end);
    EXECUTE format('ALTER TABLE mta.%I DROP CONSTRAINT %I', partition, partition || '_day');
    RETURN true;
END $$;

-- All daily partitions, oldest first; the default partition has no day.
CREATE VIEW mta.log_partition AS
SELECT c.relname::text AS name,
       CASE WHEN c.relname ~ '^delivery_log_\d{8}$' THEN to_date(right(c.relname, 8), 'YYYYMMDD') END AS day,
       pg_total_relation_size(c.oid) AS size_bytes,
       greatest(c.reltuples, 0)::bigint AS rows_estimated
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'mta.delivery_log'::regclass
ORDER BY day NULLS FIRST;

-- Drops every daily partition that ends on or before the beginning of the given day; answers their names.
CREATE FUNCTION mta.drop_log_partitions(before date) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    partition text;
BEGIN
    FOR partition IN SELECT name FROM mta.log_partition WHERE day < before ORDER BY day LOOP
        EXECUTE format('DROP TABLE mta.%I', partition);
        RETURN NEXT partition;
    END LOOP;
END $$;
