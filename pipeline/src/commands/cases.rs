//! `sunder cases`, `sunder verify`

use sunder_retention::case::{Shown, VerifyReport};
use sunder_schemas::ids::CaseId;

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
            let cases = sunder_retention::case::list(db, base.clock.now()).await.map_err(|e| Failure::of("cases", &e))?;
            output.show(&cases, || show_all(&cases));
        }
        Some(id) => {
            let case = sunder_retention::case::show(db, &case_id(id)?, base.clock.now()).await.map_err(|e| Failure::of("cases", &e))?;
            output.show(&case, || show_one(&case));
        }
    }
    Ok(DONE)
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
    if let Some(why) = &case.blocked_by {
        lines.push(format!("waits for: {why}"));
    }
    for event in &case.events {
        lines.push(format!("  {:>2}  {}  {}", event.seq, event.at, event.step));
    }
    lines.join("\n")
}

/// Reads every store again for one case.
pub(super) async fn verify(config: Config, id: &str, output: Output) -> Result<u8, Failure> {
    let id = case_id(id)?;
    let app = App::open(Base::open(config, None).await?).await?;
    let report = app.engine.verify(&id).await.map_err(|e| Failure::of("verify", &e))?;
    output.show(&report, || show_report(&report));
    Ok(if report.holds { DONE } else { NOT_TRUE })
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
