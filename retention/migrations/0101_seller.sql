-- One row per seller account. Class: business, except where "(sealed)" is said.
CREATE TABLE seller (
    seller TEXT NOT NULL PRIMARY KEY,          -- Amazon's merchant id
    region TEXT,                               -- eu, na or fe; NULL until the seller is added with its account
    marketplaces TEXT,                         -- JSON list of marketplace ids
    state TEXT NOT NULL,                       -- active, paused, blocked or removed; removed is terminal unless readmitted
    state_code TEXT,                           -- why it is paused or blocked: a code, never an error text
    refresh_token {{bytes}},                   -- (sealed) LWA refresh token, wrapped by the root key
    generation BIGINT NOT NULL,                -- counts readmissions; part of the wrapping context of the keys below
    wrapping_key {{bytes}},                    -- (sealed) wraps the data keys; NULL once destroyed
    wrapping_version BIGINT NOT NULL,          -- version of the wrapping key, rises at rotation
    token_key {{bytes}},                       -- (sealed) makes tokens and event ids; NULL once destroyed
    ledger_key {{bytes}} NOT NULL,             -- (sealed) makes fingerprints; survives
    created_at BIGINT NOT NULL,                -- ms since 1970, policy clock
    updated_at BIGINT NOT NULL                 -- ms since 1970, policy clock
);
