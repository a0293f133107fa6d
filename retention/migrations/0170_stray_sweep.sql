-- The nightly reading for sealed blocks that should be gone.
CREATE TABLE stray_sweep (
    id BIGINT NOT NULL PRIMARY KEY,            -- always 1
    at BIGINT NOT NULL,                        -- ms since 1970, policy clock: when the last one began
    blocks BIGINT NOT NULL,                    -- sealed blocks it read
    strays BIGINT NOT NULL                     -- of these, under a key that is destroyed or unknown
);
