-- Who has a worker's name: the data folder's own id, since when, and until when nobody else may have the name.
CREATE TABLE workers (
    worker_id        TEXT PRIMARY KEY,
    instance_id      TEXT NOT NULL,
    since            BIGINT NOT NULL,
    lease_expires_at BIGINT NOT NULL
);
