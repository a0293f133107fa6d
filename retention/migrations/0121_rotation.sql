-- Rotation of a seller's wrapping key: while data keys still lie under the one before, that one is kept beside the new one.
ALTER TABLE seller ADD COLUMN wrapping_previous {{bytes}}; -- (sealed) version wrapping_version - 1; NULL where no rotation is under way
ALTER TABLE seller ADD COLUMN wrapping_since BIGINT;       -- ms since 1970, policy clock: when this version was made; NULL: with the seller
CREATE INDEX subject_wrapping ON subject (seller, wrapping_version) WHERE state = 'live';
-- Rotations of the root key, in their order: the last one says how far it is.
CREATE TABLE root_rotation (
    id {{serial}},                             -- position
    from_version BIGINT NOT NULL,              -- the newest version before
    to_version BIGINT,                         -- the new one; NULL until it is made
    state TEXT NOT NULL,                       -- begun, versioned (new version made), rewrapped (nothing of ours lies under older ones), done
    retired TEXT,                              -- what became of the old versions: destroyed or kept_by_service
    begun_at BIGINT NOT NULL,                  -- ms since 1970, policy clock
    done_at BIGINT                             -- ms since 1970, policy clock
);
