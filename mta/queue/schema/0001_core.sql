-- The queue, the record and the meeting point of nodes.
--
-- Rules of the house: a part is inserted once and deleted when each of its recipients is settled;
-- no row per recipient is ever updated; the log is append-only and partitioned by time.

CREATE TABLE mta.installation (
    id          smallint PRIMARY KEY CHECK (id = 1),
    -- Signs return paths (VERP), so that bounces can be told from forgeries. Never leaves the database in a log.
    verp_key    bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now()
);
INSERT INTO mta.installation (id, verp_key)
VALUES (1, uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));

-- One row per run of a daemon. Its id is the fencing token: parts are leased to it, and a run that was
-- declared dead (ended_at set) can neither claim nor settle any more. alive_until is renewed by the
-- living run; only the database's clock is ever compared with it.
CREATE TABLE mta.node (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name        text NOT NULL,
    boot_id     text NOT NULL,
    started_at  timestamptz NOT NULL DEFAULT now(),
    alive_until timestamptz NOT NULL,
    ended_at    timestamptz,
    -- Number of the last settlement; moved in its transaction, so that after a lost connection it is known
    -- whether the commit took place.
    settled     bigint NOT NULL DEFAULT 0
);
CREATE INDEX node_living ON mta.node (alive_until) WHERE ended_at IS NULL;

CREATE TABLE mta.delivery (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name            text NOT NULL CHECK (name <> ''),
    state           text NOT NULL DEFAULT 'editing'
                    CHECK (state IN ('editing', 'running', 'paused', 'cancelled', 'finished')),
    sealed          boolean NOT NULL DEFAULT false,     -- true: nothing more will be appended
    priority        smallint NOT NULL DEFAULT 2 CHECK (priority BETWEEN 0 AND 4),
    weight          integer NOT NULL DEFAULT 1 CHECK (weight BETWEEN 1 AND 1000),
    egress_pool     text NOT NULL DEFAULT 'default',
    in_doubt_policy text NOT NULL DEFAULT 'resend' CHECK (in_doubt_policy IN ('resend', 'hold')),
    content         bytea NOT NULL,                     -- message content as JSON, see mta.message.content
    part_recipients integer NOT NULL DEFAULT 0 CHECK (part_recipients BETWEEN 0 AND 10000),  -- 0: automatic
    retry           jsonb,                              -- null: the default schedule
    starts_at       timestamptz,                        -- null: as soon as it is started
    validity        interval NOT NULL DEFAULT '5 days' CHECK (validity > '0 seconds'),
    created_at      timestamptz NOT NULL DEFAULT now(),
    started_at      timestamptz,
    valid_until     timestamptz,                        -- set when started: its start + validity
    ended_at        timestamptz,
    CHECK (state = 'editing' OR valid_until IS NOT NULL)
);
CREATE INDEX delivery_active ON mta.delivery (id) WHERE state IN ('running', 'cancelled') AND ended_at IS NULL;

-- One row per part appended; outlives the part, so that the same key again is the same answer for ever.
CREATE SEQUENCE mta.append_id;
CREATE TABLE mta.delivery_append (
    delivery_id bigint NOT NULL REFERENCES mta.delivery,
    key         text NOT NULL CHECK (key <> '' AND length(key) <= 200),
    append_id   bigint NOT NULL UNIQUE DEFAULT nextval('mta.append_id'),
    recipients  integer NOT NULL,
    digest      bytea NOT NULL,                         -- SHA-256 of fields and recipients as stored
    appended_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (delivery_id, key)
);

