//! The root key in a real OpenBao: rotated while everything runs, away for a while, and a seller's keys destroyed under it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::door::Door;
use super::orders;
use super::running::Running;
use super::story::assert_counts;
use super::world::{Ended, Services, Stores, World, client};

/// A transit key of one test.
pub(super) struct Bao {
    base: String,
    token: String,
    key: String,
}

impl Bao {
    /// From the variables that `scripts/services env` prints. In CI their absence is a failure; elsewhere it is said loudly.
    #[expect(clippy::disallowed_methods, reason = "tests find their services by environment variables")]
    pub(super) async fn from_env() -> Option<Self> {
        let (Ok(base), Ok(token)) = (std::env::var("SUNDER_TEST_OPENBAO"), std::env::var("SUNDER_TEST_OPENBAO_TOKEN")) else {
            assert!(std::env::var("CI").is_err(), "SUNDER_TEST_OPENBAO is not set: CI needs scripts/services");
            eprintln!("NOT RUN: no OpenBao. Start it with `scripts/services start`, then `eval \"$(scripts/services env)\"`.");
            return None;
        };
        let bao = Self { base, token, key: format!("k{}", uuid::Uuid::new_v4().simple()) };
        let (status, _) = bao.call("keys", Some(json!({}))).await;
        assert_eq!(status, 200, "a key is made");
        Some(bao)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// Asks the engine itself; status and body.
    async fn call(&self, what: &str, body: Option<Value>) -> (u16, Value) {
        let url = format!("{}/v1/transit/{what}/{}", self.base, self.key);
        let request = match &body {
            Some(body) => client().post(url).json(body),
            None => client().get(url),
        };
        let answer = request.header("X-Vault-Token", &self.token).send().await.expect("OpenBao answers");
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// Has `world` use it, through `door`.
    pub(super) fn give(&self, world: &mut World, door: &Door) {
        let token = world.folder.path().join("bao.token");
        std::fs::write(&token, &self.token).expect("written");
        let signer = world.folder.path().join("a.signer").display().to_string();
        world.run(&["certificate", "new-signer", &signer, "--name", "example.com/sunder", "--json"]).expect(0);
        world.set("SUNDER_KEYS__ROOT", &format!("transit:http://{}/transit/{}", door.address(), self.key));
        world.set("SUNDER_KEYS__ROOT_TOKEN__FILE", &token.display().to_string());
        world.set("SUNDER_CERTIFICATE__NAME", "example.com/sunder");
        world.set("SUNDER_CERTIFICATE__SIGNER__FILE", &signer);
    }

    /// What the engine says of `wrapped`, whatever its context is.
    async fn says_of(&self, wrapped: &[u8]) -> String {
        let text = std::str::from_utf8(wrapped).expect("the service's own text");
        let (status, body) = self.call("decrypt", Some(json!({ "ciphertext": text }))).await;
        assert_eq!(status, 400, "without its context it opens in no case");
        body["errors"].to_string()
    }
}

/// What the root wraps of each seller.
async fn wrapped(world: &World) -> Vec<Vec<u8>> {
    use sqlx::{Connection, Row};
    let sql = "SELECT wrapping_key FROM seller UNION ALL SELECT token_key FROM seller UNION ALL SELECT ledger_key FROM seller";
    macro_rules! rows {
        ($connection:ty) => {{
            let mut connection = <$connection>::connect(&world.urls.keys).await.expect("key database answers");
            sqlx::query(sql).fetch_all(&mut connection).await.expect("query").iter().map(|row| row.get::<Vec<u8>, _>(0)).collect()
        }};
    }
    if world.urls.keys.starts_with("postgres") { rows!(sqlx::PgConnection) } else { rows!(sqlx::SqliteConnection) }
}

/// How many keys of `kind` live and are destroyed.
fn held(inventory: &Value, kind: &str) -> (u64, u64) {
    let keys = inventory["keys"].as_array().expect("a list");
    let found = keys.iter().find(|held| held["kind"] == kind).expect("the kind");
    (found["live"].as_u64().expect("a number"), found["destroyed"].as_u64().expect("a number"))
}

/// An order of each seller that opens.
async fn one_each(world: &World, sellers: u64) -> Vec<(String, String)> {
    let mut found = BTreeMap::new();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let personal = world.simulator.personal().await;
    // The youngest first: what is past its deadline was never sealed.
    for p in personal.iter().rev().filter(|p| p["allowed"] == true && p["group"] == "recipient_address") {
        let order = (text(&p["seller"]), text(&p["order"]));
        if !found.contains_key(&order.0) && run_open(world, &order).code == Some(0) {
            found.insert(order.0, order.1);
        }
    }
    assert_eq!(found.len() as u64, sellers, "each seller has one");
    found.into_iter().collect()
}

fn run_open(world: &World, (seller, order): &(String, String)) -> Ended {
    world.run(&["open", "--seller", seller, "--order", order, "--purpose", "fulfilment", "--role", "shipping", "--json"])
}

fn open(world: &World, order: &(String, String), code: i32) -> Value {
    run_open(world, order).expect(code)
}

async fn rotated_under_load(stores: Stores, seed: u64) {
    const SELLERS: u64 = 3;
    let (Some(services), Some(bao)) = (Services::from_env(), Bao::from_env().await) else { return };
    let mut world = World::start(&services, stores, 3, orders(150), seed, "none").await;
    let door = Door::to(bao.address());
    bao.give(&mut world, &door);
    world.run(&["topics", "apply", "--json"]).expect(0);

    // Keys rotate from before the load begins until after it has ended.
    let mut load = world.command(&["run", "--until-idle", "--json"]).spawn().expect("starts");
    let mut rotations = 0u64;
    while rotations < 2 || load.try_wait().expect("wait").is_none() {
        let done = world.run(&["keys", "rotate", "--json"]).expect(0);
        assert_eq!(done["root"]["retired"], "destroyed", "{done:#}");
        rotations += 1;
    }
    let output = load.wait_with_output().expect("wait");
    let report: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!((output.status.code(), &report["dead_lettered"], &report["gaps"]), (Some(0), &json!(0), &json!(0)), "{report:#}");
    assert_counts(&world).await;

    // The old version unwraps nothing, in the service and with the key database of before.
    let before = wrapped(&world).await;
    assert_eq!(before.len() as u64, 3 * SELLERS);
    for bytes in &before {
        assert!(!bao.says_of(bytes).await.contains("version"), "this version is in use");
    }
    world.run(&["keys", "rotate", "--root", "--json"]).expect(0);
    for bytes in &before {
        assert!(bao.says_of(bytes).await.contains("version"), "this version is gone");
    }
    let newest = rotations + 2;
    let (_, key) = bao.call("keys", None).await;
    assert_eq!((&key["data"]["latest_version"], &key["data"]["min_available_version"]), (&json!(newest), &json!(newest)), "{key:#}");
    let status = world.run(&["keys", "status", "--json"]).expect(0);
    assert_eq!((&status["root"]["version"], &status["root"]["answers"]), (&json!(newest), &json!(true)), "{status:#}");
    assert_eq!(status["sellers"].as_array().map(Vec::len), Some(3), "{status:#}");

    let picked = one_each(&world, SELLERS).await;
    let (seller, order) = &picked[0];
    let case = world.run(&["erase", "--seller", seller, "--order", order, "--reason", "buyer-request", "--wait", "--json"]).expect(0);
    assert_eq!(case["state"], "certified", "{case:#}");
    open(&world, &picked[0], 3);

    // A seller leaves: its keys are destroyed, nobody else's.
    let inventory = world.run(&["keys", "inventory", "--json"]).expect(0);
    assert_eq!(held(&inventory, "token key of a seller"), (SELLERS, 0), "{inventory:#}");
    let (live, destroyed) = held(&inventory, "wrapping key of a seller");
    let case = world.run(&["sellers", "remove", &picked[1].0, "--json"]).expect(0);
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let case = world.run(&["cases", case["id"].as_str().expect("id"), "--json"]).expect(0);
    assert_eq!(case["state"], "certified", "{case:#}");
    let inventory = world.run(&["keys", "inventory", "--json"]).expect(0);
    assert_eq!(held(&inventory, "token key of a seller"), (SELLERS - 1, 1), "{inventory:#}");
    assert_eq!(held(&inventory, "wrapping key of a seller"), (live - 1, destroyed + 1), "{inventory:#}");
    open(&world, &picked[1], 3);
    assert_eq!(open(&world, &picked[2], 0)["state"], "readable");
    let verified = world.run(&["audit", "verify", "--json"]).expect(0);
    assert_eq!(verified["holds"], true, "{verified:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_in_openbao_under_load_and_a_sellers_keys_are_destroyed_on_postgresql() {
    rotated_under_load(Stores::Postgres, 51).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_key_that_is_away_is_named_and_what_waited_for_it_goes_on() {
    let (Some(services), Some(bao)) = (Services::from_env(), Bao::from_env().await) else { return };
    let mut world = World::start(&services, Stores::Sqlite, 2, 40, 52, "none").await;
    let door = Door::to(bao.address());
    bao.give(&mut world, &door);
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let picked = one_each(&world, 2).await;
    let running = Running::start(&world).await;
    running.until(200, "").await;
    door.shut();
    running.until(503, &door.address()).await;
    // A process that has no key in memory says what is missing, and where.
    let refused = open(&world, &picked[0], 1);
    assert!(refused["error"]["message"].as_str().is_some_and(|m| m.contains(&door.address())), "{refused:#}");
    let entries = world.run(&["check", "--json"]).expect(3);
    let root = entries.as_array().expect("a list").iter().find(|entry| entry["name"] == "keys.root").cloned().unwrap_or_default();
    assert_eq!(root["status"], "fail", "{entries:#}");
    let status = world.run(&["keys", "status", "--json"]).expect(3);
    assert_eq!(status["root"]["answers"], false, "{status:#}");
    door.open();
    running.until(200, "").await;
    running.stop();
    for order in &picked {
        assert_eq!(open(&world, order, 0)["state"], "readable");
    }
    assert_counts(&world).await;
}
