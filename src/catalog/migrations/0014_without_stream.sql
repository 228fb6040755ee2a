-- When the room of a job that waits for its first stream was last seen without one, by the catalog's clock; null of jobs that never waited.
ALTER TABLE jobs ADD COLUMN without_stream_at BIGINT;
