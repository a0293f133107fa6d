//! `sunder check`: config, connections, topic drift, key rights, clock, planner statistics, gaps, unclassified fields.

use std::time::Duration;

use sunder_retention::case::{self, State};
use sunder_retention::cursor;
use sunder_retention::mirror::{self, Noticed, Standing};
use sunder_retention::rotate;
use sunder_retention::sellers::{self, SellerState};

use super::Failure;
use super::topics::show;
use crate::app::{Base, StartError, connect_kafka};
use crate::cli::{DONE, NOT_TRUE};
use crate::config::{Config, Environment};
use crate::kafka::Kafka;
use crate::kafka::admin::{Entry, Status, TopicState};
use crate::output::Output;

/// Policy and system clock may differ by the configured offset only; more than this is said (chosen).
const CLOCK_SKEW_MS_MAX: i64 = 5_000;

/// How long a hindrance must last to be said: transactions of a working producer end in less (chosen).
const STAYS_FOR: Duration = Duration::from_secs(2);

/// Runs every probe and prints its line; one that fails does not stop the others.
pub(super) async fn run(config: Config, output: Output) -> Result<u8, Failure> {
    let mut entries = vec![ok("config", "reads and holds together")];
    if config.environment == Environment::Test {
        entries.push(warn("environment", "test: safeguards may be lowered", "environment = \"production\" where real data flows"));
    }
    let (kafka, of_log) = log(&config).await;
    entries.extend(of_log);
    match Base::open(config, None).await {
        Ok(base) => {
            entries.extend(restores(&base, kafka.as_ref()).await);
            entries.extend(stores(&base).await);
        }
        Err(error) => entries.push(failed_start("keys", &error)),
    }
    output.show(&entries, || show(&entries));
    Ok(if entries.iter().any(|e| e.status == Status::Fail) { NOT_TRUE } else { DONE })
}

fn ok(name: &str, detail: impl Into<String>) -> Entry {
    Entry { name: name.to_owned(), status: Status::Ok, detail: detail.into(), fix: None }
}

fn warn(name: &str, detail: impl Into<String>, fix: &str) -> Entry {
    Entry { name: name.to_owned(), status: Status::Warn, detail: detail.into(), fix: Some(fix.to_owned()) }
}

fn fail(name: &str, detail: impl Into<String>, fix: &str) -> Entry {
    Entry { name: name.to_owned(), status: Status::Fail, detail: detail.into(), fix: Some(fix.to_owned()) }
}

fn failed_start(name: &str, error: &StartError) -> Entry {
    fail(name, error.to_string(), "see docs/operations.md, section Start")
}

async fn log(config: &Config) -> (Option<Kafka>, Vec<Entry>) {
    let kafka = match connect_kafka(config).await {
        Ok(kafka) => kafka,
        Err(error) => return (None, vec![failed_start("kafka", &error)]),
    };
    let mut entries = vec![ok("kafka", format!("{} answers", kafka.address()))];
    if kafka.is_embedded() {
        entries.push(warn("kafka durability", "the embedded broker keeps nothing after the process", "kafka.bootstrap = \"host:port\""));
        return (None, entries);
    }
    match kafka.diff_topics().await {
        Ok(states) => entries.extend(states.iter().map(TopicState::entry)),
        Err(error) => {
            entries.push(fail("topics", crate::telemetry::chain(&error), "see that the principal may describe topics and settings"))
        }
    }
    entries.extend(hindrances(&kafka).await);
    (Some(kafka), entries)
}

/// Whether the key database is as new as the log knows it, and what restores came to.
async fn restores(base: &Base, kafka: Option<&Kafka>) -> Vec<Entry> {
    let mut entries = Vec::new();
    if let Some(kafka) = kafka {
        entries.push(match base.standing(kafka).await {
            Ok(Standing::Current) => ok("key database", "not older than the log knows it"),
            Ok(Standing::Behind) => fail(
                "key database",
                "older than the log knows it, or of another history of its server: a backup was restored, or a standby took over",
                "start `sunder run`: what was erased since is erased again before anything is served",
            ),
            Ok(Standing::Foreign) => fail("key database", StartError::ForeignKeys.to_string(), "see docs/operations.md, section Restore"),
            Err(error) => failed_start("key database", &error),
        });
    }
    match mirror::noticed(base.keyring.db()).await {
        Ok(noticed) => entries.extend(noticed.iter().map(restore)),
        Err(error) => entries.push(fail("restore", crate::telemetry::chain(&error), "see keys.database")),
    }
    entries
}

