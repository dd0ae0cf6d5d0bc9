-- A database can go back in time: a failover to an asynchronous standby or a restore takes away what was acknowledged.
-- An epoch is the time from one such moment to the next. Nothing is claimed in it before every node that was alive has
-- held its journal against the database ("reconciled"), so that nobody sends what another node has sent.
CREATE TABLE mta.epoch (
    id                bigint PRIMARY KEY,
    system_identifier bigint NOT NULL,                      -- of the server (pg_control_system), and
    timeline          integer NOT NULL,                     -- that of its write-ahead log: one more with each promotion
    began_at          timestamptz NOT NULL DEFAULT now(),
    as_of             timestamptz NOT NULL,                 -- the last heartbeat of a node that the database knew then
    cause             text NOT NULL,
    opened_at         timestamptz                           -- null: nothing may be claimed yet
);
INSERT INTO mta.epoch (id, system_identifier, timeline, as_of, cause, opened_at)
SELECT 1, system_identifier, ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int, now(), 'installed', now()
FROM pg_control_system();

-- The nodes that an epoch waits for: those that had a run when it began. confirmed_at: its journals are reconciled;
-- waived_at: an operator said that it will not come back.
CREATE TABLE mta.epoch_node (
    epoch        bigint NOT NULL REFERENCES mta.epoch,
    node         text NOT NULL,
    confirmed_at timestamptz,
    waived_at    timestamptz,
    PRIMARY KEY (epoch, node)
);

-- In which epoch a run began. It may claim in no other.
ALTER TABLE mta.node ADD COLUMN epoch bigint NOT NULL DEFAULT 1 REFERENCES mta.epoch;
ALTER TABLE mta.node ALTER COLUMN epoch DROP DEFAULT;
