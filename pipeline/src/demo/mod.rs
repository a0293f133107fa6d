//! `sunder demo`: the whole story on embedded parts, with a clock that leaps.
//!
//! Everything is made up by the simulator; nothing leaves the machine. The broker is in memory, so the certificates claim no physical
//! proof for it, and say so.

mod search;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sunder_retention::case::{self, Shown, VerifyReport};
use sunder_retention::open::Opened;
use sunder_schemas::certificate;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{OrderId, SellerId};
use sunder_schemas::time::{Clock, LeapingClock, Period};
use tokio_util::sync::CancellationToken;

use crate::app::{App, Base};
use crate::cli::{DemoArgs, Role};
use crate::commands::Failure;
use crate::commands::open::open_order;
use crate::config;
use crate::output::Output;
use crate::run::{self, Ended, RunOptions, RunReport};
use crate::simulator::{self, ConfigWish, PersonalValue, RateScale, Running, Simulator, SimulatorOptions};

/// The virtual leap: past every delivery + 30 d and every cap (created + 60 d).
const LEAP: Period = Period::days(70);
/// The published rates are for months of data; the demo has seconds.
const RATE_SCALE: &str = "100000";
/// Purpose and role of the simulator's config.
const PURPOSE: (&str, &str) = ("fulfilment", "shipping");
/// First line of the note in the folder: only a folder with this note is written over.
const README_TITLE: &str = "What `sunder demo` left here";

/// What the demo saw, for `--json`.
#[derive(Debug, serde::Serialize)]
struct Story {
    sellers: usize,
    orders: usize,
    before: RunReport,
    after: RunReport,
    values_searched: usize,
    found_before: usize,
    found_after: usize,
    keys_destroyed_s: f64,
    cases: Vec<Shown>,
    verified: Vec<VerifyReport>,
    certificates_valid: usize,
    folder: PathBuf,
    took_s: f64,
}

/// Runs the demo.
///
/// # Errors
/// [`Failure`] where a part of the story does not come true.
pub async fn run(args: DemoArgs, output: Output) -> Result<u8, Failure> {
    let began = Instant::now();
    let folder = prepare(&args.out)?;
    let clock = Arc::new(LeapingClock::default());
    let simulator = simulate(&args, &clock).await?;
    let scale = RATE_SCALE.parse::<RateScale>().map_err(|_| Failure::Failed("rate scale".to_owned()))?;
    let wish = ConfigWish { clock_offset: Period::Millis(0), rate_scale: scale };
    simulator::write_config(&folder, &simulator, wish).map_err(|e| Failure::of("demo", &e))?;
    let config_file = folder.join("sunder.toml");
    let text = std::fs::read_to_string(&config_file).map_err(|e| Failure::Failed(format!("{}: {}", config_file.display(), e.kind())))?;
    let config = config::parse(&config_file, &text, std::iter::empty())?;
    let app = Arc::new(App::open(Base::open(config, Some(Arc::clone(&clock) as Arc<dyn Clock>)).await?).await?);

    output.say(format!("1. {} sellers connect; {} orders wait at a simulated SP-API.", args.sellers, args.orders));
    let before = roles(&app, &[Role::Poll, Role::Split, Role::Sink]).await?;
    output.say(format!(
        "   {} orders and stock rows were fetched, sealed in memory, published ({} events), split and stored ({} rows and sealed blocks).",
        before.polled, before.published, before.stored
    ));

    let personal: Vec<PersonalValue> = simulator.sellers().iter().flat_map(|seller| simulator.personal(&seller.id)).collect();
    let needles: Vec<&str> = personal.iter().filter_map(|value| value.needle.as_deref()).collect();
    let (buyer, name) = readable_buyer(&app, &personal).await?;
    output.say("2. Where is a buyer's name?");
    output.say(format!("   An order of seller {} opens for the purpose `{}`: the buyer is {name} (made up).", buyer.seller, PURPOSE.0));
    let found_before = search::everywhere(&app, &folder, &needles).await?;
    output.say(format!(
        "   It is nowhere in clear: {} personal values were looked for in every record of the broker and every file: {found_before} found.",
        needles.len()
    ));

    clock.advance(LEAP);
    output.say("3. 70 days pass: every order is 30 days past its delivery, or past its cap.");
    let after = roles(&app, &[Role::Poll, Role::Split, Role::Sink, Role::Retain]).await?;
    let cases = case::list(app.base.keyring.db(), app.base.clock.now()).await.map_err(|e| Failure::of("cases", &e))?;
    let keys_destroyed_s = keys_destroyed_s(&app, &cases).await?;
    output.say(format!(
        "   {} keys of {} cases were destroyed within {keys_destroyed_s:.1} s; the blocks were tombstoned and removed.",
        subjects(&cases),
        cases.len()
    ));
    if let Opened::Readable(_) = open(&app, &buyer).await? {
        return Err(Failure::Failed("the order still opens".to_owned()));
    }
    let found_after = search::everywhere(&app, &folder, &needles).await?;
    let blocks = search::blocks_of(&app, &buyer).await?;
    output.say(format!(
        "   The order no longer opens. Its blocks on the in-memory broker: {blocks}. Personal values found in any file: {found_after}."
    ));

    output.say("4. Proof:");
    let (verified, certificates_valid) = prove(&app, &folder, &cases, output).await?;
    simulator.stop().await;
    write_readme(&folder, &cases)?;
    let story = Story {
        sellers: args.sellers,
        orders: args.orders,
        before,
        after,
        values_searched: needles.len(),
        found_before,
        found_after,
        keys_destroyed_s,
        cases,
        verified,
        certificates_valid,
        folder: folder.clone(),
        took_s: began.elapsed().as_secs_f64(),
    };
    output.show(&story, || format!("Done in {:.0} s. Read {} next.", story.took_s, folder.join("README.txt").display()));
    if found_before + found_after + blocks > 0 || certificates_valid < story.cases.len() {
        return Err(Failure::NotTrue("the story did not come true; please report this with --json".to_owned()));
    }
    Ok(crate::cli::DONE)
}

