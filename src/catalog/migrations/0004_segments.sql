-- Whether the store may still hold an archive's segments: they are kept for a while, to make the archive again.
ALTER TABLE archives ADD COLUMN segments_kept BIGINT NOT NULL DEFAULT 1;
CREATE INDEX archives_by_segments ON archives (segments_kept, updated_at);
