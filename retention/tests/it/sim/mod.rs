//! The simulation: random histories of an installation against a model of what must be true.
//!
//! A seed chooses the history. The program's own parts run as they are: keys, admission, ledger, leases, cases, certificates, on SQLite.
//! What fails: any process, at any point of a case and with anything in flight; clocks, which are corrected either way; the log, which is
//! read again from its start, cleaned late, and forgets tombstones and raw records; stores, which are built again; the key database, which
//! is lost, as stores are, and comes back from a backup. What does not: a database that is not lost loses no commit, the log loses no
//! acknowledged record, nothing arrives later than the client's timeout, and no seller is younger than the backup. What is still
//! random whatever the seed: data keys, nonces and the ids of cases and keys. Tokens and fingerprints come from the seed (`root.rs`), so that
//! it gives the same history each time, printed or not.
//!
//! `SUNDER_SEEDS=5000` runs so many seeds (see `SEEDS`), `SUNDER_SEEDS=1000..5000` those, `SUNDER_SEED=17` that one and prints its history.

mod check;
mod draw;
mod model;
mod operate;
mod process;
mod restore;
mod root;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use draw::Draw;
use model::{Model, Seller};
use process::{Batch, Ghost, Page, Process, Retainer};
use restore::Backup;
use root::SeededRoot;
use sunder_schemas::ids::SellerId;

use crate::world::World;
use crate::world::stores::Held;

/// Seeds that a plain run takes. Chosen: less than a minute of one core in a debug build (0.12 to 0.15 s a seed).
const SEEDS: u64 = 350;
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
    backup: Option<Backup>,
    /// Copies of the stores.
    held: Option<[Held; 3]>,
    has_restored: bool,
    trace: Arc<Mutex<Vec<String>>>,
}

impl Sim {
    async fn new(seed: u64, trace: Arc<Mutex<Vec<String>>>) -> Self {
        let mut draw = Draw::new(seed);
        let world = World::new().await;
        let root = SeededRoot::of(&world, seed);
        let mut world = world.with_root(root);
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
        Self {
            draw,
            world,
            model,
            pollers,
            splitter,
            sinks,
            retainers,
            pages,
            batch,
            ghosts,
            dead,
            started,
            backup: None,
            held: None,
            has_restored: false,
            trace,
        }
    }

    fn say(&self, what: impl Into<String>) {
        self.trace.lock().unwrap().push(what.into());
    }

    async fn run(mut self) {
        // Two histories of three lose something for sure, after a backup that is neither the first nor the last thing to happen.
        let copied = self.draw.chance(67).then(|| self.draw.below(OPERATIONS / 2));
        let lost = copied.map(|copied| copied + 1 + self.draw.below(OPERATIONS / 2));
        for n in 0..OPERATIONS {
            if copied.is_some_and(|copied| n >= copied) {
                self.back_up_once().await;
            }
            if lost == Some(n) {
                self.lose_some().await;
            }
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

fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "a test is told by its environment how much to do")]
    std::env::var(name).ok()
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number of a seed"))
}

/// The seeds to run, without the last: `SUNDER_SEEDS=5000` or `SUNDER_SEEDS=1000..5000`.
fn seeds() -> (u64, u64) {
    match variable("SUNDER_SEEDS").as_deref().map(|text| text.split_once("..").unwrap_or(("0", text))) {
        Some((first, last)) => (number(first), number(last)),
        None => (0, SEEDS),
    }
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
    if let Some(seed) = variable("SUNDER_SEED").map(|text| number(&text)) {
        run(seed, true).unwrap_or_else(|why| panic!("{why}"));
        return;
    }
    let (first, last) = seeds();
    let next = AtomicU64::new(first);
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
    assert!(failed.is_empty(), "{} of seeds {first}..{last}:\n{}", failed.len(), failed.join("\n\n"));
}
