-- Owners that stop, with the jobs that they offered to other workers, until all that they captured is in the store. A job whose newest owner is
-- among them may be claimed by any worker.
CREATE TABLE offers (
    job_id    TEXT NOT NULL,
    epoch     BIGINT NOT NULL,
    worker_id TEXT NOT NULL,
    PRIMARY KEY (job_id, epoch)
);
-- The newest epoch that has media of every track.
ALTER TABLE jobs ADD COLUMN captured_by BIGINT;
-- The region whose jobs a worker takes; null while it takes none.
ALTER TABLE workers ADD COLUMN takes TEXT;
