-- When the control of a case was last planted, so that one whose process died before it could remove it is found.
ALTER TABLE case_control ADD COLUMN planted_at BIGINT; -- ms since 1970, system clock; NULL: not known
