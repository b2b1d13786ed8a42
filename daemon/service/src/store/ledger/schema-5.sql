-- Version 5: the LoRAs of jobs, as they were chosen; the hash is known from the job's first start at the latest. Those that the model's
-- own file names are known when the job is done.
CREATE TABLE job_lora (
  job          INTEGER NOT NULL REFERENCES job(id) ON DELETE CASCADE,
  of_model     INTEGER NOT NULL DEFAULT 0 CHECK (of_model IN (0, 1)), -- 1: the model's own, which are added first
  n            INTEGER NOT NULL,                      -- the order in which they are added
  name         TEXT    NOT NULL,
  strength     REAL    NOT NULL,                      -- of a model with two transformers: for that of the noisy steps
  strength_low REAL,                                  -- for that of the last steps; NULL: one strength was given
  sha256       BLOB    CHECK (sha256 IS NULL OR length(sha256) = 32),
  PRIMARY KEY (job, of_model, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_lora_sha256 ON job_lora (sha256) WHERE sha256 IS NOT NULL;
