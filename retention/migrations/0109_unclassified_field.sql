-- Fetched fields that no rule of the catalogue names: sealed as personal until a person decides. Class: business; paths hold known names only.
CREATE TABLE unclassified_field (
    classification TEXT NOT NULL,              -- catalogue and version, e.g. orders_2026-01-01#1
    path TEXT NOT NULL,                        -- path up to the last known property, then .*
    seen BIGINT NOT NULL,                      -- number of values
    last_at BIGINT NOT NULL,                   -- ms since 1970, policy clock
    PRIMARY KEY (classification, path)
);
