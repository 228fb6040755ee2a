-- Which making of the archive its file is: media that came late was added since the first.
ALTER TABLE archives ADD COLUMN revision BIGINT NOT NULL DEFAULT 1;
-- How far the log was read of which the archive was made; null of archives of earlier versions.
ALTER TABLE archives ADD COLUMN log TEXT;