CREATE TABLE mta.delivery_part (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_id bigint NOT NULL REFERENCES mta.delivery,
    due_at      timestamptz NOT NULL DEFAULT now(),
    site        text,                                   -- known for surplus and deferrals, else null
    attempt     smallint NOT NULL DEFAULT 0,            -- attempts already made for these recipients
    held        boolean NOT NULL DEFAULT false,         -- in doubt under policy hold: waits for an operator
    appended_at timestamptz NOT NULL DEFAULT now(),     -- of the first append: basis of the Date header
    append_id   bigint,                                 -- number of recipient i is append_id << 16 | i,
    numbers     bigint[],                               -- or stands here (deferrals, surplus)
    fields      text[] NOT NULL,                        -- names of the merge values, in their order
    count       integer NOT NULL CHECK (count BETWEEN 1 AND 10000),
    -- JSON, UTF-8: [["ann@example.com", "reference" or null, ["value", ...]], ...]
    recipients  bytea NOT NULL,
    owner       bigint REFERENCES mta.node,             -- null: free; else leased to that run
    CHECK ((append_id IS NULL) <> (numbers IS NULL)),
    CHECK (numbers IS NULL OR cardinality(numbers) = count)
);
-- Stored as it is: it is short-lived, and compressing it costs more than writing it.
ALTER TABLE mta.delivery_part ALTER COLUMN recipients SET STORAGE EXTERNAL;
CREATE INDEX delivery_part_claim ON mta.delivery_part (delivery_id, due_at, id) WHERE owner IS NULL AND NOT held;
CREATE INDEX delivery_part_owner ON mta.delivery_part (owner) WHERE owner IS NOT NULL;
CREATE INDEX delivery_part_held ON mta.delivery_part (delivery_id) WHERE held;

-- Which recipients (positions) of a leased part are settled already. Written in the same transaction as
-- what settled them, deleted with the part; so a crash finds exactly what is left.
CREATE TABLE mta.part_settled (
    part_id   bigint NOT NULL,
    positions smallint[] NOT NULL
);
CREATE INDEX part_settled_part ON mta.part_settled (part_id);

-- The record: one row per recipient and attempt. status and reason: mta.model.outcome.
CREATE TABLE mta.delivery_log (
    at          timestamptz NOT NULL,
    delivery_id bigint NOT NULL,
    number      bigint NOT NULL,                        -- the recipient's number
    part_id     bigint NOT NULL,
    attempt     smallint NOT NULL,                      -- 1 for the first; 0: decided without an attempt
    status      smallint NOT NULL,
    reason      smallint NOT NULL,
    code        smallint NOT NULL,                      -- SMTP reply code; 0: no reply
    enhanced    text NOT NULL,
    address     text NOT NULL,
    reference   text,
    site        text NOT NULL,
    mx_host     text NOT NULL,
    peer        text NOT NULL,                          -- address of the host
    egress      text NOT NULL,
    reply       text NOT NULL
) PARTITION BY RANGE (at);
CREATE TABLE mta.delivery_log_default PARTITION OF mta.delivery_log DEFAULT;
CREATE INDEX delivery_log_recipient ON mta.delivery_log (delivery_id, number);
CREATE INDEX delivery_log_address ON mta.delivery_log (address);

-- Every message that was ever in doubt, whatever became of it then.
CREATE TABLE mta.in_doubt (
    at          timestamptz NOT NULL DEFAULT now(),
    delivery_id bigint NOT NULL,
    number      bigint NOT NULL,
    part_id     bigint NOT NULL,
    attempt     smallint NOT NULL,
    address     text NOT NULL,
    mx_host     text NOT NULL,
    peer        text NOT NULL,
    policy      text NOT NULL,
    cause       text NOT NULL
);
CREATE INDEX in_doubt_delivery ON mta.in_doubt (delivery_id, number);

-- Counters of a delivery, moved in the same transaction as the log. What was appended is the sum of
-- delivery_append: an application's open transaction must never block the outcomes of others.
CREATE TABLE mta.delivery_stats (
    delivery_id bigint PRIMARY KEY,
    delivered   bigint NOT NULL DEFAULT 0,
    failed      bigint NOT NULL DEFAULT 0,
    expired     bigint NOT NULL DEFAULT 0,
    cancelled   bigint NOT NULL DEFAULT 0,
    deferrals   bigint NOT NULL DEFAULT 0,              -- attempts that ended in a deferral
    in_doubt    bigint NOT NULL DEFAULT 0               -- attempts that ended in doubt
) WITH (fillfactor = 50);

-- Credits used, in buckets of time, so that a limit holds across restarts (bucket: unix time / width).
CREATE TABLE mta.quota_counter (
    node        text NOT NULL,
    key         text NOT NULL,
    bucket      bigint NOT NULL,
    used        integer NOT NULL,
    PRIMARY KEY (node, key, bucket)
);
