-- Version 3: finished videos know the folder that they were written to, and each user's share of the disk is known.
ALTER TABLE job ADD COLUMN outbox_dev INTEGER;        -- the folder of the unfinished video, decided with `finishing`
ALTER TABLE job ADD COLUMN outbox_ino INTEGER;
ALTER TABLE job ADD COLUMN image_bytes INTEGER NOT NULL DEFAULT 0;   -- of the spooled picture; 0: it is gone
ALTER TABLE job ADD COLUMN result_bytes INTEGER NOT NULL DEFAULT 0;  -- of the video that a caller fetches; 0: it is gone
ALTER TABLE job ADD COLUMN row_bytes INTEGER NOT NULL DEFAULT 0;     -- what the job takes in this file, roughly
UPDATE job SET row_bytes = 1024 + length(name) + coalesce(length(source_path), 0)
  + coalesce(length(CAST(settings_json AS BLOB)), 0) + coalesce(length(CAST(error_text AS BLOB)), 0);
-- What a user has is asked with every submission: these hold all of the answer.
CREATE INDEX job_rows_of ON job (owner_uid, row_bytes);
CREATE INDEX job_images_of ON job (owner_uid, image_sha256, image_bytes) WHERE image_bytes > 0;
CREATE INDEX job_results_of ON job (owner_uid, result_bytes) WHERE result_bytes > 0;
