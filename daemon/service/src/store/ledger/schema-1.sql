-- Version 1. Paths and names are BLOBs: a file name may hold any bytes.
CREATE TABLE job (
  id              INTEGER PRIMARY KEY AUTOINCREMENT,  -- the bus object's number: never given twice
  uuid            TEXT    NOT NULL UNIQUE,            -- names the unfinished file in the output folder
  state           TEXT    NOT NULL CHECK (state IN ('queued','running','finishing','done','failed','canceled')),
  outcome         TEXT    CHECK (outcome IN ('done','failed','canceled')),  -- decided with `finishing`
  priority        INTEGER NOT NULL DEFAULT 0,
  attempt         INTEGER NOT NULL DEFAULT 0,         -- starts; a stop of the service gives its start back
  crashes         INTEGER NOT NULL DEFAULT 0,         -- starts that ended with the engine's death
  interruptions   INTEGER NOT NULL DEFAULT 0,         -- starts that ended with the service's death
  created_us      INTEGER NOT NULL,                   -- microseconds since the epoch
  started_us      INTEGER,
  finished_us     INTEGER,
  owner_uid       INTEGER NOT NULL,
  origin          TEXT    NOT NULL CHECK (origin IN ('watch','bus')),
  idempotency_key TEXT,
  name            BLOB    NOT NULL,                   -- the picture's name, or the one its sender gave
  source_path     BLOB,                               -- where it lies in the watched folder; NULL for a descriptor
  source_dev      INTEGER,
  source_ino      INTEGER,
  source_mtime_ns INTEGER,
  source_target   BLOB,                               -- where the source goes, decided with `finishing`
  source_left     INTEGER NOT NULL DEFAULT 0,         -- 1: it could not be moved, and is not to be taken again
  image_sha256    BLOB    CHECK (image_sha256 IS NULL OR length(image_sha256) = 32),  -- NULL: refused unread
  settings_json   TEXT    CHECK (settings_json IS NULL OR json_valid(settings_json)), -- resolved: repeats the job
  seed            INTEGER,
  version         TEXT    NOT NULL,
  engine_version  TEXT,
  backend         TEXT,
  model           TEXT,
  output_path     BLOB,
  output_bytes    INTEGER,
  output_sha256   BLOB    CHECK (output_sha256 IS NULL OR length(output_sha256) = 32),
  frames          INTEGER,
  width           INTEGER,
  height          INTEGER,
  steps           INTEGER,
  forwards_computed INTEGER,
  forwards_skipped  INTEGER,
  gpu_peak_bytes  INTEGER,
  ram_peak_bytes  INTEGER,
  error_code      TEXT,
  error_text      TEXT,
  CHECK ((outcome IS NULL) = (state IN ('queued','running'))),
  CHECK (state NOT IN ('done','failed','canceled') OR state = outcome),
  CHECK (outcome IS NOT 'done' OR (output_path IS NOT NULL AND output_sha256 IS NOT NULL)),
  CHECK (outcome IS NOT 'failed' OR (error_code IS NOT NULL AND error_text IS NOT NULL)),
  CHECK (state NOT IN ('queued','running') OR (image_sha256 IS NOT NULL AND settings_json IS NOT NULL))
) STRICT;

CREATE INDEX job_next ON job (priority DESC, id) WHERE state = 'queued';
CREATE INDEX job_open ON job (id) WHERE state IN ('queued','running','finishing');
CREATE INDEX job_image ON job (image_sha256) WHERE state IN ('queued','running','finishing');
CREATE INDEX job_owner ON job (owner_uid, id);
CREATE UNIQUE INDEX job_idempotency ON job (owner_uid, idempotency_key) WHERE idempotency_key IS NOT NULL;
-- Two events for one file make one job; a file that could not be moved away is not taken twice.
CREATE UNIQUE INDEX job_source_once ON job (source_dev, source_ino, source_mtime_ns)
  WHERE source_ino IS NOT NULL AND (state IN ('queued','running','finishing') OR source_left = 1);

CREATE TABLE stage (                                  -- one row per stage of each finished attempt
  job     INTEGER NOT NULL REFERENCES job(id) ON DELETE CASCADE,
  attempt INTEGER NOT NULL,
  n       INTEGER NOT NULL,                           -- the order
  name    TEXT    NOT NULL,
  wall_us INTEGER NOT NULL,
  PRIMARY KEY (job, attempt, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE step (                                   -- denoising steps
  job      INTEGER NOT NULL REFERENCES job(id) ON DELETE CASCADE,
  attempt  INTEGER NOT NULL,
  n        INTEGER NOT NULL,
  wall_us  INTEGER NOT NULL,
  computed INTEGER NOT NULL CHECK (computed IN (0, 1)),  -- 0: a step cache saved it
  PRIMARY KEY (job, attempt, n)
) STRICT, WITHOUT ROWID;

CREATE TABLE event (                                  -- what happened to a job, in order
  id    INTEGER PRIMARY KEY,
  job   INTEGER REFERENCES job(id) ON DELETE CASCADE,
  at_us INTEGER NOT NULL,
  kind  TEXT    NOT NULL,
  text  TEXT
) STRICT;
CREATE INDEX event_job ON event (job, id);

CREATE VIEW jobs AS SELECT
  id, state, CAST(name AS TEXT) AS picture, seed, width || 'x' || height AS size, frames, steps,
  round((finished_us - started_us) / 1e6, 1) AS seconds, attempt,
  round(ram_peak_bytes / 1e9, 2) AS ram_gb, round(gpu_peak_bytes / 1e9, 2) AS gpu_gb,
  datetime(created_us / 1000000, 'unixepoch') AS created, CAST(output_path AS TEXT) AS video, error_code, error_text
FROM job;
