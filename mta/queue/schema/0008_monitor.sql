-- Figures for the operator: volume in the log, messages and bytes by the minute, errors by path, alerts.

-- Size of the message as it was sent; 0: none of its content was written.
ALTER TABLE mta.delivery_log ADD bytes integer NOT NULL DEFAULT 0;

-- A day's rows stand nearly in the order of their times, so a summary of each few pages finds an hour; it costs a
-- write next to nothing, where a B-tree would be as large as the two indexes that there are.
CREATE INDEX delivery_log_at ON mta.delivery_log USING brin (at) WITH (pages_per_range = 32, autosummarize = on);
-- What went wrong lately, without a look at all that went well; paid for by those lines only.
CREATE INDEX delivery_log_trouble ON mta.delivery_log (at) WHERE status NOT IN (1, 5);

-- How much left by the minute, node and egress (empty: decided without a session); moved in the transaction of the
-- log. Counts are attempts by their status (mta.model.outcome); each node moves rows of its own.
CREATE TABLE mta.traffic_minute (
    minute          timestamptz NOT NULL,
    node            text NOT NULL,
    egress          text NOT NULL,
    delivered       bigint NOT NULL DEFAULT 0,
    failed          bigint NOT NULL DEFAULT 0,
    expired         bigint NOT NULL DEFAULT 0,
    cancelled       bigint NOT NULL DEFAULT 0,
    simulated       bigint NOT NULL DEFAULT 0,
    deferred        bigint NOT NULL DEFAULT 0,
    in_doubt        bigint NOT NULL DEFAULT 0,
    bytes_delivered bigint NOT NULL DEFAULT 0,
    bytes_other     bigint NOT NULL DEFAULT 0,          -- content that was written and not accepted
    PRIMARY KEY (minute, node, egress)
) WITH (fillfactor = 50);

-- Each alert once: its key says what it is about.
CREATE TABLE mta.alert (
    key         text PRIMARY KEY,
    kind        text NOT NULL,                          -- mta.queue.monitor.AlertKind
    delivery_id bigint NOT NULL,
    detail      text NOT NULL,
    raised_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX alert_raised ON mta.alert (raised_at);
