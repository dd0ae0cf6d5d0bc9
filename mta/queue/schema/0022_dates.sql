-- When the messages of a part first went out: their Date, the same in every attempt (RFC 5322 §3.6.1). It is set when the
-- part is first claimed, and taken back when what was never begun returns to the queue.
ALTER TABLE mta.delivery_part ADD COLUMN dated_at timestamptz;

-- What was attempted before keeps the Date that it had.
UPDATE mta.delivery_part p SET dated_at = greatest(p.appended_at, d.started_at)
FROM mta.delivery d WHERE d.id = p.delivery_id AND (p.attempt > 0 OR p.held OR p.owner IS NOT NULL);
