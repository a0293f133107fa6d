-- Cases over business data that is older than it may be kept, and how far the sweep that finds them has come.
ALTER TABLE erasure_case ADD COLUMN kind TEXT;         -- of such a case: orders or inventory; NULL for any other
ALTER TABLE erasure_case ADD COLUMN older_than BIGINT; -- what happened before goes: ms since 1970, policy clock
CREATE TABLE business_sweep (
    id BIGINT NOT NULL PRIMARY KEY,            -- always 1
    cutoff BIGINT NOT NULL                     -- everything that happened before is in a case: ms since 1970, policy clock
);
