-- Version 5: the family of the model that made a video; the LoRAs of jobs, as they were chosen, whose hash is known from the job's
-- first start at the latest. Those that the model's own file names are known when the job is done.
ALTER TABLE job ADD COLUMN family TEXT;                -- as the engine calls it: 'Wan2.2 image-to-video'
CREATE TABLE job_lora (
  job          INTEGER NOT NULL REFERENCES job(id) ON DELETE CASCADE,
  of_model     INTEGER NOT NULL DEFAULT 0 CHECK (of_model IN (0, 1)), -- 1: the model's own, which are added first
  n            INTEGER NOT NULL,                      -- the order in which they are added
  name         TEXT    NOT NULL,
  strength     REAL    NOT NULL,                      -- of a model with two transformers: for that of the noisy steps
  strength_low REAL,                                  -- for that of the last steps; NULL: one strength was given
  strength_base REAL,                                 -- in the steps that leave LoRAs out; NULL: there it is left out
  sha256       BLOB    CHECK (sha256 IS NULL OR length(sha256) = 32),
  PRIMARY KEY (job, of_model, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX job_lora_sha256 ON job_lora (sha256) WHERE sha256 IS NOT NULL;
