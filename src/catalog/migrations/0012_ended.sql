-- When a job's capture had ended, by the catalog's clock; null before that, and of jobs of earlier versions.
ALTER TABLE jobs ADD COLUMN ended_at BIGINT;
