-- Version 2: many watched folders, retries, profiles, and what a job cost in energy.
ALTER TABLE job ADD COLUMN outbox BLOB;               -- the folder for its video; NULL: the configured one
ALTER TABLE job ADD COLUMN retry_of INTEGER REFERENCES job(id) ON DELETE SET NULL;
ALTER TABLE job ADD COLUMN settings_us INTEGER;       -- when a late sidecar was read; NULL: with `created_us`
ALTER TABLE job ADD COLUMN profile TEXT;
ALTER TABLE job ADD COLUMN gpu_uuid TEXT;
ALTER TABLE job ADD COLUMN gpu_name TEXT;
ALTER TABLE job ADD COLUMN driver TEXT;
ALTER TABLE job ADD COLUMN energy_mj INTEGER;         -- of the whole board, from the start of the last attempt to its end
ALTER TABLE job ADD COLUMN energy_method TEXT CHECK (energy_method IN ('counter', 'sampled'));
ALTER TABLE stage ADD COLUMN energy_mj INTEGER;
-- How many jobs a user has open is asked with every submission; without this every row with its settings is read for it.
CREATE INDEX job_from_bus ON job (owner_uid, origin, state)
  WHERE origin = 'bus' AND state IN ('queued','running','finishing');
CREATE INDEX job_retry_of ON job (retry_of) WHERE retry_of IS NOT NULL;
CREATE INDEX job_ended_image ON job (image_sha256, finished_us) WHERE image_sha256 IS NOT NULL;

CREATE TABLE sample (                                 -- the GPU while a job runs
  job              INTEGER NOT NULL REFERENCES job(id) ON DELETE CASCADE,
  attempt          INTEGER NOT NULL,
  at_us            INTEGER NOT NULL,                  -- microseconds since the epoch
  power_mw         INTEGER,
  temperature_c    INTEGER,
  sm_clock_mhz     INTEGER,
  memory_clock_mhz INTEGER,
  gpu_percent      INTEGER,                           -- time in which a kernel ran
  memory_percent   INTEGER,                           -- time in which memory was read or written
  memory_bytes     INTEGER,                           -- in use on the board, by anybody
  PRIMARY KEY (job, attempt, at_us)
) STRICT, WITHOUT ROWID;

CREATE TABLE watch (                                  -- watched folders added over the bus
  path           BLOB    PRIMARY KEY,
  outbox         BLOB,                                -- NULL: the configured one
  stable_seconds REAL,
  poll_seconds   REAL,                                -- forces polling
  owner_uid      INTEGER NOT NULL,                    -- who added it
  added_us       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE setting (                                -- what outlives a restart: `paused`
  key   TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

DROP VIEW jobs;
CREATE VIEW jobs AS SELECT
  id, state, CAST(name AS TEXT) AS picture, seed, width || 'x' || height AS size, frames, steps, profile, gpu_name AS gpu,
  round((finished_us - started_us) / 1e6, 1) AS seconds, attempt,
  round(ram_peak_bytes / 1e9, 2) AS ram_gb, round(gpu_peak_bytes / 1e9, 2) AS gpu_gb, round(energy_mj / 1e3, 1) AS joules,
  datetime(created_us / 1000000, 'unixepoch') AS created, CAST(output_path AS TEXT) AS video, error_code, error_text
FROM job;
