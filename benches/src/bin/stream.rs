//! Bench (b): from a topic of order JSON to a topic of sealed records and one of typed Avro, on Apache Kafka.
//!
//! One JSON order in, one sealed record and one Avro record out; a key per order, nine of ten found in memory; lz4, acks=all, idempotent,
//! 12 partitions. While a batch is being acknowledged the next one is worked on; offsets are committed once their batch is acknowledged.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use sunder::kafka::{Batch, GroupConsumer, Kafka, OutRecord};
use sunder::registry::{BuiltIn, Schemas};
use sunder::split::project::project;
use sunder_benches::database::Database;
use sunder_benches::generate::Generator;
use sunder_benches::line::{Keys, Line, WANTED};
use sunder_benches::log::{Log, PARTITIONS};
use sunder_benches::measure::{Run, own_cpu, report, say, tree_cpu};
use sunder_retention::admit::{Admission, Candidate};
use sunder_retention::cursor::{PageCommit, Published};
use sunder_retention::keys::{Context, DataKey};
use sunder_schemas::class::{Family, Kind};
use sunder_schemas::classify::Classified;
use sunder_schemas::ids::{EntityToken, Offset, Partition};
use sunder_schemas::records::schema::RecordType;
use sunder_schemas::records::{PiiRecord, Record as _};
use sunder_schemas::topic::{Profile, Topic};
use tokio::runtime::Handle;

/// Most records of one batch, as the splitter's.
const BATCH_RECORDS_MAX: usize = 4_000;
/// Of ten updates one is of an order not seen before.
const UPDATES_PER_ORDER: u64 = 10;
/// Updates are of the last so many orders.
const RECENT_ORDERS: u64 = 20_000;
/// Keys kept to look at what came out.
const SAMPLES: usize = 10_000;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KeyPlace {
    /// Minted and kept in memory.
    Memory,
    /// Minted by the key database, a transaction a batch, and recorded there once acknowledged.
    Sql,
}

#[derive(Parser)]
#[command(about = "Bench (b): order JSON to sealed and typed records between topics of Apache Kafka")]
struct Args {
    /// Address of the broker.
    #[arg(long)]
    kafka: String,
    /// Process id of the broker, to count its CPU.
    #[arg(long)]
    kafka_pid: Option<u32>,
    /// A database of the PostgreSQL server, for `--keys sql`.
    #[arg(long)]
    postgres: Option<String>,
    /// Process id of the server, to count its CPU.
    #[arg(long)]
    postgres_pid: Option<u32>,
    /// Where keys are minted.
    #[arg(long, value_enum, default_value = "memory")]
    keys: KeyPlace,
    /// Orders of one run.
    #[arg(long, default_value_t = 500_000)]
    orders: u64,
    /// Runs; the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// One run's worker.
struct Stream<'a> {
    log: &'a Log,
    kafka: &'a Kafka,
    keys: &'a Keys,
    schemas: &'a Schemas,
    line: Line,
    minted: HashMap<EntityToken, Arc<DataKey>>,
    topics: [String; 2],
    value: Vec<u8>,
    bytes: [u64; 2],
}

