-- Times are microseconds of UTC since 1970, ids and JSON are text: the same on SQLite and PostgreSQL.
CREATE TABLE jobs (
    job_id           TEXT PRIMARY KEY,
    archive_id       TEXT NOT NULL UNIQUE,
    session_id       TEXT NOT NULL,
    application_id   TEXT NOT NULL,
    region           TEXT NOT NULL,
    event            TEXT NOT NULL,
    state            TEXT NOT NULL,
    origin           BIGINT NOT NULL,
    owner            TEXT,
    lease_expires_at BIGINT NOT NULL DEFAULT 0,
    epoch            BIGINT NOT NULL DEFAULT 0,
    end_reason       TEXT,
    fault            TEXT,
    detail           TEXT,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL
);
-- One conversation of a session at a time.
CREATE UNIQUE INDEX jobs_active_session ON jobs (application_id, session_id) WHERE state IN ('accepted', 'capturing');
CREATE INDEX jobs_by_state ON jobs (state, lease_expires_at);
CREATE INDEX jobs_by_session ON jobs (session_id);

CREATE TABLE job_history (
    job_id TEXT NOT NULL,
    at     BIGINT NOT NULL,
    what   TEXT NOT NULL,
    who    TEXT NOT NULL
);
CREATE INDEX job_history_by_job ON job_history (job_id, at);

CREATE TABLE archives (
    archive_id     TEXT PRIMARY KEY,
    job_id         TEXT NOT NULL,
    session_id     TEXT NOT NULL,
    application_id TEXT NOT NULL,
    name           TEXT,
    status         TEXT NOT NULL,
    reason         TEXT NOT NULL DEFAULT '',
    output_mode    TEXT NOT NULL,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL,
    duration_s     BIGINT NOT NULL DEFAULT 0,
    size           BIGINT NOT NULL DEFAULT 0,
    sha256         TEXT NOT NULL DEFAULT '',
    object_key     TEXT,
    document       TEXT NOT NULL DEFAULT '{}'
);
CREATE INDEX archives_newest ON archives (application_id, created_at DESC);
CREATE INDEX archives_by_session ON archives (session_id, created_at DESC);

CREATE TABLE parked (
    parked_id   TEXT PRIMARY KEY,
    job_id      TEXT,
    fault       TEXT NOT NULL,
    detail      TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    body        TEXT NOT NULL,
    state       TEXT NOT NULL,
    times       BIGINT NOT NULL,
    first_at    BIGINT NOT NULL,
    last_at     BIGINT NOT NULL,
    history     TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX parked_by_state ON parked (state, last_at DESC);