/// An order as the demo names it.
pub(crate) struct Buyer {
    pub(crate) seller: SellerId,
    pub(crate) order: OrderId,
}

fn prepare(out: &Path) -> Result<PathBuf, Failure> {
    let failed = |e: std::io::Error| Failure::Failed(format!("{}: {}", out.display(), e.kind()));
    if out.exists() {
        let ours = std::fs::read_to_string(out.join("README.txt")).is_ok_and(|text| text.starts_with(README_TITLE));
        let empty = std::fs::read_dir(out).map_err(failed)?.next().is_none();
        if !ours && !empty {
            return Err(Failure::Use(format!("{} exists and was not left by a demo; name another folder with --out", out.display())));
        }
        if ours {
            std::fs::remove_dir_all(out).map_err(failed)?;
        }
    }
    std::fs::create_dir_all(out).map_err(failed)?;
    // From the start, so that a demo that was interrupted can be run again.
    std::fs::write(out.join("README.txt"), format!("{README_TITLE}\n\nThe demo did not get to its end.\n")).map_err(failed)?;
    std::path::absolute(out).map_err(failed)
}

async fn simulate(args: &DemoArgs, clock: &Arc<LeapingClock>) -> Result<Running, Failure> {
    let wrong = |_| Failure::Use("--sellers and --orders: smaller numbers, please".to_owned());
    let mut options = SimulatorOptions::new(args.seed, Arc::clone(clock) as Arc<dyn Clock>);
    options.sellers = u32::try_from(args.sellers).map_err(wrong)?;
    options.orders = u32::try_from(args.orders).map_err(wrong)?;
    options.rate_scale = RATE_SCALE.parse().map_err(|_| Failure::Failed("rate scale".to_owned()))?;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.map_err(|e| Failure::Failed(format!("loopback: {}", e.kind())))?;
    Simulator::start(options, listener).await.map_err(|e| Failure::of("simulate", &e))
}

async fn roles(app: &Arc<App>, roles: &[Role]) -> Result<RunReport, Failure> {
    let progress = indicatif::ProgressBar::new_spinner().with_message("working");
    progress.enable_steady_tick(Duration::from_millis(120));
    let options = RunOptions { roles: roles.to_vec(), until_idle: true };
    let (ended, report) = run::run(Arc::clone(app), options, None, CancellationToken::new()).await?;
    progress.finish_and_clear();
    match ended {
        Ended::Idle | Ended::Stopped => Ok(report),
        Ended::Blocked(cases) => Err(Failure::NotTrue(format!("cases are blocked: {}", cases.join("; ")))),
        Ended::Failed(why) => Err(Failure::Failed(why)),
    }
}

