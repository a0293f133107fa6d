-- One row per data subject (an order): its key, and the erased ledger in the same row. Class: pseudonymous.
CREATE TABLE subject (
    fingerprint {{bytes}} NOT NULL PRIMARY KEY, -- HMAC-SHA256 of seller and clear id under the ledger key
    seller TEXT NOT NULL,                      -- whose customer
    token {{bytes}},                           -- pseudonym; NULL where an unknown order was erased after its token key went
    state TEXT NOT NULL,                       -- none (no key yet), live, or destroyed, which is terminal
    key_id {{bytes}},                          -- random name of the data key; stays after destruction
    wrapped {{bytes}},                         -- (sealed) data key under the seller's wrapping key; NULL once destroyed
    wrapped_mask {{bytes}},                    -- bitwise complement of the first 16 bytes of wrapped: lets a scan look for it in files without keeping it
    wrapping_version BIGINT,                   -- version of the wrapping key that wrapped it
    commitment {{bytes}},                      -- HMAC-SHA256 of "commit" under the data key: AES-GCM alone does not commit to its key
    witness {{bytes}},                         -- block of constant text sealed under the data key; stays for the recover test
    facts TEXT,                                -- JSON: what is known of promise, shipment and delivery (times and states, no personal data)
    deadline BIGINT,                           -- ms since 1970, policy clock: when the key is due to be destroyed
    rule TEXT,                                 -- the rule that decided the deadline
    source_version BIGINT,                     -- highest source version admitted, ms since 1970
    event_id TEXT,                             -- id of the last event that Kafka acknowledged
    event_version BIGINT,                      -- source version of that event, ms since 1970
    created_at BIGINT NOT NULL,                -- ms since 1970, policy clock
    destroyed_at BIGINT,                       -- ms since 1970, policy clock
    destroyed_epoch BIGINT,                    -- ledger epoch of the destruction
    case_id TEXT                               -- the case that destroyed it
);
CREATE INDEX subject_token ON subject (seller, token);
CREATE INDEX subject_key ON subject (key_id);
CREATE INDEX subject_due ON subject (deadline) WHERE state = 'live';
-- What became of each group of personal fields of an order at its last fetch. Class: pseudonymous.
CREATE TABLE disposition (
    seller TEXT NOT NULL,                      -- whose customer
    token {{bytes}} NOT NULL,                  -- the order's pseudonym
    field_group TEXT NOT NULL,                 -- a field group
    fate TEXT NOT NULL,                        -- sealed, or the reason it was dropped
    at BIGINT NOT NULL,                        -- ms since 1970, policy clock
    PRIMARY KEY (seller, token, field_group)
);
