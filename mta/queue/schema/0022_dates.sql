-- The Date header says when a message was first handed out, and says so in every attempt.

-- Null: not handed out yet. Set by whoever puts a recipient that was handed out into a new part.
ALTER TABLE mta.delivery_part ADD COLUMN dated_at timestamptz;
COMMENT ON COLUMN mta.delivery_part.dated_at IS 'of the first hand-out: the Date header; null: there was none yet';
COMMENT ON COLUMN mta.delivery_part.appended_at IS 'of the first append, or of its wave';

-- What was attempted before keeps the Date that it had.
UPDATE mta.delivery_part p SET dated_at = greatest(p.appended_at, d.started_at)
FROM mta.delivery d WHERE d.id = p.delivery_id AND p.attempt > 0;
