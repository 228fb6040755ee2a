-- What operators list without a filter: archives, jobs and parked events by time; one reason's parked events.
CREATE INDEX archives_by_time ON archives (created_at DESC, archive_id);
CREATE INDEX archives_by_status ON archives (status, created_at DESC);
CREATE INDEX jobs_by_time ON jobs (created_at DESC);
CREATE INDEX parked_by_job ON parked (job_id);
CREATE INDEX parked_by_fault ON parked (fault, last_at DESC);
