//! Bench (c): the real splitter, from raw events to history, state and sealed records, on Apache Kafka.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use sunder::registry::{BuiltIn, Schemas};
use sunder::split::runner::SplitRunner;
use sunder_benches::generate::Generator;
use sunder_benches::line::{Keys, Line};
use sunder_benches::log::{Log, PARTITIONS};
use sunder_benches::measure::{Run, own_cpu, report, say, tree_cpu};
use sunder_retention::keys::DataKey;
use sunder_schemas::class::{Family, Kind};
use sunder_schemas::key;
use sunder_schemas::records::Record as _;
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::topic::{Profile, Topic};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// How often the bench looks how far the splitter is: fine beside runs of seconds, and cheap.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// What one raw order becomes: state and history of order and item, two sealed groups.
const WRITTEN_EACH: u64 = 6;

#[derive(Parser)]
#[command(about = "Bench (c): the splitter, raw events to history, state and sealed records")]
struct Args {
    /// Address of the broker.
    #[arg(long)]
    kafka: String,
    /// Process id of the broker, to count its CPU.
    #[arg(long)]
    kafka_pid: Option<u32>,
    /// Raw orders of one run.
    #[arg(long, default_value_t = 300_000)]
    orders: u64,
    /// Runs; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

fn fill(log: &Log, keys: &Keys, schemas: &Schemas, orders: u64) -> anyhow::Result<()> {
    let mut line = Line::new(keys, "getOrder")?;
    let mut generator = Generator::new(41);
    // Blocks are moved, not opened: one key does for the events.
    let data_key = DataKey::ephemeral();
    let mut text = String::new();
    log.fill(Topic::Raw(Family::Orders), orders, |nth, record| {
        let order = generator.order_of(nth, 10, 20_000);
        text.clear();
        generator.get_order(order, nth, &mut text);
        let order = line.classify(text.as_bytes())?.entities.into_iter().next().context("no order")?;
        let event = line.seal(order, &data_key, |_| true)?;
        record.partition = log.kafka.partition_of(&keys.seller, event.entity.token).0;
        record.key = key::event_key(&keys.seller, event.entity.token, None, event.attribution.event_id);
        schemas.begin(RecordType::RawEvent, &mut record.value);
        event.encode(&mut record.value);
        Ok(())
    })
}

/// Runs the splitter until all is split; figures are of what followed its first batch, which also joins the group and reads state back.
fn split(args: &Args, handle: &Handle, runner: &SplitRunner, own: u64) -> anyhow::Result<[Run; 2]> {
    let stop = CancellationToken::new();
    let broker = || args.kafka_pid.map_or(Ok(Duration::ZERO), tree_cpu);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| runner.run(handle, &stop));
        let wait_past = |records: u64| {
            while runner.progress().counts.records <= records && !running.is_finished() {
                std::thread::park_timeout(LOOK_EVERY);
            }
            runner.progress().counts
        };
        let first = wait_past(0);
        let (wall, cpu, of_broker) = (Instant::now(), own_cpu()?, broker()?);
        let last = wait_past((args.orders + own).saturating_sub(1));
        let (wall, cpu, of_broker) = (wall.elapsed(), own_cpu()?.saturating_sub(cpu), broker()?.saturating_sub(of_broker));
        stop.cancel();
        running.join().map_err(|_| anyhow::anyhow!("the splitter panicked"))??;
        ensure!(last.records == args.orders + own && last.outcomes.total() == last.records, "{} records were split", last.records);
        ensure!(last.outcomes.stored == args.orders, "{} orders were stored", last.outcomes.stored);
        let count = last.records + last.written - first.records - first.written;
        Ok([Run { count, wall, cpu }, Run { count, wall, cpu: of_broker }])
    })
}

fn run_once(args: &Args, handle: &Handle, number: usize) -> anyhow::Result<([Run; 2], f64)> {
    let log = handle.block_on(Log::open(&args.kafka, &format!("split{number}"), Profile::Production, PARTITIONS, 1))?;
    let kafka = &log.kafka;
    let keys = handle.block_on(Keys::open(None))?;
    let schemas = Arc::new(handle.block_on(Schemas::open(Arc::new(BuiltIn), &kafka.settings().prefix))?);
    fill(&log, &keys, &schemas, args.orders)?;
    let runner = SplitRunner::new(kafka.clone(), Arc::clone(&schemas), Arc::clone(&keys.keyring), vec![Family::Orders], "sunder-benches");
    let runs = split(args, handle, &runner, log.own(Topic::Raw(Family::Orders)))?;
    let counts = runner.progress().counts;
    ensure!(counts.written == WRITTEN_EACH * args.orders, "{} records were written for {} orders", counts.written, args.orders);
    for (topic, each) in [
        (Topic::State(Kind::Orders), 1),
        (Topic::Events(Kind::Orders), 1),
        (Topic::State(Kind::OrderItems), 1),
        (Topic::Events(Kind::OrderItems), 1),
        (Topic::Pii(Family::Orders), 2),
    ] {
        let found = log.written(topic)?;
        ensure!(found == each * args.orders, "{topic} holds {found} records, not {}", each * args.orders);
    }
    let [program, _] = runs;
    let raw = Run { count: program.count / (WRITTEN_EACH + 1), ..program };
    Ok((runs, raw.rate()))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (mut program, mut broker, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..args.runs {
        let ([run, of_broker], rate) = run_once(&args, runtime.handle(), number)?;
        program.push(run);
        broker.push(of_broker);
        raw.push(rate);
    }
    say(&format!("(c) the splitter: {} raw orders a run, each becomes {WRITTEN_EACH} records", args.orders))?;
    report("records in and out per CPU-second", "records/s", &program, Run::rate_cpu)?;
    report("records in and out by the clock", "records/s", &program, Run::rate)?;
    say(&format!("{:<44} {:>12.0} orders/s", "raw orders by the clock", sunder_benches::measure::median(raw).0))?;
    report("CPU of the program", "s per million", &program, Run::per_million_s)?;
    report("CPU of the broker", "s per million", &broker, Run::per_million_s)?;
    Ok(())
}
