//! Bench (e): erase 10,000 of 200,000 orders, on Apache Kafka and PostgreSQL, with every role running.
//!
//! Times are those of the case's own events, counted from the request: keys destroyed, sinks clean, verified. The topics have the test
//! profile's periods (seconds), as verification waits for the log's cleaner; `--production` takes those of production (6 hours) and has
//! removal forced, as `sunder erase --now` does. Beside the times stands the log's own bound, from a tombstone to the bytes being gone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use sqlx::Connection as _;
use sunder::kafka::heartbeat;
use sunder::kafka::log::KafkaLog;
use sunder::registry::{BuiltIn, Schemas};
use sunder::run::stray::Sealed;
use sunder::sink_runner::SinkRunner;
use sunder::split::runner::SplitRunner;
use sunder_benches::database::Database;
use sunder_benches::generate::{Generator, order_id};
use sunder_benches::line::{Keys, Line, WANTED};
use sunder_benches::log::Log;
use sunder_benches::measure::say;
use sunder_retention::admit::Admission;
use sunder_retention::case::{About, Engine, EraseRequest, Parts, Progress, Reason, RingKeys, Scope, certificate_files, show};
use sunder_retention::keyfiles::KeyFiles;
use sunder_retention::keys::Context;
use sunder_retention::lease::Lease;
use sunder_retention::ledger::SubjectState;
use sunder_retention::store::EventLog as _;
use sunder_schemas::certificate::{Statement, check};
use sunder_schemas::class::Family;
use sunder_schemas::envelope::RawEvent;
use sunder_schemas::ids::{CaseId, OrderId};
use sunder_schemas::key;
use sunder_schemas::note::NoteSigner;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{PiiRecord, Record as _, StateRecord};
use sunder_schemas::time::{Clock as _, ManualClock, Period, SystemClock, Timestamp};
use sunder_schemas::topic::{Profile, Topic};
use sunder_sinks::{Sink, StoreOptions, Vault, Warehouse};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Orders of one answer, and of one admission.
const PAGE: u64 = 1_000;
/// How often the bench looks whether the sinks have everything.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often it looks whether the vault's sink has deleted everything: the grain of that figure.
const WATCH_EVERY: Duration = Duration::from_millis(10);
/// The lease of this process (DESIGN section 5 names 30 s in production; the case waits for its acknowledgement, a third of it).
const LEASE: Duration = Duration::from_secs(3);
/// How long everything may take.
const GIVE_UP: Duration = Duration::from_secs(900);

#[derive(Parser)]
#[command(about = "Bench (e): erase 10,000 of 200,000 orders")]
struct Args {
    /// Address of the broker.
    #[arg(long)]
    kafka: String,
    /// Process id of the broker; not used here.
    #[arg(long)]
    kafka_pid: Option<u32>,
    /// A database of the PostgreSQL server.
    #[arg(long)]
    postgres: String,
    /// Process id of the server; not used here.
    #[arg(long)]
    postgres_pid: Option<u32>,
    /// Partitions of the topics of data. Each compacted one rolls a segment a second under the test profile, and a broker has one thread
    /// that cleans: with 12 of them on a busy core it falls behind, and the case rightly waits.
    #[arg(long, default_value_t = 3)]
    partitions: i32,
    /// Replicas of each partition: as many brokers as `--kafka` names, or fewer.
    #[arg(long, default_value_t = 1)]
    replicas: i32,
    /// The topics' periods of production, and removal forced.
    #[arg(long)]
    production: bool,
    /// Orders there are.
    #[arg(long, default_value_t = 200_000)]
    orders: u64,
    /// Orders that go.
    #[arg(long, default_value_t = 10_000)]
    erased: u64,
}

impl Args {
    fn profile(&self) -> Profile {
        if self.production { Profile::Production } else { Profile::Test }
    }
}

