//! Bench (d): rows of `orders` into PostgreSQL by the warehouse, next to a driver that only sends the same statements.
//!
//! The driver has its arrays made beforehand and knows no offsets; the warehouse gets framed Avro, decodes it, reduces it per key and
//! moves its position in the transaction. Both use as many connections and commit each batch. Their runs take turns.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Parser;
use futures::future::try_join_all;
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgConnection, PgHasArrayType, PgTypeInfo};
use sqlx::{AssertSqlSafe, Connection as _, Encode, Executor as _, Postgres, Type};
use sunder::split::project::project;
use sunder_benches::database::Database;
use sunder_benches::generate::Generator;
use sunder_benches::line::{Keys, Line};
use sunder_benches::measure::{Run, own_cpu, percent, report, say, tree_cpu};
use sunder_retention::keys::DataKey;
use sunder_schemas::class::Kind;
use sunder_schemas::ids::{Offset, Partition};
use sunder_schemas::records::StateRecord;
use sunder_schemas::topic::Topic;
use sunder_schemas::wire;
use sunder_sinks::cells::{Cells, Values};
use sunder_sinks::options::Dialect;
use sunder_sinks::tables::Table;
use sunder_sinks::{Change, Sink as _, Source, StoreOptions, Warehouse};

#[derive(Parser)]
#[command(about = "Bench (d): the warehouse on PostgreSQL next to a driver that only sends UNNEST batches")]
struct Args {
    /// A database of the server, e.g. `postgres://postgres@127.0.0.1:5432/postgres`.
    #[arg(long)]
    postgres: String,
    /// Process id of the server, to count its CPU.
    #[arg(long)]
    postgres_pid: Option<u32>,
    /// Rows of one run.
    #[arg(long, default_value_t = 100_000)]
    rows: u64,
    /// Partitions that are written at once, each over a connection of its own: the sink's loop applies four.
    #[arg(long, default_value_t = 4)]
    sources: usize,
    /// Rows of one batch.
    #[arg(long, default_value_t = 2_000)]
    batch: usize,
    /// Runs of each; they take turns, the median counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
}

/// A UUID in PostgreSQL's binary form; the driver's own is behind a feature that nothing else needs.
struct PgUuid(uuid::Uuid);

/// An instant in PostgreSQL's binary form: microseconds since 2000-01-01.
struct PgInstant(i64);

macro_rules! pg_type {
    ($name:ty, $type:literal, $array:literal, |$value:ident| $bytes:expr) => {
        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_name($type)
            }
        }
        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::with_name($array)
            }
        }
        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let $value = self;
                buffer.extend_from_slice($bytes);
                Ok(IsNull::No)
            }
        }
    };
}
pg_type!(PgUuid, "uuid", "_uuid", |value| value.0.as_bytes());
pg_type!(PgInstant, "timestamptz", "_timestamptz", |value| &value.0.to_be_bytes());

/// A column as the driver binds it, made before the clock starts.
enum Bound {
    Text(Vec<Option<String>>),
    Integer(Vec<Option<i64>>),
    Boolean(Vec<Option<bool>>),
    Instant(Vec<Option<PgInstant>>),
    Uuid(Vec<Option<PgUuid>>),
    Numeric(Vec<Option<sqlx::types::Decimal>>),
    Bytes(Vec<Option<Vec<u8>>>),
}

fn bound(values: &Values<'_>) -> Bound {
    const EPOCH_2000_MS: i64 = 946_684_800_000;
    match values {
        Values::Text(v) => Bound::Text(v.iter().map(|t| t.map(str::to_owned)).collect()),
        Values::Token(v) => Bound::Text(v.iter().map(|t| t.map(|t| t.as_str().to_owned())).collect()),
        Values::List(v) => Bound::Text((0..v.len()).map(|row| v.get(row).map(str::to_owned)).collect()),
        Values::Integer(v) => Bound::Integer(v.clone()),
        Values::Boolean(v) => Bound::Boolean(v.clone()),
        Values::Decimal(v) => Bound::Numeric(v.clone()),
        Values::Instant(v) => Bound::Instant(v.iter().map(|t| t.map(|t| PgInstant((t.0 - EPOCH_2000_MS) * 1_000))).collect()),
        Values::Uuid(v) => Bound::Uuid(v.iter().map(|id| id.map(PgUuid)).collect()),
        Values::Bytes(v) => Bound::Bytes(v.iter().map(|b| b.map(<[u8]>::to_vec)).collect()),
    }
}

