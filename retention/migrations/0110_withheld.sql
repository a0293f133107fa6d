-- Subjects whose business data went as well: their rows must not come back either, while those of other erased subjects live on.
ALTER TABLE subject ADD COLUMN withheld_epoch BIGINT; -- ledger epoch of the erasure that took the business data; NULL: rows live on
CREATE INDEX subject_withheld ON subject (withheld_epoch) WHERE withheld_epoch IS NOT NULL;
