//! A backup of a database is restored: nothing of what was erased since opens, what has its key in the backup opens, and what is younger
//! is fetched again and sealed anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::story::assert_counts;
use super::world::{Services, Stores, World};

/// An order: its seller and its number.
pub(super) type Order = (String, String);

/// A database as it was.
enum Backup {
    /// A copy of a SQLite file.
    File { of: PathBuf, copy: PathBuf },
    /// A copy on the same PostgreSQL server.
    Database { server: String, of: String, copy: String },
}

/// Copies the database at `url`. Nothing of the world may run.
async fn back_up(services: &Services, world: &World, url: &str) -> Backup {
    let (head, name) = url.rsplit_once('/').expect("a URL");
    if head.starts_with("postgres") {
        let server = services.postgres.clone().expect("SUNDER_TEST_POSTGRES");
        let backup = Backup::Database { server, of: name.to_owned(), copy: format!("{name}_backup") };
        backup.copy(false).await;
        return backup;
    }
    let of = PathBuf::from(url.trim_start_matches("sqlite://"));
    let copy = world.folder.path().join(format!("{name}.backup"));
    for suffix in SUFFIXES {
        if with(&of, suffix).exists() {
            std::fs::copy(with(&of, suffix), with(&copy, suffix)).expect("copied");
        }
    }
    Backup::File { of, copy }
}

/// The files of a SQLite database.
const SUFFIXES: [&str; 2] = ["", "-wal"];

fn with(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", path.display()))
}

impl Backup {
    /// Puts the copy where the database was.
    async fn restore(&self) {
        match self {
            Self::File { of, copy } => {
                for suffix in ["", "-wal", "-shm"] {
                    if with(of, suffix).exists() {
                        std::fs::remove_file(with(of, suffix)).expect("removed");
                    }
                }
                for suffix in SUFFIXES {
                    if with(copy, suffix).exists() {
                        std::fs::copy(with(copy, suffix), with(of, suffix)).expect("copied");
                    }
                }
            }
            Self::Database { .. } => self.copy(true).await,
        }
    }

    async fn copy(&self, back: bool) {
        use sqlx::Connection;
        let Self::Database { server, of, copy } = self else { return };
        let (from, to) = if back { (copy, of) } else { (of, copy) };
        let mut connection = sqlx::PgConnection::connect(server).await.expect("PostgreSQL answers");
        for sql in [format!("DROP DATABASE IF EXISTS {to} WITH (FORCE)"), format!("CREATE DATABASE {to} TEMPLATE {from}")] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.expect("copied");
        }
    }
}

/// Every order whose personal data the simulator gives and the config wants.
pub(super) async fn orders_of(world: &World) -> BTreeSet<Order> {
    let text = |value: &Value, name: &str| value[name].as_str().expect("text").to_owned();
    let personal = world.simulator.personal().await;
    let wanted = personal.iter().filter(|p| p["allowed"] == true && p["group"] == "recipient_address");
    wanted.map(|p| (text(p, "seller"), text(p, "order"))).collect()
}

/// What `sunder open` says of an order.
fn state(world: &World, (seller, order): &Order) -> String {
    let args = ["open", "--json", "--seller", seller, "--order", order, "--purpose", "fulfilment", "--role", "shipping"];
    let opened = world.run(&args);
    assert!(matches!(opened.code, Some(0 | 3)), "{:#}\n{}", opened.json, opened.log_tail);
    opened.json["state"].as_str().expect("a state").to_owned()
}

pub(super) fn are(world: &World, orders: &[Order], expected: &str) {
    for order in orders {
        assert_eq!(state(world, order), expected, "{order:?}");
    }
}

/// The first `count` of `orders` that open.
pub(super) fn readable(world: &World, orders: &BTreeSet<Order>, count: usize) -> Vec<Order> {
    let found: Vec<Order> = orders.iter().filter(|order| state(world, order) == "readable").take(count).cloned().collect();
    assert_eq!(found.len(), count, "so many orders open");
    found
}

/// How often a command is given again whose broker was too busy for it: a case that is blocked for 20 s ends it with exit code 3.
const TRIES: usize = 5;

pub(super) fn erase(world: &World, (seller, order): &Order, reason: &str) -> String {
    let case = patiently(world, &["erase", "--seller", seller, "--order", order, "--reason", reason, "--wait", "--json"]);
    assert_eq!(case["state"], "certified", "{case:#}");
    case["id"].as_str().expect("id").to_owned()
}

pub(super) fn until_idle(world: &World) -> Value {
    patiently(world, &["run", "--until-idle", "--json"])
}

fn patiently(world: &World, args: &[&str]) -> Value {
    for _ in 1..TRIES {
        let ended = world.run(args);
        if ended.code == Some(0) {
            return ended.json;
        }
        assert!(ended.log_tail.contains("case is blocked"), "{}", ended.log_tail);
    }
    world.run(args).expect(0)
}

