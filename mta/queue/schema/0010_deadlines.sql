-- When a delivery should be done. Nothing ends then (that is its validity): it only goes before others as the time nears.
ALTER TABLE mta.delivery ADD deadline timestamptz;
