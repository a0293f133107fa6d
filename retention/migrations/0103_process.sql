-- One row: how often the erased ledger changed. Taken in the transaction that destroys keys.
CREATE TABLE ledger_epoch (
    id BIGINT NOT NULL PRIMARY KEY,            -- always 1
    epoch BIGINT NOT NULL                      -- number of destructions
);
INSERT INTO ledger_epoch (id, epoch) VALUES (1, 0);
-- Destroyed keys, in the order in which processes learn of them.
CREATE TABLE revoked_key (
    key_id {{bytes}} NOT NULL PRIMARY KEY,     -- the destroyed key
    epoch BIGINT NOT NULL,                     -- ledger epoch of the destruction
    at BIGINT NOT NULL                         -- ms since 1970, policy clock
);
CREATE INDEX revoked_key_epoch ON revoked_key (epoch);
-- Processes that may hold keys in memory.
CREATE TABLE process (
    process_id TEXT NOT NULL PRIMARY KEY,      -- random, one per start
    roles TEXT NOT NULL,                       -- comma-separated, e.g. poll,split
    lease_until BIGINT NOT NULL,               -- ms since 1970, the database's clock
    acked_epoch BIGINT NOT NULL,               -- it holds no key and no work from before this ledger epoch
    started_at BIGINT NOT NULL                 -- ms since 1970, the database's clock
);
