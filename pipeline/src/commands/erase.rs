//! `sunder erase`

use std::sync::Arc;
use std::time::Duration;

use sunder_retention::case::{self, EraseRequest, Plan, Reason, Scope, State};
use sunder_retention::lease;
use sunder_schemas::ids::{CaseId, OrderId, SellerId};
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::cases::show_one;
use crate::app::{App, Base};
use crate::cli::{DONE, EraseArgs, NOT_TRUE, Role};
use crate::config::Config;
use crate::output::Output;
use crate::run::{self, Ended, RunOptions};

/// Between two looks at a case that other processes work.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Opens a case, and follows it where asked.
pub(super) async fn run(config: Config, args: EraseArgs, output: Output) -> Result<u8, Failure> {
    let request = request(&args)?;
    let app = Arc::new(App::open(Base::open(config, None).await?).await?);
    super::must_be_known(&app.base, &request.seller).await?;
    if args.dry_run {
        let plan = app.engine.dry_run(&request).await.map_err(|e| Failure::of("erase", &e))?;
        output.show(&plan, || show_plan(&plan));
        return Ok(DONE);
    }
    let id = app.engine.request(&request).await.map_err(|e| Failure::of("erase", &e))?;
    if args.wait {
        follow(&app, &id).await?;
    }
    let shown = case::show(app.base.keyring.db(), &id).await.map_err(|e| Failure::of("cases", &e))?;
    output.show(&shown, || show_one(&shown));
    Ok(if args.wait && shown.state != State::Certified { NOT_TRUE } else { DONE })
}

fn request(args: &EraseArgs) -> Result<EraseRequest, Failure> {
    let wrong = |error: sunder_schemas::ids::IdError| Failure::Use(error.to_string());
    let scope = match &args.order {
        Some(order) => Scope::Orders(vec![OrderId::parse(order).map_err(wrong)?]),
        None => Scope::All,
    };
    Ok(EraseRequest {
        seller: SellerId::parse(&args.seller).map_err(wrong)?,
        scope,
        reason: Reason::parse(&args.reason).ok_or_else(|| Failure::Use("--reason is not one of the known ones".to_owned()))?,
        with_business_data: args.with_business_data.then_some(true),
        now: args.now,
        requested_by: super::os_user(),
    })
}

fn show_plan(plan: &Plan) -> String {
    format!(
        "would erase {} subjects of seller {} ({} with live keys) from: {}; due by {}",
        plan.subjects,
        plan.seller,
        plan.with_live_keys,
        plan.stores.join(", "),
        plan.due_at
    )
}

/// Waits until the case is certified or stays blocked. Where no process runs the `retain` role, this one works the case itself, with
/// the splitter and the sinks that it needs.
async fn follow(app: &Arc<App>, id: &CaseId) -> Result<(), Failure> {
    let others = lease::live_with_role(app.base.keyring.db(), Role::Retain.as_str()).await.map_err(|e| Failure::of("erase", &e))?;
    if others == 0 {
        let options = RunOptions { roles: vec![Role::Split, Role::Sink, Role::Retain], until_idle: true };
        return match run::run(Arc::clone(app), options, None, CancellationToken::new()).await?.0 {
            Ended::Failed(why) => Err(Failure::Failed(why)),
            Ended::Idle | Ended::Stopped | Ended::Blocked(_) => Ok(()),
        };
    }
    let progress = indicatif::ProgressBar::new_spinner();
    loop {
        let shown = case::show(app.base.keyring.db(), id).await.map_err(|e| Failure::of("cases", &e))?;
        progress.set_message(format!("{}: {} {}", shown.id, shown.state, shown.blocked_by.as_deref().unwrap_or_default()));
        progress.tick();
        if shown.state == State::Certified {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
