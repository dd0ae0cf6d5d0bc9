-- What mail came back and left no line in the log, and what was answered to whom brought it.
CREATE TABLE mta.inbound_count (
    day   date NOT NULL,
    what  text NOT NULL,
    count bigint NOT NULL,
    PRIMARY KEY (day, what)
);
