-- Whether what a case waits for is something wrong, which somebody has to mend. Class: no direct identifier.
ALTER TABLE erasure_case ADD COLUMN is_blocked BIGINT NOT NULL DEFAULT 0; -- 1: blocked_by does not pass by itself
