-- A job whose session has no stream yet waits. It is its session's job all the same.
DROP INDEX jobs_active_session;
CREATE UNIQUE INDEX jobs_active_session ON jobs (application_id, session_id, tag) WHERE state IN ('accepted', 'capturing', 'waiting');
