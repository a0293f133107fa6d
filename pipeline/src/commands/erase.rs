//! `sunder erase`

use std::sync::Arc;

use sunder_retention::case::{self, EraseRequest, Plan, Reason, Scope, State};
use sunder_schemas::ids::{OrderId, SellerId};

use super::Failure;
use super::cases::show_one;
use super::follow::follow;
use crate::app::{App, Base};
use crate::cli::{DONE, EraseArgs};
use crate::config::Config;
use crate::output::Output;

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
    let shown = if args.wait {
        follow(&app, &id, args.wait_limit.to_std(), output).await?
    } else {
        case::show(app.base.keyring.db(), &id).await.map_err(|e| Failure::of("cases", &e))?
    };
    output.show(&shown, || show_one(&shown));
    if !args.wait || shown.state == State::Certified {
        return Ok(DONE);
    }
    let why = shown.blocked_by.as_deref().unwrap_or("it is under way");
    let how = if shown.blocked { "is blocked until somebody mends this" } else { "is not certified yet" };
    Err(Failure::NotTrue(format!("{id} {how}: {why}. It goes on by itself while a process runs `retain`; see `sunder cases {id}`")))
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
