-- One row per erasure case: what is asked of it often. What happened stands in case_event. Class: no direct identifier.
CREATE TABLE erasure_case (
    case_id TEXT NOT NULL PRIMARY KEY,         -- case-<day>-<random>
    seller TEXT NOT NULL,                      -- whose customers
    reason TEXT NOT NULL,                      -- expiry, buyer-request, ...
    extent TEXT NOT NULL,                      -- personal or with_business_data
    scope TEXT NOT NULL,                       -- listed (subjects known when opened), all, or due
    request_digest TEXT NOT NULL,              -- the same request while it is open is the same case
    requested_by TEXT NOT NULL,                -- who asked: a user or role of the operator, never a data subject
    forced BIGINT NOT NULL,                    -- 1: removal is to be forced, not waited for
    opened_at BIGINT NOT NULL,                 -- ms since 1970, policy clock
    due_at BIGINT NOT NULL,                    -- ms since 1970, policy clock
    state TEXT NOT NULL,                       -- the state its last event makes
    subjects BIGINT NOT NULL,                  -- number of subjects, 0 until scoped
    blocked_by TEXT,                           -- what it waits for or what is wrong, in words
    keys_destroyed_at BIGINT,                  -- ms since 1970, policy clock
    verified_at BIGINT,                        -- ms since 1970, policy clock
    certified_at BIGINT                        -- ms since 1970, policy clock
);
CREATE UNIQUE INDEX erasure_case_open ON erasure_case (request_digest) WHERE state <> 'certified';
-- What happened in a case: append-only, numbered without gaps. Class: no direct identifier.
CREATE TABLE case_event (
    case_id TEXT NOT NULL,                     -- the case
    seq BIGINT NOT NULL,                       -- from 1
    step TEXT NOT NULL,                        -- what happened
    at BIGINT NOT NULL,                        -- ms since 1970, policy clock
    at_system BIGINT NOT NULL,                 -- ms since 1970, system clock
    evidence TEXT NOT NULL,                    -- JSON
    PRIMARY KEY (case_id, seq)
);
-- The subjects of a case, many in one row so that a case of thousands is a few rows. Class: pseudonymous.
CREATE TABLE case_scope (
    case_id TEXT NOT NULL,                     -- the case
    chunk BIGINT NOT NULL,                     -- from 0
    subjects TEXT NOT NULL,                    -- JSON list of fingerprint, token, key ids
    PRIMARY KEY (case_id, chunk)
);
-- The control of a case: a block that must be found, under a key that must open it.
CREATE TABLE case_control (
    case_id TEXT NOT NULL PRIMARY KEY,         -- the case
    key_id TEXT NOT NULL,                      -- its name, hex
    wrapped {{bytes}} NOT NULL,                -- (sealed) the control's key, by the root key; opens nothing but the control
    block {{bytes}} NOT NULL                   -- (sealed) constant text, not personal
);
-- The certificate log: leaves, the hashes over them, the signed head. Class: no personal data.
CREATE TABLE certificate_leaf (
    leaf BIGINT NOT NULL PRIMARY KEY,          -- from 0 without gaps
    case_id TEXT NOT NULL UNIQUE,              -- the case it certifies
    note TEXT NOT NULL,                        -- the signed note; its text is the statement
    proof TEXT NOT NULL                        -- proof of inclusion in the head signed with it
);
CREATE TABLE certificate_hash (
    position BIGINT NOT NULL PRIMARY KEY,      -- stored hash index of the tile log
    hash TEXT NOT NULL                         -- base64
);
-- One row, locked by the one writer while it appends.
CREATE TABLE certificate_head (
    id BIGINT NOT NULL PRIMARY KEY,            -- always 1
    size BIGINT NOT NULL,                      -- leaves
    note TEXT NOT NULL                         -- the signed head; empty before the first leaf
);
INSERT INTO certificate_head (id, size, note) VALUES (1, 0, '');