/// What is written: per batch the framed values for the warehouse, and the arrays for the driver.
struct Work {
    framed: Vec<Vec<Vec<u8>>>,
    bound: Vec<Vec<Bound>>,
}

/// Rows of `orders` as the splitter makes them, in batches; `version` makes later ones replace earlier ones.
fn work(line: &mut Line, rows: u64, batch: usize, version: u64) -> anyhow::Result<Work> {
    let (key, table) = (DataKey::ephemeral(), Table::of_kind(Kind::Orders));
    let mut generator = Generator::new(21);
    let mut work = Work { framed: Vec::new(), bound: Vec::new() };
    let mut number = 0;
    let mut body = String::new();
    while number < rows {
        let mut records = Vec::with_capacity(batch);
        while records.len() < batch && number < rows {
            body.clear();
            generator.get_order(number, version, &mut body);
            number += 1;
            let order = line.classify(body.as_bytes())?.entities.into_iter().next().context("no order")?;
            records.extend(project(line.seal(order, &key, |_| false)?)?.rows.into_iter().next());
        }
        let mut cells = Cells::new(&table, Dialect::Postgres, records.len());
        for (offset, record) in (0..).zip(&records) {
            record.cells(&mut |cell| cells.push(cell));
            for cell in [sunder_schemas::records::Cell::Text("raw"), sunder_schemas::records::Cell::Int(0)] {
                cells.push(cell);
            }
            cells.push(sunder_schemas::records::Cell::Int(offset));
            cells.end_row().map_err(|_| anyhow::anyhow!("a row does not fit its table"))?;
        }
        work.bound.push(cells.columns().iter().map(bound).collect());
        work.framed.push(records.iter().map(framed).collect());
    }
    Ok(work)
}

fn framed(record: &StateRecord) -> Vec<u8> {
    let mut value = Vec::with_capacity(1024);
    wire::begin(2, &mut value);
    record.encode(&mut value);
    value
}

/// The warehouse: decode, reduce, write, move the position; each source takes every `sources`th batch.
async fn by_warehouse(warehouse: &Warehouse, sources: &mut [(Source, i64)], work: &Work) -> anyhow::Result<u64> {
    let every = sources.len().max(1);
    let all = sources.iter_mut().enumerate().map(|(first, (source, next))| async move {
        let mut written = 0;
        for batch in work.framed.iter().skip(first).step_by(every) {
            let mut changes = Vec::with_capacity(batch.len());
            let expected = (*next > 0).then_some(Offset(*next));
            for value in batch {
                let (_, body) = wire::open(value)?;
                changes.push(Change::Upsert { offset: Offset(*next), record: StateRecord::decode(Kind::Orders, body)? });
                *next += 1;
            }
            written += warehouse.apply(source, expected, Offset(*next), changes).await?.rows_written;
        }
        anyhow::Ok(written)
    });
    Ok(try_join_all(all).await?.into_iter().sum())
}

/// The driver: the same statement, arrays as they lie in memory; each connection takes every `connections`th batch.
async fn by_driver(connections: &mut [PgConnection], sql: &str, work: &Work) -> anyhow::Result<u64> {
    let every = connections.len().max(1);
    let all = connections.iter_mut().enumerate().map(|(first, connection)| async move {
        let mut written = 0;
        for batch in work.bound.iter().skip(first).step_by(every) {
            let mut tx = connection.begin().await?;
            // The statement is the table's own, without a value in it.
            let mut query = sqlx::query(AssertSqlSafe(sql.to_owned()));
            for column in batch {
                query = match column {
                    Bound::Text(v) => query.bind(v.as_slice()),
                    Bound::Integer(v) => query.bind(v.as_slice()),
                    Bound::Boolean(v) => query.bind(v.as_slice()),
                    Bound::Instant(v) => query.bind(v.as_slice()),
                    Bound::Uuid(v) => query.bind(v.as_slice()),
                    Bound::Numeric(v) => query.bind(v.as_slice()),
                    Bound::Bytes(v) => query.bind(v.as_slice()),
                };
            }
            written += query.execute(&mut *tx).await?.rows_affected();
            tx.commit().await?;
        }
        anyhow::Ok(written)
    });
    Ok(try_join_all(all).await?.into_iter().sum())
}

