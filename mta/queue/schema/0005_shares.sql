-- Shares of limits between nodes: who takes part, and what each holds of each limit.

-- One row a node name, of its latest run. is_bound: it lets through no more than its shares; a node that is alone is not.
CREATE TABLE mta.limit_node (
    name       text PRIMARY KEY,
    run        bigint NOT NULL REFERENCES mta.node,
    egress_ids integer[] NOT NULL,                      -- of all its pools
    is_bound   boolean NOT NULL
);

-- kind: c connections open, p the same on one path, m messages, b bytes, o connections begun, in so many seconds.
CREATE TABLE mta.limit_share (
    key    text NOT NULL,                               -- of the limit, see mta.traffic.rules.limit_key
    kind   text NOT NULL,
    node   text NOT NULL REFERENCES mta.limit_node ON DELETE CASCADE,
    most   bigint NOT NULL,                             -- the limit, as the node knows it
    share  bigint NOT NULL CHECK (share >= 0),
    wanted bigint NOT NULL,
    PRIMARY KEY (key, kind, node)
) WITH (fillfactor = 50);
CREATE INDEX limit_share_node ON mta.limit_share (node);
