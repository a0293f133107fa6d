-- What the log mirrors of this database: one row. A database that stands behind its own mirror was restored from a backup.
CREATE TABLE key_generation (
    id BIGINT NOT NULL PRIMARY KEY,            -- always 1
    database_id TEXT NOT NULL,                 -- random, made with the database; a copy of it keeps the name
    generation BIGINT NOT NULL                 -- rises before anything is published that a backup must not undo
);
INSERT INTO key_generation (id, database_id, generation) VALUES (1, {{random_id}}, 0);
-- Restores that were noticed, of this database and of the stores. Class: no direct identifier.
CREATE TABLE restored (
    id {{serial}},                             -- position
    store TEXT NOT NULL,                       -- keys, vault or warehouse
    noticed_at BIGINT NOT NULL,                -- ms since 1970, policy clock
    state TEXT NOT NULL,                       -- replayed (what was erased is gone again) or settled (what was lost is counted)
    report TEXT NOT NULL                       -- JSON: counts, and what cannot be had again by seller and token
);
-- Sellers whose ledger key is lost: it was made after the backup, so what was erased under it cannot be recognised by fingerprint.
CREATE TABLE lost_ledger (
    seller TEXT NOT NULL PRIMARY KEY,          -- whose
    erased_until BIGINT NOT NULL,              -- ms since 1970, policy clock: personal data of orders created by then is dropped
    withheld_until BIGINT                      -- ms since 1970, policy clock: orders created by then are withheld; NULL: none
);