/// Mints, seals and publishes `orders` orders, as the poller does.
fn fill(log: &Log, handle: &Handle, keys: &Keys, schemas: &Schemas, orders: u64) -> anyhow::Result<()> {
    let mut line = Line::new(keys, "searchOrders")?;
    let mut generator = Generator::new(51);
    let (mut body, mut ready): (String, VecDeque<RawEvent>) = Default::default();
    log.fill(Topic::Raw(Family::Orders), orders, |nth, record| {
        if ready.is_empty() {
            body.clear();
            generator.search_orders(nth..orders.min(nth + PAGE), 0, &mut body);
            let page = line.classify(body.as_bytes())?.entities;
            let candidates = page.iter().map(|order| line.candidate(order)).collect::<anyhow::Result<Vec<_>>>()?;
            let admissions = handle.block_on(keys.keyring.admit(&keys.seller, &candidates))?;
            for (order, admission) in page.into_iter().zip(admissions) {
                let Admission::Seal { key, .. } = admission else { bail!("an order was not admitted") };
                ready.push_back(line.seal(order, &key, |_| true)?);
            }
        }
        let event = ready.pop_front().context("a page with too few orders")?;
        let token = event.entity.token;
        record.partition = log.kafka.partition_of(&keys.seller, token).0;
        record.key = key::event_key(&keys.seller, token, None, event.attribution.event_id);
        schemas.begin(RecordType::RawEvent, &mut record.value);
        event.encode(&mut record.value);
        Ok(())
    })
}

/// What runs beside the case.
struct Roles {
    splitter: SplitRunner,
    warehouse: SinkRunner<StateRecord>,
    vault: SinkRunner<PiiRecord>,
}

/// Works the case to its certificate and returns the events' times after the request, in ms.
async fn erase(
    engine: &Engine,
    keys: &Keys,
    now: bool,
    orders: impl Iterator<Item = u64>,
) -> anyhow::Result<(CaseId, Vec<(&'static str, i64)>)> {
    let orders = orders.map(|number| OrderId::parse(&order_id(number))).collect::<Result<Vec<_>, _>>()?;
    let asked = SystemClock::default().now();
    let request = EraseRequest {
        seller: keys.seller.clone(),
        scope: Scope::Orders(orders),
        reason: Reason::BuyerRequest,
        with_business_data: None,
        now,
        requested_by: "bench".to_owned(),
    };
    let case = engine.request(&request).await?;
    loop {
        match engine.advance(&case).await? {
            Progress::Done => break,
            Progress::Waiting { again, .. } => tokio::time::sleep(again).await,
            Progress::Blocked { why } => bail!("the case is blocked: {why}"),
        }
    }
    let mut times = Vec::new();
    for event in show(keys.keyring.db(), &case, keys.keyring.now()).await?.events {
        times.push((event.step, Timestamp::parse(&event.at_system)?.0 - asked.0));
    }
    Ok((case, times))
}

/// Waits until the vault's sink has deleted `rows` by the tombstones it read, or the case is over; returns when, after now, in ms.
async fn watch_vault(vault: &SinkRunner<PiiRecord>, rows: u64, over: &CancellationToken) -> Option<i64> {
    let began = SystemClock::default().now();
    while vault.progress().rows_deleted < rows {
        if tokio::time::timeout(WATCH_EVERY, over.cancelled()).await.is_ok() {
            return None;
        }
    }
    Some(SystemClock::default().now().0 - began.0)
}

/// How much the reading behind a certificate came to: records of every replica, rows and bytes.
fn read_for(statement: &Statement) -> BTreeMap<String, u64> {
    let mut read = BTreeMap::new();
    for place in statement.stores.iter().flat_map(|store| &store.places) {
        let mut words = place.read.split_whitespace();
        if let (Some(Ok(count)), Some(unit)) = (words.next().map(str::parse::<u64>), words.next()) {
            *read.entry(unit.to_owned()).or_default() += count;
        }
    }
    read
}

/// The erased order is gone, another opens, the business rows stay, the certificate checks; returns how much was read for it.
async fn look(args: &Args, keys: &Keys, vault: &Vault, case: &CaseId, store: &Database) -> anyhow::Result<BTreeMap<String, u64>> {
    let token = |number| anyhow::Ok(keys.of_seller.order_token(&OrderId::parse(&order_id(number))?));
    let (gone, kept) = (token(0)?, token(1)?);
    ensure!(vault.blocks(&keys.seller, gone).await?.is_empty(), "an erased order still has blocks in the vault");
    ensure!(matches!(keys.keyring.subject(&keys.seller, gone).await?, SubjectState::Destroyed), "an erased order's key lives");
    let SubjectState::Live(key) = keys.keyring.subject(&keys.seller, kept).await? else { bail!("another order's key is gone") };
    let blocks = vault.blocks(&keys.seller, kept).await?;
    let block = blocks.iter().find(|block| block.field_group == WANTED).context("another order's block is gone")?;
    let context = Context { seller: &keys.seller, entity: kept, group: WANTED, classification: &block.classification };
    key.open(&context, block.block.as_bytes())?;
    let mut connection = store.connect().await?;
    let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&mut connection).await?;
    ensure!(rows.unsigned_abs() == args.orders, "{rows} business rows are left of {}", args.orders);
    let sealed: i64 = sqlx::query_scalar("SELECT count(*) FROM sealed_block").fetch_one(&mut connection).await?;
    ensure!(sealed.unsigned_abs() == 2 * (args.orders - args.erased), "{sealed} sealed blocks are left");
    connection.close().await?;
    let files = certificate_files(keys.keyring.db(), case, &signer()?).await?;
    let statement = check(&files.note, &files.verifier_key, Some(&files.proof), Some(&files.statement))?.statement;
    ensure!(statement.recover.opened == 0 && statement.scan.found == 0, "the certificate says that something is left");
    Ok(read_for(&statement))
}

