-- Version 4: jobs with a picture that their video ends at, and videos that are made in several parts.
ALTER TABLE job ADD COLUMN last_sha256 BLOB CHECK (last_sha256 IS NULL OR length(last_sha256) = 32);  -- of the last picture
ALTER TABLE job ADD COLUMN last_bytes INTEGER NOT NULL DEFAULT 0;    -- of that picture in the spool; 0: it is gone
ALTER TABLE job ADD COLUMN parts_bytes INTEGER NOT NULL DEFAULT 0;   -- set aside for finished parts; 0 once the job has ended
CREATE INDEX job_last ON job (last_sha256) WHERE last_sha256 IS NOT NULL;
CREATE INDEX job_lasts_of ON job (owner_uid, last_sha256, last_bytes) WHERE last_bytes > 0;
CREATE INDEX job_parts_of ON job (owner_uid, parts_bytes) WHERE parts_bytes > 0;
