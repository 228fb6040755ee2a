-- When somebody told a worker to hand its sessions over and to take none, by the catalog's clock, and who; null of one that takes sessions.
ALTER TABLE workers ADD COLUMN drain_at BIGINT;
ALTER TABLE workers ADD COLUMN drain_by TEXT;