async fn wait_until_stored(roles: &Roles, orders: u64, store: &Database) -> anyhow::Result<()> {
    let all = async {
        while roles.vault.progress().rows_written < 2 * orders || roles.warehouse.progress().rows_written < 2 * orders {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        // A sink that started over counts rows twice; the tables do not.
        let mut connection = store.connect().await?;
        let sql = "SELECT (SELECT count(*) FROM orders) = $1 AND (SELECT count(*) FROM sealed_block) = 2 * $1";
        while !sqlx::query_scalar::<_, bool>(sql).bind(i64::try_from(orders)?).fetch_one(&mut connection).await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        anyhow::Ok(connection.close().await?)
    };
    tokio::time::timeout(GIVE_UP, all).await.context("the sinks did not get everything")?
}

/// Signs the bench's certificate; a key for nothing else.
fn signer() -> anyhow::Result<NoteSigner> {
    Ok(NoteSigner::from_seed("example.com/sunder-bench", &[9; 32])?)
}

fn engine(keys: &Keys, log: &Log, warehouse: &Arc<Warehouse>, vault: &Arc<Vault>) -> anyhow::Result<Engine> {
    let kafka_log = Arc::new(KafkaLog::new(log.kafka.clone()));
    Ok(Engine::new(Parts {
        db: keys.keyring.db().clone(),
        keys: Arc::new(RingKeys::new(Arc::clone(&keys.keyring))),
        log: kafka_log.clone(),
        forget: vec![warehouse.clone(), vault.clone()],
        prove: vec![kafka_log, warehouse.clone(), vault.clone(), Arc::new(KeyFiles::new(Arc::clone(&keys.keyring)))],
        clock: Arc::new(ManualClock::at(keys.keyring.now())),
        system_clock: Arc::new(SystemClock::default()),
        signer: Arc::new(signer()?),
        about: About {
            tool: "sunder-benches".to_owned(),
            issuer: None,
            operator: "retain".to_owned(),
            validator: "verify".to_owned(),
            policy_version: "bench/1".to_owned(),
            policy: serde_json::json!({}),
            request_due: Period::days(30),
            expiry_due: Period::days(2),
        },
    }))
}

fn run(args: &Args, handle: &Handle) -> anyhow::Result<()> {
    let log = handle.block_on(Log::open(&args.kafka, "erase", args.profile(), args.partitions, args.replicas))?;
    let (key_store, store) = handle.block_on(async {
        anyhow::Ok((Database::create(&args.postgres, "keys").await?, Database::create(&args.postgres, "store").await?))
    })?;
    let keys = handle.block_on(Keys::open(Some(key_store.url())))?;
    let schemas = Arc::new(handle.block_on(Schemas::open(Arc::new(BuiltIn), &log.kafka.settings().prefix))?);
    let options = StoreOptions::new(store.url(), &log.kafka.settings().prefix);
    let erased = keys.keyring.erased().clone();
    let warehouse = Arc::new(handle.block_on(Warehouse::open(&options))?);
    let vault = Arc::new(handle.block_on(Vault::open(&options, Arc::new(move |key| erased.contains(key))))?);
    fill(&log, handle, &keys, &schemas, args.orders)?;
    let lease = handle.block_on(Lease::register(Arc::clone(&keys.keyring), "split,sink,retain", LEASE))?;
    let roles = Roles {
        splitter: SplitRunner::new(
            log.kafka.clone(),
            Arc::clone(&schemas),
            Arc::clone(&keys.keyring),
            Family::ALL.to_vec(),
            "sunder-benches",
        ),
        warehouse: SinkRunner::new(log.kafka.clone(), Arc::clone(&schemas), warehouse.clone() as Arc<dyn Sink<StateRecord>>, None),
        vault: SinkRunner::new(
            log.kafka.clone(),
            Arc::clone(&schemas),
            vault.clone() as Arc<dyn Sink<PiiRecord>>,
            Some(Arc::clone(&keys.keyring)),
        ),
    };
    let stop = CancellationToken::new();
    let (stop_lease, stopped) = watch::channel(false);
    let bound = handle.block_on(KafkaLog::new(log.kafka.clone()).removal_bound())?;
    let (times, read, (blocks, swept)) = std::thread::scope(|scope| {
        let splitting = scope.spawn(|| roles.splitter.run(handle, &stop));
        let warehousing = scope.spawn(|| roles.warehouse.run(handle, &stop));
        let vaulting = scope.spawn(|| roles.vault.run(handle, &stop));
        let leasing = scope.spawn(|| handle.block_on(lease.run(stopped)));
        // The case is worked here and not by a `retain` role, so nobody tells when it moves.
        let looks = std::sync::atomic::AtomicU64::new(0);
        let always_moving = move || looks.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let beating = scope.spawn(|| handle.block_on(heartbeat::run(log.kafka.clone(), always_moving, stop.clone())));
        let erased = handle.block_on(async {
            wait_until_stored(&roles, args.orders, &store).await?;
            let engine = engine(&keys, &log, &warehouse, &vault)?;
            let every = (args.orders / args.erased.max(1)).max(1);
            let over = CancellationToken::new();
            let gone = (roles.vault.progress().rows_deleted, 2 * args.erased);
            let case = async {
                let ended = erase(&engine, &keys, args.production, (0..args.erased).map(|nth| nth * every)).await;
                over.cancel();
                ended
            };
            let (ended, cleaned) = tokio::join!(case, watch_vault(&roles.vault, gone.0 + gone.1, &over));
            let (case, mut times) = ended?;
            // Two sealed blocks an order. Where the case's own step was first there is nothing left for the tombstones to delete.
            times.extend(cleaned.map(|at| ("(the vault's sink had deleted all of it)", at)));
            times.sort_by_key(|(_, at)| *at);
            let read = look(args, &keys, &vault, &case, &store).await?;
            let started = Instant::now();
            let sealed = Sealed { kafka: &log.kafka, schemas: &schemas, db: keys.keyring.db(), vault: &vault, engine: &engine };
            let swept = sealed.sweep(keys.keyring.now()).await?;
            ensure!(swept.found == 0, "the daily reading found {} blocks of erased orders", swept.found);
            anyhow::Ok((times, read, (swept.read, started.elapsed())))
        });
        stop.cancel();
        let panicked = |_| anyhow::anyhow!("a role panicked");
        splitting.join().map_err(panicked)??;
        warehousing.join().map_err(panicked)??;
        vaulting.join().map_err(panicked)??;
        beating.join().map_err(panicked)?;
        stop_lease.send(true).context("the lease ended before the case")?;
        leasing.join().map_err(panicked)??;
        erased
    })?;
    say(&format!("(e) {} of {} orders erased; ms after the request:", args.erased, args.orders))?;
    for (step, at) in &times {
        say(&format!("  {step:<42} {at:>12} ms"))?;
    }
    let at = |wanted: &str| times.iter().find(|(step, _)| *step == wanted).map(|(_, at)| *at).with_context(|| format!("no event {wanted}"));
    let (from, to) = (at("second_tombstones")?, at("verified")?);
    let reading = to - at("rolled").or_else(|_| at("sinks_clean"))?;
    say(&format!("  read for the proof: {read:?}; from the step before it {reading} ms"))?;
    say(&format!(
        "  from the last tombstone to its proof {} ms; the log's bound for the cleaner alone {} ms",
        to - from,
        bound.as_millis()
    ))?;
    say(&format!("  the daily reading: {blocks} blocks of log and vault in {} ms", swept.as_millis()))?;
    drop((roles, warehouse, vault, keys));
    handle.block_on(async {
        store.remove().await?;
        key_store.remove().await
    })
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.erased > 0 && args.erased <= args.orders, "--erased must be between 1 and --orders");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    run(&args, runtime.handle())
}