impl Stream<'_> {
    /// Seals, projects and writes one order under `key`.
    fn write(&mut self, batch: &Batch, order: Classified, key: &DataKey) -> anyhow::Result<()> {
        let event = self.line.seal(order, key, |group| group == WANTED)?;
        let partition = self.kafka.partition_of(&self.keys.seller, event.entity.token);
        let projected = project(event)?;
        let (Some(row), [pii]) = (projected.rows.first(), projected.pii.as_slice()) else {
            anyhow::bail!("an order did not become one row and one sealed record")
        };
        for (index, (record, out_key)) in [(RecordType::State(Kind::Orders), row.key()), (RecordType::Pii, pii.key())].iter().enumerate() {
            self.value.clear();
            self.schemas.begin(*record, &mut self.value);
            if index == 0 {
                row.encode(&mut self.value)
            } else {
                pii.encode(&mut self.value)
            }
            if let (Some(topic), Some(bytes)) = (self.topics.get(index), self.bytes.get_mut(index)) {
                *bytes += self.value.len() as u64;
                batch.send(OutRecord { topic, partition, key: out_key.as_bytes(), value: Some(&self.value), headers: &[] })?;
            }
        }
        Ok(())
    }

    fn order(&mut self, value: &[u8]) -> anyhow::Result<Classified> {
        self.line.classify(value)?.entities.into_iter().next().context("no order in a record")
    }

    /// Keys in memory: a new order gets a new key.
    fn by_memory(&mut self, batch: &Batch, value: &[u8]) -> anyhow::Result<()> {
        let order = self.order(value)?;
        let key = Arc::clone(self.minted.entry(order.identity.token()).or_insert_with(|| Arc::new(DataKey::ephemeral())));
        self.write(batch, order, &key)
    }

    /// Keys in SQL: one admission for the batch. Gives back what is to be recorded once Kafka has acknowledged it.
    fn by_sql(&mut self, handle: &Handle, batch: &Batch, orders: Vec<Classified>) -> anyhow::Result<PageCommit> {
        let mut commit = PageCommit::default();
        let mut candidates = Vec::with_capacity(orders.len());
        for order in &orders {
            let candidate = self.line.candidate(order)?;
            let Candidate { fingerprint, event_id, source_version, .. } = candidate;
            candidates.push(candidate);
            commit.published.push(Published { fingerprint, event_id, source_version });
        }
        let admissions = handle.block_on(self.keys.keyring.admit(&self.keys.seller, &candidates))?;
        for (order, admission) in orders.into_iter().zip(admissions) {
            let Admission::Seal { key, .. } = admission else { anyhow::bail!("an order was not admitted") };
            if self.minted.len() < SAMPLES {
                self.minted.insert(order.identity.token(), Arc::clone(&key));
            }
            self.write(batch, order, &key)?;
        }
        Ok(commit)
    }

    /// Looks at the first sealed record: it opens to an address under its order's key, and is unreadable as it lies there.
    fn check(&self, orders: u64) -> anyhow::Result<()> {
        for topic in [Topic::State(Kind::Orders), Topic::Pii(Family::Orders)] {
            let found = self.log.written(topic)?;
            ensure!(found == orders, "{topic} holds {found} records, not {orders}");
        }
        let value = self.log.first_value(Topic::Pii(Family::Orders))?;
        let body = self.schemas.body(RecordType::Pii, &value).map_err(|_| anyhow::anyhow!("the sealed record cannot be read"))?;
        let pii = PiiRecord::decode(&body)?;
        let key = self.minted.get(&pii.entity_token).context("the first order's key was not kept")?;
        let context =
            Context { seller: &self.keys.seller, entity: pii.entity_token, group: pii.field_group, classification: &pii.classification };
        let plain = key.open(&context, pii.block.as_bytes())?;
        ensure!(plain.reveal().windows(12).any(|text| text == b"addressLine1"), "the sealed record does not open to an address");
        ensure!(!value.windows(12).any(|text| text == b"addressLine1"), "the address lies in clear on the topic");
        Ok(())
    }
}

/// What is on its way: the batch, the offsets behind it, and what the key database is told once it is acknowledged.
type Flying = (Batch, Vec<(String, Partition, Offset)>, PageCommit);

fn settle(consumer: &GroupConsumer, handle: &Handle, keys: &Keys, flying: Option<Flying>) -> anyhow::Result<()> {
    let Some((batch, ends, commit)) = flying else { return Ok(()) };
    batch.acked_blocking()?;
    if !commit.published.is_empty() {
        handle.block_on(keys.keyring.commit_page(&keys.seller, commit))?;
    }
    consumer.commit(&ends)?;
    Ok(())
}

