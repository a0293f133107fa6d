//! Bench (a): an order of 1.9 KB of JSON becomes two sealed groups and typed Avro, in memory, on one core.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use sunder::split::project::project;
use sunder_benches::generate::Generator;
use sunder_benches::line::{Keys, Line, WANTED};
use sunder_benches::measure::{Run, median, report, say};
use sunder_retention::keys::DataKey;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::records::StateRecord;
use sunder_schemas::wire;

/// Orders that pass a stage before the next one begins: few enough to stay in the cache of one core, enough to hide the clock's cost.
const CHUNK: usize = 100;

#[derive(Parser)]
#[command(about = "Bench (a): order JSON to two sealed groups and typed Avro, in memory")]
struct Args {
    /// Orders of one run.
    #[arg(long, default_value_t = 400_000)]
    orders: u64,
    /// Runs; the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Orders of one answer: 1 is `getOrder`, more is a page of `searchOrders`.
    #[arg(long, default_value_t = 100)]
    page: u64,
}

/// The stages, in their order.
const STAGES: [&str; 4] = ["classify (JSON, tokens, digest)", "seal two groups, event id", "project to typed rows", "encode Avro"];

struct Bench {
    line: Line,
    bodies: Vec<String>,
    keys: Vec<DataKey>,
    stages: [Vec<f64>; 4],
    bytes: u64,
    rows: u64,
}

impl Bench {
    /// Runs `orders` through all stages, a chunk at a time.
    fn run(&mut self, orders: u64) -> anyhow::Result<u64> {
        let mut done = 0;
        let mut value = Vec::with_capacity(4096);
        let (mut next_body, mut next_key) = (0, 0);
        while done < orders {
            let mut classified = Vec::with_capacity(CHUNK);
            let started = Instant::now();
            while classified.len() < CHUNK {
                let body = self.bodies.get(next_body % self.bodies.len()).context("no bodies")?;
                next_body += 1;
                classified.extend(self.line.classify(body.as_bytes())?.entities);
            }
            let count = classified.len();
            let times = started.elapsed();
            let started = Instant::now();
            let mut events = Vec::with_capacity(count);
            for order in classified {
                let key = self.keys.get(next_key % self.keys.len()).context("no keys")?;
                next_key += 1;
                events.push(self.line.seal(order, key, |_| true)?);
            }
            let sealing = started.elapsed();
            let started = Instant::now();
            let projected = events.into_iter().map(project).collect::<Result<Vec<_>, _>>()?;
            let projecting = started.elapsed();
            let started = Instant::now();
            for order in &projected {
                ensure!(order.pii.len() == 2, "an order has {} sealed groups, not 2", order.pii.len());
                for row in &order.rows {
                    value.clear();
                    wire::begin(1, &mut value);
                    row.encode(&mut value);
                    self.bytes += value.len() as u64;
                    self.rows += 1;
                }
            }
            for (stage, took) in self.stages.iter_mut().zip([times, sealing, projecting, started.elapsed()]) {
                stage.push(each_us(took, count));
            }
            done += count as u64;
        }
        Ok(done)
    }

    /// Takes one order through and looks at what came out.
    fn check(&mut self, body: &str) -> anyhow::Result<()> {
        let order = self.line.classify(body.as_bytes())?.entities.into_iter().next().context("no order")?;
        let key = DataKey::ephemeral();
        let event = self.line.seal(order, &key, |_| true)?;
        let address = self.line.open(&event, WANTED, &key)?;
        ensure!(address.contains("addressLine1"), "the sealed address does not open to an address");
        ensure!(self.line.open(&event, FieldGroup::Identifiers, &key)?.contains("302-"), "the sealed identifiers are not there");
        ensure!(!String::from_utf8_lossy(&event.clear).contains("addressLine1"), "the address is in the clear part");
        let projected = project(event)?;
        let row = projected.rows.first().context("no row")?;
        let mut body = Vec::new();
        row.encode(&mut body);
        ensure!(StateRecord::decode(row.kind(), &body)? == *row, "the Avro does not read back");
        Ok(())
    }
}

#[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "a figure for people")]
fn each_us(took: Duration, count: usize) -> f64 {
    took.as_secs_f64() * 1e6 / count.max(1) as f64
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let keys = runtime.block_on(Keys::open(None))?;
    let mut generator = Generator::new(11);
    let mut bodies = Vec::new();
    for first in (0..20_000).step_by(usize::try_from(args.page)?) {
        let mut body = String::new();
        match args.page {
            1 => generator.get_order(first, first, &mut body),
            _ => generator.search_orders(first..first + args.page, first, &mut body),
        }
        bodies.push(body);
    }
    let operation = if args.page == 1 { "getOrder" } else { "searchOrders" };
    let mut single = String::new();
    generator.order(7, 7, &mut single);
    let mut bench = Bench {
        line: Line::new(&keys, operation)?,
        keys: (0..1_000).map(|_| DataKey::ephemeral()).collect(),
        stages: Default::default(),
        bytes: 0,
        rows: 0,
        bodies,
    };
    let body = bench.bodies.first().cloned().context("no bodies")?;
    bench.check(&body)?;
    bench.run(args.orders / 10)?;
    bench.stages = Default::default();
    (bench.bytes, bench.rows) = (0, 0);
    let runs = (0..args.runs).map(|_| Run::of(|| bench.run(args.orders))).collect::<anyhow::Result<Vec<_>>>()?;
    let total: u64 = runs.iter().map(|run| run.count).sum();
    ensure!(bench.rows == 2 * total, "{} rows came of {total} orders, not two of each", bench.rows);
    say(&format!(
        "(a) in memory, {operation}, {} orders an answer; order {} bytes, Avro {} bytes in two rows",
        args.page,
        single.len(),
        bench.bytes / total
    ))?;
    report("orders per second of one core", "orders/s", &runs, Run::rate_cpu)?;
    report("orders per second by the clock", "orders/s", &runs, Run::rate)?;
    report("all stages", "us", &runs, Run::each_us)?;
    for (name, stage) in STAGES.iter().zip(bench.stages) {
        say(&format!("  {name:<42} {:>12.2} us   (median of {} chunks)", median(stage.clone()).0, stage.len()))?;
    }
    Ok(())
}
