-- Refusals of paths, and errors by recipient domain over all nodes.

-- A path (egress, address of an MX host) that refused recipients, as a node has seen it. Their outcomes are elsewhere:
-- they went by other paths, or were deferred.
CREATE TABLE mta.path_refusal (
    node        text NOT NULL,
    egress      text NOT NULL,
    peer        text NOT NULL,
    mx_host     text NOT NULL,
    site        text NOT NULL,
    scope       text NOT NULL,      -- what the refusal is about: egress, transport, route
    stage       text NOT NULL,
    code        integer NOT NULL,
    enhanced    text NOT NULL,
    reply       text NOT NULL,      -- the last
    category    smallint NOT NULL,
    refused     bigint NOT NULL,    -- recipients that met a refusal since the path was good
    since       timestamptz NOT NULL DEFAULT now(),
    last_at     timestamptz NOT NULL DEFAULT now(),
    rests_until timestamptz,        -- null: it is good again
    PRIMARY KEY (node, egress, peer)
);

-- What a node has attempted of a recipient domain lately, and what of it were errors. Nodes add their figures up here.
CREATE TABLE mta.error_rate (
    domain   text NOT NULL,
    node     text NOT NULL,
    within_s integer NOT NULL,      -- the time that is counted over
    messages bigint NOT NULL,
    errors   bigint NOT NULL,
    told_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (domain, node)
);
CREATE INDEX error_rate_told ON mta.error_rate (told_at);
