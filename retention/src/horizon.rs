//! What keeps PostgreSQL from removing deleted rows, and how long a transaction of ours may.
//!
//! `VACUUM FULL` copies a dead row along while any snapshot may still need it, and every snapshot goes back to the oldest transaction that
//! writes in any database of the server (PostgreSQL manual 25.1.5; seen with one left open by a network that swallowed its end).

/// Settings of every session. A transaction whose client fell silent is ended by the server after half a minute (chosen: no pause between
/// two statements of ours is near it), so is a wait for what such a one holds, and an answer that nobody takes.
pub const SESSION_SQL: &str = "SET idle_in_transaction_session_timeout = '30s'; SET lock_timeout = '30s'; SET tcp_user_timeout = '30s'";

/// The oldest holders of dead rows, in words, three at the most; NULL where there is none. A user without `pg_read_all_stats` sees no other user's: it is
/// told that these exist.
pub const HOLDER_SQL: &str = "SELECT string_agg(what, ', ' ORDER BY age DESC) FROM (SELECT what, age FROM ( \
       SELECT format('a transaction open since %s in database %s (process %s of its server)', \
           to_char(xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), datname, pid) AS what, \
         greatest(age(backend_xid), CASE WHEN datname IS NULL OR datname = current_database() THEN age(backend_xmin) END) AS age \
       FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND xact_start IS NOT NULL \
     UNION ALL \
       SELECT format('a prepared transaction of %s in database %s', to_char(prepared AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), \
           database), age(transaction) FROM pg_prepared_xacts \
     UNION ALL \
       SELECT format('replication slot %s', slot_name), greatest(age(xmin), age(catalog_xmin)) FROM pg_replication_slots \
     ) holder WHERE age IS NOT NULL ORDER BY age DESC LIMIT 3) oldest";

/// What is said where [`HOLDER_SQL`] finds nothing: by then it has ended, or it may not be seen.
pub const UNSEEN: &str = "a transaction that has ended by now, or one that this user may not see (pg_read_all_stats shows it)";
