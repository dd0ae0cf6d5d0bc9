-- Every table has a replica identity, so that a publication FOR ALL TABLES (a logical upgrade, change data capture)
-- does not make the server refuse updates and deletes. And a run says that it drains.

-- The log and the list of doubts are written once; what is settled of a part is inserted and deleted with the part.
-- None of them has a key, and one would cost an index on each line. What changes all the same (texts that are qualified
-- anew, lines that move from the default partition) is then told with the whole old row. Without logical replication
-- that costs nothing.
ALTER TABLE mta.part_settled REPLICA IDENTITY FULL;
ALTER TABLE mta.in_doubt REPLICA IDENTITY FULL;
ALTER TABLE mta.delivery_log REPLICA IDENTITY FULL;
DO $$
DECLARE
    leaf regclass;
BEGIN
    FOR leaf IN SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent = 'mta.delivery_log'::regclass LOOP
        EXECUTE format('ALTER TABLE %s REPLICA IDENTITY FULL', leaf);
    END LOOP;
END $$;

-- As before, but for the identity: LIKE does not copy it.
CREATE OR REPLACE FUNCTION mta.create_log_partition(day date) RETURNS boolean
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
    EXECUTE format('ALTER TABLE mta.%I REPLICA IDENTITY FULL', partition);
    EXECUTE format('WITH moved AS (DELETE FROM mta.delivery_log_default WHERE at >= %L AND at < %L RETURNING *)'
                   ' INSERT INTO mta.%I SELECT * FROM moved', day_begin, day_end, partition);
    EXECUTE format('ALTER TABLE mta.delivery_log ATTACH PARTITION mta.%I FOR VALUES FROM (%L) TO (%L)',
                   partition, day_begin, day_end);
    EXECUTE format('ALTER TABLE mta.%I DROP CONSTRAINT %I', partition, partition || '_day');
    RETURN true;
END $$;

ALTER TABLE mta.node ADD COLUMN draining_since timestamptz;  -- told to stop: it finishes what is on the wire
