-- When the newest conversation that a job records started, by the clock of the events' sender: an end that is
-- older is of an earlier one.
ALTER TABLE jobs ADD COLUMN conversation_at BIGINT NOT NULL DEFAULT 0;
-- The state in which a job was parked: a replay goes back there.
ALTER TABLE jobs ADD COLUMN parked_from TEXT;
