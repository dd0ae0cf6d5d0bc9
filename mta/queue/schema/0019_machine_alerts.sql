-- Alerts about a node's own machine: an address that is absent, no route, no files. One for each egress and cause.
ALTER TABLE mta.alert
    ADD node        text NOT NULL DEFAULT '',           -- whose machine
    ADD cause       text NOT NULL DEFAULT '';           -- mta.model.machine_fault.FaultCause
DROP INDEX mta.alert_open;
CREATE UNIQUE INDEX alert_open ON mta.alert (kind, egress, sender, site, category, node, cause)
    WHERE delivery_id IS NULL AND ended_at IS NULL;
