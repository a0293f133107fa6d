-- Legal holds: named fields of an order that the law keeps longer than the order, in a cold store under a key of their own. The key is a row
-- of subject with the rule 'hold', whose deadline is the hold's end, so that it is destroyed and proved gone as any other.
CREATE TABLE hold (
    hold_id TEXT NOT NULL PRIMARY KEY,         -- hold-<day>-<random>
    seller TEXT NOT NULL,                      -- whose customer
    order_fingerprint {{bytes}} NOT NULL,      -- the order in the erased ledger
    order_token {{bytes}} NOT NULL,            -- the order's pseudonym
    fingerprint {{bytes}} NOT NULL,            -- the hold's own row of subject
    token {{bytes}} NOT NULL,                  -- what the cold store knows it by
    statute TEXT NOT NULL,                     -- the law that asks for it, e.g. HGB 257
    document TEXT NOT NULL,                    -- class of document: invoice, credit-note or customs
    fields TEXT NOT NULL,                      -- JSON list of field groups
    purpose TEXT,                              -- the one purpose that may read it; NULL: any that covers its fields
    until BIGINT NOT NULL,                     -- when it ends: ms since 1970, policy clock
    created_at BIGINT NOT NULL,                -- ms since 1970, policy clock
    created_by TEXT NOT NULL,                  -- a user of the operator
    moved_at BIGINT,                           -- when its fields were last copied to the cold store: ms since 1970, policy clock
    moved_fields TEXT                          -- JSON list of the field groups that were there to be copied
);
CREATE INDEX hold_order ON hold (order_fingerprint);
