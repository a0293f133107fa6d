//! `sunder erase`

mod export;

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sunder_retention::buyer::{self, Found, Sought};
use sunder_retention::case::{self, EraseRequest, Plan, Reason, Scope, State};
use sunder_retention::purpose::Wish;
use sunder_schemas::ids::{EntityToken, OrderId, SellerId};
use zeroize::Zeroizing;

use super::Failure;
use super::cases::show_one;
use super::follow::follow;
use crate::app::{App, Base};
use crate::cli::{DONE, EraseArgs};
use crate::config::Config;
use crate::output::Output;

/// Longest file or input that is read for a buyer's name or address, in bytes. Chosen: an address has 254 at the most (RFC 5321).
const SOUGHT_BYTES_MAX: u64 = 4096;

/// Opens a case, and follows it where asked.
pub(super) async fn run(config: Config, args: EraseArgs, output: Output) -> Result<u8, Failure> {
    let sought = sought(&args)?;
    let mut request = request(&args)?;
    let app = Arc::new(App::open_for_request(Base::open(config, None).await?).await?);
    super::must_be_known(&app.base, &request.seller).await?;
    if let Some(sought) = sought {
        let matches = find(&app, &args, &request.seller, &sought).await?;
        if matches.is_empty() {
            return Err(Failure::NotTrue("no order of this buyer is held under this seller: nothing to erase".to_owned()));
        }
        request.scope = Scope::Entities(matches);
    }
    if args.dry_run {
        let plan = app.engine.dry_run(&request).await.map_err(|e| Failure::of("erase", &e))?;
        output.show(&plan, || show_plan(&plan));
        return Ok(DONE);
    }
    if let Some(folder) = &args.export {
        let exported = export::export(&app, &request, &wish(&args), folder).await?;
        tracing::info!(orders = exported, "exported before the erasure");
    }
    let id = app.engine.request(&request).await.map_err(|e| Failure::of("erase", &e))?;
    let shown = if args.wait {
        follow(&app, &id, args.wait_limit.to_std(), output).await?
    } else {
        case::show(app.base.keyring.db(), &id, app.base.clock.now()).await.map_err(|e| Failure::of("cases", &e))?
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
    let mut orders = args.scope.order.iter().map(|order| OrderId::parse(order).map_err(wrong)).collect::<Result<Vec<_>, _>>()?;
    if let Some(file) = &args.scope.orders_file {
        orders.extend(read_orders(file)?);
    }
    Ok(EraseRequest {
        seller: SellerId::parse(&args.seller).map_err(wrong)?,
        scope: if args.scope.all { Scope::All } else { Scope::Orders(orders) },
        reason: Reason::parse(&args.reason).ok_or_else(|| Failure::Use("--reason is not one of the known ones".to_owned()))?,
        with_business_data: args.with_business_data.then_some(true),
        now: args.now,
        requested_by: super::os_user(),
    })
}

/// Opens `file`, or standard input where it is `-`. The path stays out of the error: somebody may have typed what belongs in the file.
fn reader(option: &str, file: &Path) -> Result<Box<dyn Read>, Failure> {
    if file == Path::new("-") {
        return Ok(Box::new(std::io::stdin()));
    }
    let file = std::fs::File::open(file);
    Ok(Box::new(file.map_err(|e| Failure::Use(format!("{option}: the file cannot be read: {}", e.kind())))?))
}

/// The order ids of a file, one a line; empty lines are left out.
fn read_orders(file: &Path) -> Result<Vec<OrderId>, Failure> {
    let mut orders = Vec::new();
    for (number, line) in (1..).zip(BufReader::new(reader("--orders-file", file)?).lines()) {
        let line = line.map_err(|e| Failure::Use(format!("--orders-file: line {number} cannot be read: {}", e.kind())))?;
        if !line.trim().is_empty() {
            let order = OrderId::parse(line.trim());
            orders.push(order.map_err(|error| Failure::Use(format!("--orders-file, line {number}: {error}")))?);
        }
    }
    if orders.is_empty() {
        return Err(Failure::Use("--orders-file: names no order".to_owned()));
    }
    Ok(orders)
}

/// Who is sought, where a buyer is; read before anything is opened, so that a mistake costs nothing.
fn sought(args: &EraseArgs) -> Result<Option<Sought>, Failure> {
    let (email, name) = (&args.scope.buyer_email, &args.scope.buyer_name);
    if email.is_none() && name.is_none() {
        return Ok(None);
    }
    let dash = Some(PathBuf::from("-"));
    if *email == dash && *name == dash {
        return Err(Failure::Use("--buyer-email and --buyer-name cannot both be read from standard input".to_owned()));
    }
    let read = |option: &str, file: &Option<PathBuf>| {
        file.as_ref()
            .map(|file| {
                let mut text = Zeroizing::new(String::new());
                let read = reader(option, file)?.take(SOUGHT_BYTES_MAX).read_to_string(&mut text);
                read.map_err(|e| Failure::Use(format!("{option}: cannot be read: {}", e.kind())))?;
                Ok::<_, Failure>(Zeroizing::new(text.lines().next().unwrap_or_default().to_owned()))
            })
            .transpose()
    };
    let (email, name) = (read("--buyer-email", email)?, read("--buyer-name", name)?);
    let empty = |text: &Option<Zeroizing<String>>| text.as_ref().is_some_and(|text| text.trim().is_empty());
    if empty(&email) || empty(&name) {
        return Err(Failure::Use("--buyer-email, --buyer-name: the first line is empty".to_owned()));
    }
    Ok(Sought::new(email.as_ref().map(|t| t.as_str()), name.as_ref().map(|t| t.as_str())))
}

/// Who reads sealed fields for this request, and what for.
struct Reader {
    os_user: String,
    role: Option<String>,
    purpose: String,
}

fn wish(args: &EraseArgs) -> Reader {
    Reader { os_user: super::os_user(), role: args.role.clone(), purpose: args.purpose.clone().unwrap_or_default() }
}

/// The orders of the buyer: an authorised, audited search through the vault.
async fn find(app: &App, args: &EraseArgs, seller: &SellerId, sought: &Sought) -> Result<Vec<EntityToken>, Failure> {
    let reader = wish(args);
    let wish = Wish { os_user: &reader.os_user, role: reader.role.as_deref(), purpose: &reader.purpose, fields: None };
    let register = super::open::register(&app.base.config);
    let found = buyer::search(&app.base.keyring, &register, &wish, seller, sought, &*app.vault).await;
    match found.map_err(|e| Failure::of("search", &e))? {
        Found::Denied(denial) => Err(Failure::Failed(format!("the search is denied: {denial}"))),
        Found::Orders { matches, read } => {
            tracing::info!(read, matches = matches.len(), "searched for a buyer");
            Ok(matches)
        }
    }
}

fn show_plan(plan: &Plan) -> String {
    let mut lines = vec![format!(
        "would erase {} subjects of seller {} ({} with live keys), {}; due by {}",
        plan.subjects,
        plan.seller,
        plan.with_live_keys,
        if plan.extent.takes_rows() { "business data too" } else { "personal data only" },
        plan.due_at
    )];
    lines.extend(plan.goes.iter().map(|goes| format!("  {} {}: {} rows", goes.store, goes.table, goes.rows)));
    lines.push(format!("  read again afterwards: {}", plan.stores.join(", ")));
    lines.join("\n")
}