pub(super) fn check_says(world: &World, name: &str) -> Vec<Value> {
    let checked = world.run(&["check", "--json"]);
    let entries = checked.json.as_array().expect("a list").clone();
    entries.into_iter().filter(|entry| entry["name"] == name).collect()
}

/// Databases of a world.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Keys,
    Vault,
}

/// A world whose `parts` were restored from a backup after two orders were erased and younger ones had come.
struct Restored {
    world: World,
    /// In the backup, and not erased.
    kept: Vec<Order>,
    /// Erased since the backup.
    gone: Vec<Order>,
    /// Fetched since the backup.
    younger: Vec<Order>,
    /// The cases that erased.
    cases: [String; 2],
}

async fn restored(services: &Services, stores: Stores, seed: u64, parts: &[Part], meanwhile: impl FnOnce(&World, &[Order])) -> Restored {
    let mut world = World::growing(services, stores, (2, 40, 200), seed, "none").await;
    until_idle(&world);
    let known = orders_of(&world).await;
    let picked = readable(&world, &known, 4);
    let (kept, gone) = picked.split_at(2);
    let mut backups = Vec::new();
    for part in parts {
        let url = if *part == Part::Keys { &world.urls.keys } else { &world.urls.vault };
        backups.push(back_up(services, &world, url).await);
    }
    let cases = [erase(&world, &gone[0], "buyer-request"), erase(&world, &gone[1], "amazon-request")];
    world.simulator.post("/_sim/clock", json!({"advance": "2d"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "2d");
    until_idle(&world);
    let younger: BTreeSet<Order> = orders_of(&world).await.difference(&known).cloned().collect();
    let younger = readable(&world, &younger, 3);
    are(&world, gone, "erased");
    meanwhile(&world, kept);
    for backup in backups {
        backup.restore().await;
    }
    Restored { kept: kept.to_vec(), gone: gone.to_vec(), younger, cases, world }
}

async fn key_database(stores: Stores, seed: u64, parts: &[Part]) {
    let Some(services) = Services::from_env() else { return };
    let Restored { world, kept, gone, younger, cases } = restored(&services, stores, seed, parts, |_, _| {}).await;
    let (kept, gone) = (kept.as_slice(), gone.as_slice());
    let said = check_says(&world, "key database");
    assert_eq!(said[0]["status"], "fail", "{said:?}");
    // A read is the first that happens: nothing may be served before the erasures are done again.
    are(&world, gone, "erased");
    are(&world, kept, "readable");
    let said = check_says(&world, "key database");
    assert_eq!(said[0]["status"], "ok", "{said:?}");
    until_idle(&world);
    are(&world, gone, "erased");
    are(&world, kept, "readable");
    are(&world, &younger, "readable");
    assert_counts_without(&world, 1).await;
    let said = check_says(&world, "restore of keys");
    assert_eq!(said.len(), 1, "{said:?}");
    let detail = said[0]["detail"].as_str().expect("text");
    let destroyed: u64 = detail.split(": ").nth(1).and_then(|text| text.split(' ').next()).and_then(|n| n.parse().ok()).expect("a number");
    assert!(destroyed >= 2, "{detail}");
    assert!(detail.ends_with("nothing was lost"), "{detail}");
    assert_eq!(check_says(&world, "restore of vault").len(), usize::from(parts.contains(&Part::Vault)));
    for case in cases {
        assert_eq!(world.run(&["verify", &case, "--json"]).expect(0)["holds"], true, "{case}");
    }
}

/// The warehouse holds every order but those that were erased with their business data.
async fn assert_counts_without(world: &World, erased: u64) {
    let truth = world.simulator.truth().await;
    let rows = super::warehouse(world, "SELECT CAST(count(*) AS TEXT) FROM orders").await;
    let count: u64 = rows[0][0].as_deref().expect("a count").parse().expect("a number");
    assert_eq!(count + erased, truth["totals"]["orders"].as_u64().expect("a number"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_key_database_opens_nothing_that_was_erased() {
    key_database(Stores::Sqlite, 31, &[Part::Keys]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_database_and_a_vault_restored_together_open_nothing_that_was_erased() {
    key_database(Stores::Postgres, 32, &[Part::Keys, Part::Vault]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_vault_forgets_again_what_was_erased_and_catches_up() {
    let Some(services) = Services::from_env() else { return };
    let Restored { world, kept, gone, younger, cases } = restored(&services, Stores::Sqlite, 34, &[Part::Vault], |_, _| {}).await;
    are(&world, &gone, "erased");
    until_idle(&world);
    are(&world, &gone, "erased");
    are(&world, &kept, "readable");
    are(&world, &younger, "readable");
    let said = check_says(&world, "restore of vault");
    assert_eq!(said.len(), 1, "{said:?}");
    let detail = said[0]["detail"].as_str().expect("text");
    assert!(!detail.contains(": 0 rows"), "the erased blocks had come back with the backup: {detail}");
    assert!(check_says(&world, "restore of keys").is_empty());
    for case in cases {
        assert_eq!(world.run(&["verify", &case, "--json"]).expect(0)["holds"], true, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_again_after_a_restore_is_counted_and_named_and_leaves_every_store() {
    let Some(services) = Services::from_env() else { return };
    let hold = |world: &World, kept: &[Order]| {
        let (seller, order) = &kept[0];
        let what = ["--statute", "HGB 257", "--document", "invoice", "--fields", "recipient_address", "--until", "2040-12-31", "--json"];
        let held = world.run(&[&["hold", "add", "--seller", seller, "--order", order][..], &what].concat()).expect(0);
        assert_eq!(held["kept"], json!(["recipient_address"]), "{held:#}");
    };
    let Restored { mut world, gone, younger, .. } = restored(&services, Stores::Sqlite, 35, &[Part::Keys], hold).await;
    assert_eq!(held_blocks(&world).await, 1, "what the hold kept, beside a database that does not know of it");
    // By now every deadline has passed: what is fetched again is not sealed any more, and the keys of the younger orders are lost.
    world.simulator.post("/_sim/clock", json!({"advance": "70d"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "72d");
    until_idle(&world);
    for order in &younger {
        // One that was pending when the backup was made had its key already: that one has expired since.
        assert!(matches!(state(&world, order).as_str(), "absent" | "erased"), "nobody has its key");
    }
    are(&world, &gone, "erased");
    let said = check_says(&world, "restore of keys");
    let detail = said[0]["detail"].as_str().expect("text");
    assert_eq!(said[0]["status"], "warn", "{said:?}");
    assert!(detail.contains("are lost with their keys"), "{detail}");
    assert!(detail.contains("what 1 legal holds kept is lost with their keys, first "), "{detail}");
    assert_eq!(held_blocks(&world).await, 0, "nobody opens it");
    until_idle(&world);
    assert_eq!(orphans(&world).await, BTreeSet::new(), "lost blocks have left the vault");
    assert_eq!(overdue(&world, 72).await, 0, "what still opens arrived late enough");
    assert_counts_without(&world, 1).await;
}

/// Blocks in the cold store.
async fn held_blocks(world: &World) -> i64 {
    use sqlx::Connection;
    let mut connection = sqlx::SqliteConnection::connect(&world.urls.vault).await.expect("the database answers");
    sqlx::query_scalar("SELECT count(*) FROM held_block").fetch_one(&mut connection).await.expect("query")
}

/// Orders with rows in the vault whose keys nobody has.
async fn orphans(world: &World) -> BTreeSet<String> {
    use sqlx::{Connection, Row};
    let column = async |url: &str, sql: &'static str| -> BTreeSet<String> {
        let mut connection = sqlx::SqliteConnection::connect(url).await.expect("the database answers");
        sqlx::query(sql).fetch_all(&mut connection).await.expect("query").iter().map(|row| row.get(0)).collect()
    };
    let sealed = "SELECT CASE typeof(entity_token) WHEN 'blob' THEN lower(hex(entity_token)) ELSE entity_token END FROM sealed_block \
                  WHERE selling_partner_id <> '~canary'";
    let live = column(&world.urls.keys, "SELECT lower(hex(token)) FROM subject WHERE state = 'live'").await;
    column(&world.urls.vault, sealed).await.difference(&live).cloned().collect()
}

/// Keys that live past their deadline by a clock that is `days` ahead.
async fn overdue(world: &World, days: i64) -> i64 {
    use sqlx::Connection;
    use sunder_schemas::time::{Clock as _, Period, SystemClock};
    let mut connection = sqlx::SqliteConnection::connect(&world.urls.keys).await.expect("the database answers");
    let now = SystemClock::default().now().plus(Period::days(days));
    let sql = "SELECT count(*) FROM subject WHERE state = 'live' AND deadline < $1";
    sqlx::query_scalar(sql).bind(now.0).fetch_one(&mut connection).await.expect("query")
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_database_than_the_logs_own_is_refused() {
    let Some(services) = Services::from_env() else { return };
    let mut world = World::start(&services, Stores::Sqlite, 1, 5, 33, "none").await;
    until_idle(&world);
    assert_counts(&world).await;
    let other = format!("sqlite://{}", world.folder.path().join("other.db").display());
    world.set("SUNDER_KEYS__DATABASE", &other);
    let refused = world.run(&["run", "--until-idle", "--json"]);
    assert_eq!(refused.code, Some(3), "{}", refused.log_tail);
    assert!(refused.log_tail.contains("another one than the one that wrote this log"), "{}", refused.log_tail);
    let said = check_says(&world, "key database");
    assert_eq!(said[0]["status"], "fail", "{said:?}");
}