fn restore(noticed: &Noticed) -> Entry {
    let count = |name: &str| noticed.report.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default();
    let (name, at) = (format!("restore of {}", noticed.store), noticed.at.0.to_iso());
    if noticed.store != "keys" {
        let (behind, rows) = (count("records_behind"), count("rows_forgotten"));
        return ok(&name, format!("noticed {at}: {rows} rows of erased subjects forgotten again, {behind} records of the log read again"));
    }
    let done = format!(
        "noticed {at}: {} keys destroyed again, {} ledger rows, {} certificates and {} requests taken over",
        count("keys_destroyed"),
        count("ledger_rows"),
        count("certificates"),
        count("cases_opened")
    );
    if !noticed.is_settled {
        let detail = format!("{done}; what cannot be had again is counted once every seller was read again");
        return warn(&name, detail, "let `sunder run` go on: pollers, splitter, sinks and retain");
    }
    let named = |name: &str| noticed.report.get(name).map(serde_json::Value::to_string).unwrap_or_default();
    let mut lost = Vec::new();
    if count("lost_blocks") > 0 {
        let (blocks, orders) = (count("lost_blocks"), count("lost_orders"));
        lost.push(format!("{blocks} blocks of {orders} orders are lost with their keys, first {}", named("lost_first")));
    }
    if count("lost_holds") > 0 {
        lost.push(format!("what {} legal holds kept is lost with their keys, first {}", count("lost_holds"), named("lost_holds_first")));
    }
    if lost.is_empty() {
        return ok(&name, format!("{done}; nothing was lost"));
    }
    warn(
        &name,
        format!("{done}; {}", lost.join("; ")),
        "that personal data cannot be read by anyone; where it is still needed, see the system of record, and add the holds again",
    )
}

/// What keeps the log from removing what is tombstoned. A transaction that ends within seconds hinders nobody: what is said is what
/// stays.
async fn hindrances(kafka: &Kafka) -> Vec<Entry> {
    let fix = "see docs/operations.md, section Cases that do not go on";
    let mut found = match kafka.hindrances(&[]).await {
        Ok(found) => found,
        Err(error) => return vec![fail("replicas", crate::telemetry::chain(&error), fix)],
    };
    if !found.is_empty() {
        tokio::time::sleep(STAYS_FOR).await;
        match kafka.hindrances(&[]).await {
            Ok(again) => found.retain(|each| !each.stops || again.contains(each)),
            Err(error) => return vec![fail("replicas", crate::telemetry::chain(&error), fix)],
        }
    }
    if found.is_empty() {
        return vec![ok("replicas", "all in sync, no transaction open, heartbeats arrive")];
    }
    found.into_iter().map(|each| if each.stops { fail("replicas", each.what, fix) } else { warn("replicas", each.what, fix) }).collect()
}

async fn stores(base: &Base) -> Vec<Entry> {
    let mut entries = vec![ok("keys.database", "answers, migrated")];
    entries.extend(keys(base).await);
    let skew = base.clock.now().0 - base.system_clock.now().0 - base.config.clock.offset.millis_max();
    entries.push(if skew.abs() <= CLOCK_SKEW_MS_MAX {
        let offset = base.config.clock.offset;
        let detail = if offset.millis_max() == 0 {
            "the policy clock is the system's".to_owned()
        } else {
            format!("the policy clock is the system's, moved by {offset}")
        };
        ok("clock", detail)
    } else {
        fail("clock", format!("policy and system clock differ by {skew} ms"), "synchronise the system's clock")
    });
    match base.vault().await {
        Ok(vault) => entries.push(match vault.sampled_columns().await {
            Ok(columns) if columns.is_empty() => ok("vault", "answers; the planner keeps no samples of sealed columns"),
            Ok(columns) => fail(
                "vault",
                format!("the planner keeps samples of {}", columns.join(", ")),
                "ALTER TABLE sealed_block ALTER COLUMN block SET STATISTICS 0, then ANALYZE sealed_block",
            ),
            Err(error) => fail("vault", crate::telemetry::chain(&error), "see that the role may read pg_attribute"),
        }),
        Err(error) => entries.push(failed_start("vault", &error)),
    }
    match base.warehouse().await {
        Ok(_) => entries.push(ok("warehouse", "answers")),
        Err(error) => entries.push(failed_start("warehouse", &error)),
    }
    match crate::app::signer(&base.config) {
        Ok(signer) => entries.push(ok("certificate.signer", signer.name().to_owned())),
        Err(error) => entries.push(failed_start("certificate.signer", &error)),
    }
    entries.extend(polling(base).await);
    entries
}

