-- The last day on which something that a case named as residual can still be there, of what has a last day.
ALTER TABLE erasure_case ADD COLUMN residual_until BIGINT; -- ms since 1970, policy clock; NULL: nothing is, or nothing is known yet
