//! `sunder cases`, `sunder verify`

use sunder_retention::case::{self, CaseError, Reproved, Shown, State, VerifyReport};
use sunder_retention::keydb::KeyDb;
use sunder_retention::lease;
use sunder_schemas::ids::CaseId;
use sunder_schemas::time::Timestamp;

use super::Failure;
use crate::app::{App, Base};
use crate::cli::{DONE, NOT_TRUE};
use crate::config::Config;
use crate::output::{Output, table};

pub(super) fn case_id(text: &str) -> Result<CaseId, Failure> {
    CaseId::parse(text).map_err(|error| Failure::Use(error.to_string()))
}

/// Lists the cases, or shows one.
pub(super) async fn list(config: Config, id: Option<&str>, output: Output) -> Result<u8, Failure> {
    let base = Base::open(config, None).await?;
    let db = base.keyring.db();
    match id {
        None => {
            let cases = known(db, base.clock.now()).await.map_err(|e| Failure::of("cases", &e))?;
            output.show(&cases, || show_all(&cases));
        }
        Some(id) => {
            let mut case = case::show(db, &case_id(id)?, base.clock.now()).await.map_err(|e| Failure::of("cases", &e))?;
            if !is_worked(db).await.map_err(|e| Failure::of("cases", &e))? {
                unworked(&mut case);
            }
            output.show(&case, || show_one(&case));
        }
    }
    Ok(DONE)
}

/// All cases, open ones with what they wait for.
pub(super) async fn known(db: &KeyDb, now: Timestamp) -> Result<Vec<Shown>, CaseError> {
    let mut cases = case::list(db, now).await?;
    if !is_worked(db).await? {
        cases.iter_mut().for_each(unworked);
    }
    Ok(cases)
}

/// Whether any process has the role that works cases and writes heartbeats.
async fn is_worked(db: &KeyDb) -> Result<bool, CaseError> {
    Ok(lease::live_with_role(db, "retain").await? > 0)
}

/// Says of an open case that nobody works it: what it waited for was seen by a process that is gone.
fn unworked(case: &mut Shown) {
    if case.state == State::Certified {
        return;
    }
    let last = case.blocked_by.as_ref().map_or_else(String::new, |why| format!("; last seen: {why}"));
    case.blocked_by = Some(format!("no process with the role `retain` runs: nothing works this case, and topics get no heartbeats{last}"));
}

fn show_all(cases: &[Shown]) -> String {
    if cases.is_empty() {
        return "no cases".to_owned();
    }
    let rows = cases.iter().map(|case| {
        let late = if case.late { "LATE " } else { "" };
        let blocked = format!("{late}{}", case.blocked_by.as_deref().unwrap_or_default());
        vec![
            case.id.to_string(),
            case.state.to_string(),
            case.reason.as_str().to_owned(),
            case.seller.to_string(),
            case.subjects.to_string(),
            case.due_at.clone(),
            blocked,
        ]
    });
    table(&["case", "state", "reason", "seller", "subjects", "due", "blocked by"], rows)
}

pub(super) fn show_one(case: &Shown) -> String {
    let mut lines =
        vec![format!("{}  {}  ({}, seller {}, {} subjects)", case.id, case.state, case.reason.as_str(), case.seller, case.subjects)];
    lines.push(format!("opened {}, due {}{}", case.opened_at, case.due_at, if case.late { ", LATE" } else { "" }));
    if let Some(gone_by) = &case.gone_by {
        lines.push(format!("gone by {gone_by}"));
    }
    if let Some(why) = &case.blocked_by {
        lines.push(format!("waits for: {why}"));
    }
    for event in &case.events {
        lines.push(format!("  {:>2}  {}  {}", event.seq, event.at, event.step));
    }
    lines.join("\n")
}

/// Reads every store again for one case, or for all that are closed.
pub(super) async fn verify(config: Config, id: Option<&str>, output: Output) -> Result<u8, Failure> {
    let id = id.map(case_id).transpose()?;
    let app = App::open_for_request(Base::open(config, None).await?).await?;
    let Some(id) = id else {
        let proved = app.engine.verify_all().await.map_err(|e| Failure::of("verify", &e))?;
        output.show(&proved, || show_proved(&proved));
        return Ok(if proved.iter().all(|case| case.holds) { DONE } else { NOT_TRUE });
    };
    let report = app.engine.verify(&id).await.map_err(|e| Failure::of("verify", &e))?;
    output.show(&report, || show_report(&report));
    Ok(if report.holds { DONE } else { NOT_TRUE })
}

fn show_proved(proved: &[Reproved]) -> String {
    if proved.is_empty() {
        return "no closed cases".to_owned();
    }
    let rows = proved.iter().map(|case| {
        let holds = if case.holds { "holds" } else { "DOES NOT HOLD" };
        vec![case.case.to_string(), holds.to_owned(), case.reason.clone().unwrap_or_default()]
    });
    table(&["case", "proof", "reason"], rows)
}

fn show_report(report: &VerifyReport) -> String {
    let (scan, recover) = (&report.scan, &report.recover);
    let mut lines = vec![format!("{}: {}", report.case, if report.holds { "holds" } else { "DOES NOT HOLD" })];
    if let Some(reason) = &report.reason {
        lines.push(format!("  {reason}"));
    }
    lines.push(format!("  scan:    {} found; {} of {} planted controls found", scan.found, scan.controls_found, scan.controls_planted));
    lines.push(format!(
        "  recover: {} of {} opened; {} of {} controls opened",
        recover.opened, recover.tried, recover.controls_opened, recover.controls_planted
    ));
    for store in &scan.stores {
        lines.push(format!("  read {}: {} places", store.store, store.places.len()));
    }
    lines.join("\n")
}
