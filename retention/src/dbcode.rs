//! What a database answered, as a code: its SQLSTATE or SQLite result code, a word where the cause is a common one, and whether the same
//! call may succeed later. Never the database's own text, which quotes values.

use std::time::Duration;

use sqlx::error::DatabaseError;
use sqlx::{Connection, Database};

/// The code of a database's answer, such as `53100 disk_full` or `23502`, and whether the same call may succeed later.
#[must_use]
pub fn answered(error: &dyn DatabaseError) -> (String, bool) {
    let code = error.code().unwrap_or_default();
    if code.is_empty() {
        return ("unknown".to_owned(), false);
    }
    let text = word(&code).map_or_else(|| code.to_string(), |word| format!("{code} {word}"));
    (text, is_passing(&code))
}

/// SQLite's result code without its extension, whose low byte is the primary code (sqlite.org/rescode.html); `None` for a SQLSTATE, which
/// has five characters.
fn sqlite(code: &str) -> Option<u32> {
    code.parse::<u32>().ok().filter(|_| code.len() < 5).map(|code| code & 0xff)
}

/// What is passing: SQLSTATE classes 08 (connection), 40 (rollback), 53 (resources, a full disk among them), 55P03 (lock), 57 (operator
/// intervention), 58 (system) by the PostgreSQL manual, appendix A; SQLite's BUSY 5, LOCKED 6, IOERR 10, FULL 13 and CANTOPEN 14.
fn is_passing(code: &str) -> bool {
    match sqlite(code) {
        Some(primary) => matches!(primary, 5 | 6 | 10 | 13 | 14),
        None => ["08", "40", "53", "55P03", "57", "58"].iter().any(|class| code.starts_with(class)),
    }
}

fn word(code: &str) -> Option<&'static str> {
    Some(match (sqlite(code), code) {
        (Some(5 | 6), _) => "locked",
        (Some(8), _) => "read_only",
        (Some(10), _) | (_, "58030") => "disk_error",
        (Some(13), _) | (_, "53100") => "disk_full",
        (Some(14), _) => "cannot_open",
        (Some(11 | 26), _) => "file_damaged",
        (_, "28P01") => "wrong_password",
        (_, "28000") => "refused",
        (_, "3D000") => "no_such_database",
        (_, "42501") => "missing_right",
        (_, "53300") => "too_many_connections",
        (_, "55P03") => "locked",
        (_, "57P01" | "57P02" | "57P03") => "shut_down",
        _ => return None,
    })
}

/// How long a connection at rest may take to answer (chosen: a loaded server takes milliseconds; a start may look at several).
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Whether a connection that comes back to its pool may be used again. SQLite ends a transaction by itself where the disk is full; the
/// driver does not learn of it, and would refuse every later transaction on that connection.
///
/// # Errors
/// The driver's, where the connection no longer answers.
pub async fn is_sound<D: Database>(connection: &mut D::Connection) -> Result<bool, sqlx::Error>
where
    D::Connection: Connection<Database = D>,
{
    if !connection.is_in_transaction() {
        return Ok(true);
    }
    // The rollback of a dropped transaction may still be under way: an answer comes after it.
    connection.ping().await?;
    Ok(!connection.is_in_transaction())
}

/// Whether a connection answers within 3 s. A network that swallows everything would keep a pool waiting for ever, and a
/// place of it with each connection that comes back.
///
/// # Errors
/// The driver's, or `TimedOut`: the connection is to be thrown away.
pub async fn answers<D: Database>(connection: &mut D::Connection) -> Result<bool, sqlx::Error>
where
    D::Connection: Connection<Database = D>,
{
    let silent = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    tokio::time::timeout(ANSWERS_WITHIN, connection.ping()).await.map_err(silent)?.map(|()| true)
}

/// [`answers`], then [`is_sound`]: for a connection that comes back to its pool.
///
/// # Errors
/// As [`answers`].
pub async fn is_of_use<D: Database>(connection: &mut D::Connection) -> Result<bool, sqlx::Error>
where
    D::Connection: Connection<Database = D>,
{
    answers::<D>(connection).await?;
    is_sound::<D>(connection).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_tried_again_and_a_broken_rule_is_not() {
        for code in ["08006", "57P01", "40001", "53300", "53100", "5", "261", "13", "266", "14"] {
            assert!(is_passing(code), "{code}");
        }
        for code in ["23502", "42501", "22P02", "1299", "8", "11"] {
            assert!(!is_passing(code), "{code}");
        }
    }

    #[test]
    fn a_common_cause_has_a_word() {
        assert_eq!(
            (word("13"), word("53100"), word("778"), word("23502")),
            (Some("disk_full"), Some("disk_full"), Some("disk_error"), None)
        );
    }
}
