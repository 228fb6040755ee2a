-- The media that an archive lacks, as JSON: an empty list of one that is complete. Not known of archives that are not made, and of
-- those that were made by earlier versions.
ALTER TABLE archives ADD COLUMN missing TEXT;
