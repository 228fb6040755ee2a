-- How often the archive was made. It is made again when more of its media comes.
ALTER TABLE archives ADD COLUMN revision BIGINT NOT NULL DEFAULT 1;
-- How far its log was read when it was made, as JSON; null of archives of earlier versions.
ALTER TABLE archives ADD COLUMN log_read TEXT;
