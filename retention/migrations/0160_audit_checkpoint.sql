-- Signed heads of the audit chain: how far it had come (head), or up to where its rows were removed by age (expiry). Class: no personal data.
CREATE TABLE audit_checkpoint (
    seq BIGINT NOT NULL,                       -- number of the row it speaks of
    kind TEXT NOT NULL,                        -- head or expiry
    at BIGINT NOT NULL,                        -- ms since 1970, policy clock; also in the note
    note TEXT NOT NULL,                        -- signed note over kind, number, hash and time
    PRIMARY KEY (seq, kind)
);
