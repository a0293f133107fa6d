-- Controls of cases at work: sealed constant text that a scan of this database's files must find, or it is void.
CREATE TABLE key_scan_control (
    case_id TEXT NOT NULL PRIMARY KEY,         -- the case
    block {{bytes}} NOT NULL                   -- (sealed) constant text, not personal
);
