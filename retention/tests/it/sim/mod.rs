//! The simulation: random histories of an installation against a model of what must be true.
//!
//! A seed chooses the history. The program's own parts run as they are: keys, admission, ledger, leases, cases, certificates, on SQLite.
//! What fails: any process, at any point of a case and with anything in flight; clocks, which are corrected either way; the log, which is
//! read again from its start, cleaned late, and forgets tombstones and raw records; stores, which are built again. What does not:
//! the database loses no commit, the log loses no acknowledged record, and nothing arrives later than the client's timeout. What is still
//! random whatever the seed: key bytes and ids, and so the order of subjects and the partition of each.
//!
//! `SUNDER_SEEDS=5000` runs so many seeds (1000 unless said), `SUNDER_SEED=17` runs that one and prints its history.

mod check;
mod draw;
mod model;
mod operate;
mod process;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use draw::Draw;
use model::{Model, Seller};
use process::{Batch, Ghost, Page, Process, Retainer};
use sunder_schemas::ids::SellerId;

use crate::world::World;

/// Seeds that a plain run takes. Chosen: a minute of two cores.
const SEEDS: u64 = 1000;
/// What happens in one history before it is let come to rest.
const OPERATIONS: usize = 45;

/// An installation at work.
struct Sim {
    draw: Draw,
    world: World,
    model: Model,
    pollers: Vec<Process>,
    splitter: Process,
    sinks: Process,
    retainers: Vec<Retainer>,
    pages: Vec<Page>,
    batch: Option<Batch>,
    ghosts: Vec<Ghost>,
    /// Names of processes that died and whose leases still run.
    dead: Vec<String>,
    started: usize,
    trace: Arc<Mutex<Vec<String>>>,
}

impl Sim {
    async fn new(seed: u64, trace: Arc<Mutex<Vec<String>>>) -> Self {
        let mut draw = Draw::new(seed);
        let mut world = World::new().await;
        // It is read in every case of the crash matrix.
        world.reads_key_files = seed.is_multiple_of(16);
        world.log.lock().is_driven = true;
        let sellers = (0..1 + draw.below(3)).map(|n| Seller {
            id: SellerId::parse(&format!("A{n}SELLER")).unwrap(),
            orders: Vec::new(),
            subjects: std::collections::BTreeMap::new(),
            is_leaving: false,
        });
        let model =
            Model { sellers: sellers.collect(), policy: *world.ring.policy(), asked: Default::default(), certified: Default::default() };
        let mut started = 0;
        let mut name = || {
            started += 1;
            format!("role{started}")
        };
        let pollers = vec![Process::start(&world, name()).await, Process::start(&world, name()).await];
        let (splitter, sinks) = (Process::start(&world, name()).await, Process::start(&world, name()).await);
        let retainers = vec![Retainer::start(&world), Retainer::start(&world)];
        let (pages, batch, ghosts, dead) = (Vec::new(), None, Vec::new(), Vec::new());
        Self { draw, world, model, pollers, splitter, sinks, retainers, pages, batch, ghosts, dead, started, trace }
    }

    fn say(&self, what: impl Into<String>) {
        self.trace.lock().unwrap().push(what.into());
    }

    async fn run(mut self) {
        for _ in 0..OPERATIONS {
            self.operate().await;
            self.check_places();
        }
        self.rest().await;
        self.check_rest().await;
        // Amazon sends everything again.
        self.poll_everything().await;
        self.rest().await;
        self.check_rest().await;
    }
}

fn number(name: &str) -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "a test is told by its environment how much to do")]
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Runs one seed; what stops it is printed with its history.
fn run(seed: u64, is_loud: bool) -> Result<(), String> {
    let trace: Arc<Mutex<Vec<String>>> = Arc::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let history = trace.clone();
    let live = AssertUnwindSafe(|| runtime.block_on(async { Sim::new(seed, history).await.run().await }));
    let outcome = catch_unwind(live);
    let told = trace.lock().unwrap().join("\n  ");
    match outcome {
        Ok(()) if is_loud => Err(told).or_else(|told| {
            let mut out = std::io::stderr().lock();
            std::io::Write::write_all(&mut out, format!("seed {seed}:\n  {told}\n").as_bytes()).map_err(|e| e.to_string())
        }),
        Ok(()) => Ok(()),
        Err(why) => {
            let why = why.downcast_ref::<String>().cloned().or_else(|| why.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(format!("SUNDER_SEED={seed} fails: {}\n  {told}", why.unwrap_or_default()))
        }
    }
}

#[test]
fn what_is_erased_stays_erased_and_nothing_else_goes_in_any_history() {
    if let Some(seed) = number("SUNDER_SEED") {
        run(seed, true).unwrap_or_else(|why| panic!("{why}"));
        return;
    }
    let (next, last) = (AtomicU64::new(0), number("SUNDER_SEEDS").unwrap_or(SEEDS));
    let failed: Mutex<Vec<String>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= last || failed.lock().unwrap().len() >= 3 {
                        return;
                    }
                    if let Err(why) = run(seed, false) {
                        failed.lock().unwrap().push(why);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {last} seeds:\n{}", failed.len(), failed.join("\n\n"));
}
