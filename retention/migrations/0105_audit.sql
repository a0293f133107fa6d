-- Records that wait for their topic, written in the transaction of what they tell. Class: no direct identifier.
CREATE TABLE outbox (
    id {{serial}},                             -- position
    topic TEXT NOT NULL,                       -- kind and name, e.g. privacy.erased
    record_key TEXT NOT NULL,                  -- record key
    record_value TEXT                          -- JSON; NULL is a tombstone
);
-- The audit log: append-only, each row carries the hash of the one before. Class: no personal data.
CREATE TABLE audit_event (
    seq BIGINT NOT NULL PRIMARY KEY,           -- number, from 1 without gaps
    prev_hash {{bytes}} NOT NULL,              -- SHA-256 of the row before; zeros for the first
    hash {{bytes}} NOT NULL,                   -- SHA-256 over prev_hash and the canonical JSON of the event
    at BIGINT NOT NULL,                        -- ms since 1970, policy clock
    actor TEXT NOT NULL,                       -- who
    action TEXT NOT NULL,                      -- what
    object TEXT NOT NULL,                      -- of what, by token or case id
    outcome TEXT NOT NULL,                     -- success, denied or failure
    detail TEXT NOT NULL                       -- JSON
);
-- The chain's end, locked while a row is added.
CREATE TABLE audit_head (
    id BIGINT NOT NULL PRIMARY KEY,            -- always 1
    seq BIGINT NOT NULL,                       -- number of the last row
    hash {{bytes}} NOT NULL                    -- its hash
);
INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, {{zero_hash}});