/// Whether the root key answers, and which keys are due to be rotated.
async fn keys(base: &Base) -> Vec<Entry> {
    let status = match rotate::status(&base.keyring).await {
        Ok(status) => status,
        Err(error) => return vec![fail("keys.root", crate::telemetry::chain(&error), "see keys.database")],
    };
    let mut entries = vec![match &status.root.error {
        None => ok("keys.root", format!("{} answers", status.root.service)),
        Some(error) => fail("keys.root", error.clone(), "see docs/operations.md, section Root key"),
    }];
    let unfinished = status.unfinished();
    if !unfinished.is_empty() {
        let detail = format!("rotation begun and not ended: {}", unfinished.join(", "));
        entries.push(warn("key rotation", detail, "run `sunder keys rotate` again: it goes on where it was"));
    }
    let overdue = status.overdue(base.clock.now());
    entries.push(if overdue.is_empty() {
        ok("key age", "no key is older than 90 days")
    } else {
        warn("key age", format!("older than 90 days: {}", overdue.join(", ")), "`sunder keys rotate`")
    });
    entries
}

/// Cases that are not done by their day.
async fn late_cases(base: &Base) -> Vec<Entry> {
    match case::late(base.keyring.db(), base.clock.now()).await {
        Ok(late) if late.is_empty() => vec![ok("cases", "none is late")],
        Ok(late) => late
            .iter()
            .map(|case| {
                let is_certified = case.state == State::Certified;
                let otherwise = if is_certified { "what it named as residual is still there" } else { "it is under way" };
                let why = case.blocked_by.as_deref().unwrap_or(otherwise);
                let detail = format!("{} of seller {} was due {} and is {}: {why}", case.id, case.seller, case.due_at, case.state);
                warn("late case", detail, "see `sunder cases ID`; `sunder erase --now` with the same scope forces removal")
            })
            .collect(),
        Err(error) => vec![fail("cases", crate::telemetry::chain(&error), "see keys.database")],
    }
}

async fn polling(base: &Base) -> Vec<Entry> {
    let db = base.keyring.db();
    let mut entries = late_cases(base).await;
    match sellers::list(db).await {
        Ok(known) => entries.extend(known.iter().filter(|s| s.state == SellerState::Blocked).map(|s| {
            let detail = format!("{} is not polled: {}", s.id, s.code.as_deref().unwrap_or("unknown"));
            warn(
                "seller",
                detail,
                "let it authorise again, then `sunder sellers add` with the new token, or change the config's and restart",
            )
        })),
        Err(error) => entries.push(fail("sellers", crate::telemetry::chain(&error), "see keys.database")),
    }
    match super::cases::known(db, base.clock.now()).await {
        Ok(cases) => entries.extend(cases.into_iter().filter(|case| case.state != State::Certified || case.blocked).filter_map(|case| {
            let detail = format!("{} ({}) waits: {}", case.id, case.state, case.blocked_by?);
            Some(warn("case", detail, "see docs/operations.md, section Cases that do not go on"))
        })),
        Err(error) => entries.push(fail("cases", crate::telemetry::chain(&error), "see keys.database")),
    }
    match cursor::open_gaps(db, None).await {
        Ok(gaps) if gaps.is_empty() => entries.push(ok("gaps", "none open")),
        Ok(gaps) => entries.extend(gaps.iter().map(|gap| {
            let detail =
                format!("{} {}: {} to {} not read ({}, {} tries)", gap.seller, gap.dataset, gap.from, gap.until, gap.code, gap.tries);
            warn("gap", detail, "pollers try it again; see docs/errors.md for the code")
        })),
        Err(error) => entries.push(fail("gaps", crate::telemetry::chain(&error), "see keys.database")),
    }
    match cursor::unclassified(db).await {
        Ok(paths) if paths.is_empty() => entries.push(ok("catalogue", "every field that was fetched is classified")),
        Ok(paths) => entries.extend(paths.iter().map(|(path, count)| {
            warn(
                "unclassified field",
                format!("{path}: {count} values, sealed as personal"),
                "classify it in schemas/catalogue and raise the version",
            )
        })),
        Err(error) => entries.push(fail("catalogue", crate::telemetry::chain(&error), "see keys.database")),
    }
    entries
}
