-- Archives of one session side by side: each has a tag of its own; automatic ones and those without one have none.
ALTER TABLE jobs ADD COLUMN tag TEXT NOT NULL DEFAULT '';
DROP INDEX jobs_active_session;
CREATE UNIQUE INDEX jobs_active_session ON jobs (application_id, session_id, tag) WHERE state IN ('accepted', 'capturing');

-- How many archives an application has that are not deleted: counting 100,000 for each list takes too long.
CREATE TABLE archive_counts (
    application_id TEXT PRIMARY KEY,
    archives       BIGINT NOT NULL
);
INSERT INTO archive_counts (application_id, archives)
    SELECT application_id, COUNT(*) FROM archives WHERE status <> 'deleted' GROUP BY application_id;
CREATE INDEX archives_of_session ON archives (application_id, session_id, created_at DESC, archive_id);
DROP INDEX archives_newest;
CREATE INDEX archives_newest ON archives (application_id, created_at DESC, archive_id) WHERE status <> 'deleted';

-- An archive's changes of status are numbered; the status before the last write says whether that was one.
ALTER TABLE archives ADD COLUMN changes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE archives ADD COLUMN status_before TEXT;

-- Who may ask: an application or project, with the keys that it signs its requests with, as JSON.
CREATE TABLE applications (
    application_id  TEXT PRIMARY KEY,
    kind            TEXT NOT NULL,
    name            TEXT NOT NULL,
    keys            TEXT NOT NULL,
    callback_url    TEXT,
    callback_secret TEXT,
    created_at      BIGINT NOT NULL,
    updated_at      BIGINT NOT NULL
);

-- Sessions that the API made. `conversation` numbers the starts that were told of; 0 is before the first.
CREATE TABLE sessions (
    session_id     TEXT PRIMARY KEY,
    application_id TEXT NOT NULL,
    media_mode     TEXT NOT NULL,
    archive_mode   TEXT NOT NULL,
    e2ee           BIGINT NOT NULL,
    location       TEXT,
    region         TEXT NOT NULL,
    router         TEXT,
    room           TEXT,
    room_access    TEXT,
    archive        TEXT NOT NULL,
    conversation   BIGINT NOT NULL DEFAULT 0,
    classes        TEXT NOT NULL DEFAULT '{}',
    created_at     BIGINT NOT NULL
);
CREATE UNIQUE INDEX sessions_by_room ON sessions (router, room);

-- What is to be told of each change of an archive's status: by callback to the application, and as an event. `number` is that
-- of the change. Each archive's are told in order; for one that is being told, `due_at` is until when nobody else does.
CREATE TABLE notices (
    archive_id     TEXT NOT NULL,
    target         TEXT NOT NULL,
    number         BIGINT NOT NULL,
    application_id TEXT NOT NULL,
    status         TEXT NOT NULL,
    archive        TEXT NOT NULL,
    state          TEXT NOT NULL,
    failures       BIGINT NOT NULL DEFAULT 0,
    first_at       BIGINT NOT NULL DEFAULT 0,
    due_at         BIGINT NOT NULL,
    detail         TEXT,
    created_at     BIGINT NOT NULL,
    updated_at     BIGINT NOT NULL,
    PRIMARY KEY (archive_id, target, number)
);
CREATE INDEX notices_due ON notices (target, state, due_at);
CREATE INDEX notices_old ON notices (state, updated_at);
CREATE INDEX notices_newest ON notices (created_at DESC, archive_id);

-- Secrets that all processes of a deployment share and nobody needs to know, such as that of the store's links.
CREATE TABLE secrets (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

-- Archives that are to be made of others: parts, and new compositions. One that is being made has a time until which nobody
-- else makes it.
CREATE TABLE remakes (
    archive_id TEXT PRIMARY KEY,
    source_id  TEXT NOT NULL,
    what       TEXT NOT NULL,
    state      TEXT NOT NULL,
    due_at     BIGINT NOT NULL,
    tries      BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL
);
CREATE INDEX remakes_due ON remakes (state, due_at);
