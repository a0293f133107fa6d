-- Key of the day for what belongs to no order: foreign records, unclassified fields of a catalogue answer.
CREATE TABLE quarantine_key (
    day TEXT NOT NULL PRIMARY KEY,             -- UTC day of the policy clock, YYYY-MM-DD
    key_id {{bytes}} NOT NULL,                 -- random name of the key
    wrapped {{bytes}},                         -- (sealed) by the root key; NULL once destroyed, 7 days later
    commitment {{bytes}} NOT NULL,             -- HMAC-SHA256 of "commit" under the key
    state TEXT NOT NULL,                       -- live or destroyed
    destroyed_at BIGINT                        -- ms since 1970, policy clock
);
