-- Which incarnation of a raw topic the cursors belong to: a topic made anew no longer holds what they say was read. Class: business.
CREATE TABLE topic_incarnation (
    topic TEXT NOT NULL PRIMARY KEY,           -- full topic name
    incarnation TEXT NOT NULL,                 -- topic id, or the value of the ~incarnation record
    seen_at BIGINT NOT NULL                    -- ms since 1970, policy clock
);
