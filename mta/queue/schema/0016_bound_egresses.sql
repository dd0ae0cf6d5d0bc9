-- Shares of limits: where nodes have different egresses, and where a share can be too small to be of use.

-- The egresses of which a node keeps to shares. On another it may use all of every limit.
ALTER TABLE mta.limit_node ADD COLUMN bound_ids integer[] NOT NULL DEFAULT '{}';

-- Of less than so much of a limit the node can make no use: of bytes, one message's.
ALTER TABLE mta.limit_share ADD COLUMN least bigint NOT NULL DEFAULT 1;
