-- How far each seller's dataset has been read; moved by compare-and-set on version. Class: business.
CREATE TABLE poll_cursor (
    seller TEXT NOT NULL,                      -- seller id
    dataset TEXT NOT NULL,                     -- orders or inventory
    version BIGINT NOT NULL,                   -- rises by one with each move
    position BIGINT NOT NULL,                  -- ms since 1970: everything changed before it is acknowledged by Kafka
    detail TEXT NOT NULL,                      -- JSON of the poller's own: windows, page tokens
    updated_at BIGINT NOT NULL,                -- ms since 1970, policy clock
    PRIMARY KEY (seller, dataset)
);
-- Windows that could not be read. Class: business.
CREATE TABLE poll_gap (
    seller TEXT NOT NULL,                      -- seller id
    dataset TEXT NOT NULL,                     -- orders or inventory
    from_ms BIGINT NOT NULL,                   -- start of the window, ms since 1970
    until_ms BIGINT NOT NULL,                  -- end of the window, ms since 1970
    code TEXT NOT NULL,                        -- what stopped it: a code, never an error text
    tries BIGINT NOT NULL,                     -- how often it was tried
    state TEXT NOT NULL,                       -- open or closed
    opened_at BIGINT NOT NULL,                 -- ms since 1970, policy clock
    closed_at BIGINT,                          -- ms since 1970, policy clock
    PRIMARY KEY (seller, dataset, from_ms)
);
