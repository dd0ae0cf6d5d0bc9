-- People ask for an address as they read it; its case is no part of that, as in the quarantine. One index in the place
-- of the other: a line costs what it did.
DROP INDEX mta.delivery_log_address;
CREATE INDEX delivery_log_address ON mta.delivery_log (lower(address));