/// Who writes, and whether the rows are there before.
const CASES: [&str; 4] = ["warehouse, insert", "warehouse, update", "driver, insert", "driver, update"];

struct Bench<'a> {
    args: &'a Args,
    runs: [Vec<Run>; 4],
    server: [Vec<f64>; 4],
}

impl Bench<'_> {
    async fn timed(&mut self, case: usize, work: impl Future<Output = anyhow::Result<u64>>) -> anyhow::Result<()> {
        let server = |pid: Option<u32>| pid.map_or(Ok(std::time::Duration::ZERO), tree_cpu);
        let (server_before, cpu, wall) = (server(self.args.postgres_pid)?, own_cpu()?, Instant::now());
        let count = work.await?;
        ensure!(count == self.args.rows, "{count} rows were written of {}", self.args.rows);
        let run = Run { count, wall: wall.elapsed(), cpu: own_cpu()?.saturating_sub(cpu) };
        let of_server = Run { cpu: server(self.args.postgres_pid)?.saturating_sub(server_before), ..run };
        if let (Some(runs), Some(servers)) = (self.runs.get_mut(case), self.server.get_mut(case)) {
            runs.push(run);
            servers.push(of_server.per_million_s());
        }
        Ok(())
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    let keys = Keys::open(None).await?;
    let mut line = Line::new(&keys, "getOrder")?;
    let (first, second) = (work(&mut line, args.rows, args.batch, 100)?, work(&mut line, args.rows, args.batch, 200)?);
    let database = Database::create(&args.postgres, "sink").await?;
    let mut options = StoreOptions::new(database.url(), "bench");
    options.connections = u32::try_from(args.sources)?;
    let warehouse = Warehouse::open(&options).await?;
    let mut connection = database.connect().await?;
    let mut connections = Vec::new();
    for _ in 0..args.sources {
        connections.push(database.connect().await?);
    }
    let source = |partition| Source {
        topic: Topic::State(Kind::Orders).name("bench"),
        incarnation: "one".to_owned(),
        partition: Partition(partition),
    };
    let sql = Table::of_kind(Kind::Orders).upsert_unnest_sql();
    let mut bench = Bench { args, runs: Default::default(), server: Default::default() };
    for _ in 0..args.runs {
        connection.execute("TRUNCATE orders, sink_offset").await?;
        let mut sources: Vec<(Source, i64)> = (0i32..).take(args.sources).map(|partition| (source(partition), 0)).collect();
        bench.timed(0, by_warehouse(&warehouse, &mut sources, &first)).await?;
        bench.timed(1, by_warehouse(&warehouse, &mut sources, &second)).await?;
        connection.execute("TRUNCATE orders, sink_offset").await?;
        bench.timed(2, by_driver(&mut connections, &sql, &first)).await?;
        bench.timed(3, by_driver(&mut connections, &sql, &second)).await?;
    }
    let stored: i64 = sqlx::query_scalar("SELECT count(*) FROM orders WHERE status = 'UNSHIPPED' AND total_amount > 0")
        .fetch_one(&mut connection)
        .await?;
    ensure!(stored.unsigned_abs() == args.rows, "{stored} rows are stored of {}", args.rows);
    connection.close().await?;
    drop((warehouse, connections));
    database.remove().await?;
    say(&format!("(d) rows of orders into PostgreSQL, batches of {}, {} partitions at once", args.batch, args.sources))?;
    let mut rates = Vec::new();
    for ((name, runs), server) in CASES.iter().zip(&bench.runs).zip(bench.server) {
        rates.push(report(name, "rows/s", runs, Run::rate)?);
        report("  CPU of the client", "s per million", runs, Run::per_million_s)?;
        say(&format!("{:<44} {:>12.2} s per million", "  CPU of the server", sunder_benches::measure::median(server).0))?;
    }
    if let [insert, update, driver_insert, driver_update] = rates.as_slice() {
        say(&format!(
            "the warehouse does {:.0} % of the driver's inserts and {:.0} % of its updates (goal: 85 %)",
            percent(*insert, *driver_insert),
            percent(*update, *driver_update)
        ))?;
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(run(&args))
}
