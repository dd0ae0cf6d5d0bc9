-- Event streams: how far each has told what the log has, and how it fares.

CREATE TABLE mta.event_stream (
    name        text PRIMARY KEY CHECK (name <> ''),
    -- The last line that its sink has acknowledged, by the order in which lines are told. A transaction may have more
    -- lines than fit into memory, or into a batch; so a place within it, other than mta.log_pointer.
    tx          bigint NOT NULL,
    at          timestamptz NOT NULL,
    number      bigint NOT NULL,
    attempt     smallint NOT NULL,
    status      smallint NOT NULL,
    turn        integer NOT NULL DEFAULT 1,             -- one more each time that an operator sets the place
    events      bigint NOT NULL DEFAULT 0,              -- acknowledged, repeats included
    state       text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'retrying', 'stopped')),
    error       text NOT NULL DEFAULT '',               -- while it is not running
    failing_since timestamptz,
    batch       text NOT NULL DEFAULT '',               -- that the sink does not take
    skip        text NOT NULL DEFAULT '',               -- the batch that an operator gave up
    moved_at    timestamptz NOT NULL DEFAULT now(),
    created_at  timestamptz NOT NULL DEFAULT now()
);