/// Works `orders` records off; the clock starts with the first.
fn work(stream: &mut Stream<'_>, handle: &Handle, place: KeyPlace, group: &str, orders: u64) -> anyhow::Result<(Instant, Duration)> {
    let name = stream.kafka.topic(Topic::Raw(Family::Orders));
    let consumer = GroupConsumer::subscribe(stream.kafka, &stream.kafka.group(group), &[&name], |ours| vec![Some(Offset(0)); ours.len()])?;
    let mut started: Option<(Instant, Duration)> = None;
    let (mut done, mut flying) = (0, None);
    while done < orders {
        let batch = stream.kafka.producer().batch();
        let mut ends: HashMap<Partition, Offset> = HashMap::new();
        let mut held = Vec::new();
        let mut failure = None;
        let mut count = 0;
        consumer.poll_batch(BATCH_RECORDS_MAX, Duration::from_millis(250), |record| {
            if failure.is_some() || record.is_own() {
                return;
            }
            count += 1;
            let mut each = || -> anyhow::Result<()> {
                if started.is_none() {
                    started = Some((Instant::now(), own_cpu()?));
                }
                let value = record.value.context("a record without a value")?;
                ends.insert(record.partition, Offset(record.offset.0 + 1));
                match place {
                    KeyPlace::Memory => stream.by_memory(&batch, value),
                    KeyPlace::Sql => {
                        held.push(stream.order(value)?);
                        Ok(())
                    }
                }
            };
            failure = each().err();
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let commit = if held.is_empty() { PageCommit::default() } else { stream.by_sql(handle, &batch, held)? };
        settle(&consumer, handle, stream.keys, flying.take())?;
        let ends = ends.into_iter().map(|(partition, next)| (name.clone(), partition, next)).collect();
        flying = (count > 0).then_some((batch, ends, commit));
        done += count;
    }
    settle(&consumer, handle, stream.keys, flying)?;
    started.context("no record came")
}

fn run_once(args: &Args, handle: &Handle, number: usize) -> anyhow::Result<[Run; 3]> {
    let log = handle.block_on(Log::open(&args.kafka, &format!("stream{number}"), Profile::Production, PARTITIONS, 1))?;
    let kafka = &log.kafka;
    let database = match (args.keys, &args.postgres) {
        (KeyPlace::Sql, Some(server)) => Some(handle.block_on(Database::create(server, &format!("stream{number}")))?),
        _ => None,
    };
    let keys = handle.block_on(Keys::open(database.as_ref().map(Database::url)))?;
    let schemas = handle.block_on(Schemas::open(Arc::new(BuiltIn), &kafka.settings().prefix))?;
    let mut generator = Generator::new(31);
    let mut text = String::new();
    log.fill(Topic::Raw(Family::Orders), args.orders, |nth, record| {
        let order = generator.order_of(nth, UPDATES_PER_ORDER, RECENT_ORDERS);
        text.clear();
        generator.get_order(order, nth, &mut text);
        record.partition = i32::try_from(order % u64::try_from(PARTITIONS)?)?;
        record.value.extend_from_slice(text.as_bytes());
        Ok(())
    })?;
    let topics = [kafka.topic(Topic::State(Kind::Orders)), kafka.topic(Topic::Pii(Family::Orders))];
    let line = Line::new(&keys, "getOrder")?;
    let mut stream =
        Stream { log: &log, kafka, keys: &keys, schemas: &schemas, line, minted: HashMap::new(), topics, value: Vec::new(), bytes: [0; 2] };
    let cpu_of = |pid: Option<u32>| pid.map_or(Ok(Duration::ZERO), tree_cpu);
    let others = [cpu_of(args.kafka_pid)?, cpu_of(args.postgres_pid)?];
    let (started, cpu) = work(&mut stream, handle, args.keys, "stream", args.orders)?;
    let run = Run { count: args.orders, wall: started.elapsed(), cpu: own_cpu()?.saturating_sub(cpu) };
    let broker = Run { cpu: cpu_of(args.kafka_pid)?.saturating_sub(others[0]), ..run };
    let server = Run { cpu: cpu_of(args.postgres_pid)?.saturating_sub(others[1]), ..run };
    stream.check(args.orders)?;
    say(&format!("  run {number}: JSON in, Avro {} B and sealed {} B out", stream.bytes[0] / args.orders, stream.bytes[1] / args.orders))?;
    drop(stream);
    drop(keys);
    if let Some(database) = database {
        handle.block_on(database.remove())?;
    }
    Ok([run, broker, server])
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    ensure!(args.keys == KeyPlace::Memory || args.postgres.is_some(), "--keys sql needs --postgres");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let (mut program, mut broker, mut server) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..args.runs {
        let [run, of_broker, of_server] = run_once(&args, runtime.handle(), number)?;
        program.push(run);
        broker.push(of_broker);
        server.push(of_server);
    }
    let place = if args.keys == KeyPlace::Memory { "in memory" } else { "in SQL, one transaction a batch" };
    say(&format!("(b) between topics, keys minted {place}, {} orders a run", args.orders))?;
    report("orders per second by the clock", "orders/s", &program, Run::rate)?;
    report("CPU of the program", "s per million", &program, Run::per_million_s)?;
    report("CPU of the broker", "s per million", &broker, Run::per_million_s)?;
    if args.keys == KeyPlace::Sql {
        report("CPU of the database", "s per million", &server, Run::per_million_s)?;
    }
    Ok(())
}