/// The first order whose buyer's name opens, and the name.
async fn readable_buyer(app: &App, personal: &[PersonalValue]) -> Result<(Buyer, String), Failure> {
    for value in personal.iter().filter(|v| v.allowed && v.group == "buyer_name") {
        let (Ok(seller), Ok(order)) = (SellerId::parse(&value.seller), OrderId::parse(&value.order)) else { continue };
        let buyer = Buyer { seller, order };
        let Opened::Readable(groups) = open(app, &buyer).await? else { continue };
        let group = groups.get(&FieldGroup::BuyerName).and_then(|plain| serde_json::from_slice::<serde_json::Value>(plain.reveal()).ok());
        if let Some(name) = group.as_ref().and_then(|group| group.pointer("/buyer/buyerName")).and_then(|n| n.as_str()) {
            return Ok((buyer, name.to_owned()));
        }
    }
    Err(Failure::Failed("no order of this seed has a buyer that opens; try more --orders".to_owned()))
}

async fn open(app: &App, buyer: &Buyer) -> Result<Opened, Failure> {
    open_order(&app.base, &app.vault, (&buyer.seller, &buyer.order), (PURPOSE.0, Some(PURPOSE.1), None)).await
}

fn subjects(cases: &[Shown]) -> u64 {
    cases.iter().map(|case| case.subjects).sum()
}

/// From the opening of the cases to the last key's destruction, by the system clock.
async fn keys_destroyed_s(app: &App, cases: &[Shown]) -> Result<f64, Failure> {
    let mut longest_ms = 0;
    for case in cases {
        let shown = case::show(app.base.keyring.db(), &case.id, app.base.clock.now()).await.map_err(|e| Failure::of("cases", &e))?;
        let at = |step: &str| {
            let event = shown.events.iter().find(|event| event.step == step)?;
            sunder_schemas::time::Timestamp::parse(&event.at_system).ok()
        };
        if let (Some(from), Some(to)) = (at("requested"), at("keys_destroyed")) {
            longest_ms = longest_ms.max(to.0 - from.0);
        }
    }
    Ok(Duration::from_millis(longest_ms.unsigned_abs()).as_secs_f64())
}

async fn prove(app: &App, folder: &Path, cases: &[Shown], output: Output) -> Result<(Vec<VerifyReport>, usize), Failure> {
    let (mut verified, mut valid) = (Vec::new(), 0);
    let signer = crate::app::signer(&app.base.config)?;
    for case in cases {
        let report = app.engine.verify(&case.id).await.map_err(|e| Failure::of("verify", &e))?;
        let files = case::certificate_files(app.base.keyring.db(), &case.id, &signer).await.map_err(|e| Failure::of("certificate", &e))?;
        let out = folder.join("certificates").join(case.id.as_str());
        crate::commands::certificate::write_files(&files, &out)?;
        std::fs::write(folder.join("certificate.pub"), format!("{}\n", files.verifier_key))
            .map_err(|e| Failure::Failed(e.kind().to_string()))?;
        let checked = certificate::check(&files.note, &files.verifier_key, Some(&files.proof), Some(&files.statement));
        valid += usize::from(checked.is_ok());
        output.say(format!(
            "   {}: every store read again: {} found, {} of {} controls found; {} of {} blocks and witnesses opened; certificate {}",
            case.id,
            report.scan.found,
            report.scan.controls_found,
            report.scan.controls_planted,
            report.recover.opened,
            report.recover.tried,
            if checked.is_ok() { "valid" } else { "NOT VALID" }
        ));
        verified.push(report);
    }
    Ok((verified, valid))
}

fn write_readme(folder: &Path, cases: &[Shown]) -> Result<(), Failure> {
    let case = cases.first().map_or("CASE", |case| case.id.as_str());
    let text = format!(
        "{README_TITLE}\n\n\
         warehouse.db                    business data (SQLite). Try: sqlite3 warehouse.db 'SELECT status, count(*) FROM orders GROUP BY status'\n\
         \x20                               Every row says seller, marketplace, API, operation, request and time; there is no personal column.\n\
         vault.db                        where the sealed blocks were: look for yourself, they are gone.\n\
         keys.db                         keys (destroyed), the erased ledger, the cases, the audit chain.\n\
         certificates/<case>/            certificate.note is signed; certificate.json says the same for programs; certificate.proof is its place in the log.\n\
         certificate.pub                 the key that checks them.\n\
         sunder.toml                     the config the demo ran with.\n\n\
         Check a certificate offline:\n\
         \x20 sunder certificate check certificates/{case}/certificate.note --key certificate.pub\n\
         Change one byte of it and check again.\n\n\
         The broker was in memory and is gone with the demo; the certificates say so and claim no physical proof for it. On Apache Kafka the\n\
         same code reads every partition again after compaction. All data here was made up by a simulator.\n"
    );
    std::fs::write(folder.join("README.txt"), text).map_err(|e| Failure::Failed(format!("README.txt: {}", e.kind())))
}
