//! Bad input and lost neighbours: each is said clearly, stops no more than it must, and loses nothing.

use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use sunder::kafka::{Kafka, KafkaSettings};

use super::awaited::{SHOWN_WITHIN, until};
use super::databases::Postgres;
use super::door::Door;
use super::rotation::Bao;
use super::running::Running;
use super::story::assert_counts;
use super::world::{Ended, Services, Stores, World};
use super::{assert_no_leak, orders, read_log, warehouse};

/// Within this an unreachable neighbour ends the start (DESIGN section 6).
const START_FAILS_WITHIN: Duration = Duration::from_secs(30);

/// A Kafka address that nobody listens on.
fn nowhere() -> Services {
    Services { kafka: "127.0.0.1:1".to_owned(), kafka_logs: Vec::new(), postgres: None }
}

#[track_caller]
fn assert_says(ended: &Ended, code: i32, words: &[&str]) {
    let last = ended.log_tail.lines().rev().take(8).collect::<Vec<_>>().join("\n");
    assert_eq!(ended.code, Some(code), "`sunder {}`: {last}", ended.what);
    for word in words {
        assert!(last.contains(word), "`sunder {}` does not say {word:?}: {last}", ended.what);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_cannot_be_used_is_refused_with_line_and_key() {
    let world = World::start(&nowhere(), Stores::Sqlite, 1, 1, 1, "none").await;
    let text = std::fs::read_to_string(world.config()).expect("config");
    let write = |text: &str| std::fs::write(world.config(), text).expect("write");

    let unknown = text.replacen("[kafka]", "[kafka]\npartitons = 3", 1);
    let line = unknown.lines().position(|l| l.starts_with("partitons")).expect("a line") + 1;
    write(&unknown);
    assert_says(&world.run(&["check", "--json"]), 2, &[&format!("sunder.toml:{line}:"), "`partitons`", "`partitions`"]);

    let literal: Vec<String> = text
        .lines()
        .map(|l| if l.starts_with("client_secret") { "client_secret = \"hunter2\"".to_owned() } else { l.to_owned() })
        .collect();
    write(&literal.join("\n"));
    let ended = world.run(&["run", "--until-idle", "--json"]);
    assert_says(&ended, 2, &["client_secret", "must be a reference"]);
    assert!(!ended.log_tail.contains("hunter2"));

    write(&text.replacen("environment = \"test\"", "environment = \"production\"", 1));
    let ended = world.run(&["run", "--until-idle", "--json"]);
    assert_says(&ended, 2, &[]);
    for word in ["plain HTTP", "retention.profile", "kafka.security", "file_root_reason"] {
        assert!(ended.log_tail.contains(word), "{word}: {}", ended.log_tail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exposed_root_key_and_a_shared_database_are_refused() {
    let mut world = World::start(&nowhere(), Stores::Sqlite, 1, 1, 1, "none").await;
    let root = world.folder.path().join("exposed.key");
    std::fs::write(&root, [7; 32]).expect("write");
    std::fs::set_permissions(&root, std::os::unix::fs::PermissionsExt::from_mode(0o644)).expect("mode");
    world.set("SUNDER_KEYS__ROOT", &format!("file:{}", root.display()));
    assert_says(&world.run(&["cases", "--json"]), 2, &["keys.root", "exposed.key", "0644", "0600"]);
    let vault = world.urls.vault.clone();
    world.set("SUNDER_KEYS__DATABASE", &vault);
    assert_says(&world.run(&["cases", "--json"]), 2, &["keys.database and vault.url"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_is_not_there_ends_the_start_and_is_named() {
    let mut world = World::start(&nowhere(), Stores::Sqlite, 1, 1, 1, "none").await;
    let started = Instant::now();
    assert_says(&world.run(&["run", "--until-idle", "--json"]), 1, &["kafka.bootstrap", "127.0.0.1:1"]);
    assert!(started.elapsed() < START_FAILS_WITHIN, "{:?}", started.elapsed());

    let password = world.folder.path().join("password");
    std::fs::write(&password, "hunter2\n").expect("write");
    world.set("SUNDER_KEYS__DATABASE", "postgres://sunder@127.0.0.1:1/sunder_keys");
    world.set("SUNDER_KEYS__DATABASE_PASSWORD", &format!("{{ file = \"{}\" }}", password.display()));
    let started = Instant::now();
    let ended = world.run(&["run", "--until-idle", "--json"]);
    assert_says(&ended, 1, &["keys.database", "127.0.0.1:1"]);
    assert!(started.elapsed() < START_FAILS_WITHIN, "{:?}", started.elapsed());
    assert!(!ended.log_tail.contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_stops_a_run_and_apply_mends_it_alone() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 1, 5, 1, "none").await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    let kafka = Kafka::connect(KafkaSettings::plaintext(&services.kafka, &world.prefix, 4, 1)).await.expect("kafka");
    let name = format!("{}.pii.orders.v1", world.prefix);
    let foreign = [("delete.retention.ms", "1000"), ("flush.messages", "12345")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    kafka.set_settings(&name, foreign.to_vec()).await.expect("set");

    assert_says(&world.run(&["run", "--until-idle", "--json"]), 3, &[&name, "delete.retention.ms"]);
    for command in [["topics", "diff", "--json"].as_slice(), &["check", "--json"]] {
        let entries = world.run(command).expect(3);
        let entry = entries.as_array().expect("a list").iter().find(|e| e["name"] == name.as_str()).expect("the topic").clone();
        assert_eq!(entry["status"], "fail");
        assert!(entry["detail"].as_str().is_some_and(|d| d.contains("delete.retention.ms")) && entry["fix"] == "sunder topics apply");
    }
    world.run(&["topics", "apply", "--json"]).expect(0);
    world.run(&["topics", "diff", "--json"]).expect(0);
    assert_eq!(kafka.setting(&name, "flush.messages").await.expect("setting").as_deref(), Some("12345"), "another's override was touched");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_answers_leak_nothing_and_leave_gaps_that_close() {
    let Some(services) = Services::from_env() else { return };
    let mut world = World::start(&services, Stores::Sqlite, 2, orders(120), 3, "hostile").await;
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(report["dead_lettered"], 0, "{report}");
    let checked = world.run(&["check", "--json"]).expect(0);
    let named = |checked: &Value, name: &str| checked.as_array().expect("a list").iter().filter(|e| e["name"] == name).count();
    if report["gaps"].as_u64() > Some(0) || report["rejected"].as_u64() > Some(0) {
        assert!(named(&checked, "gap") > 0, "{report} {checked:#}");
    }
    assert!(named(&checked, "unclassified field") > 0, "fields that no model knows are reported: {checked:#}");

    world.simulator.post("/_sim/faults", json!({"level": "none"})).await;
    world.simulator.post("/_sim/clock", json!({"advance": "1h"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "1h");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let checked = world.run(&["check", "--json"]).expect(0);
    assert_eq!(named(&checked, "gap"), 0, "{checked:#}");
    assert_counts(&world).await;
    assert_no_leak(&world, &services, &world.simulator.personal().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seller_whose_token_is_revoked_is_blocked_alone_until_it_is_added_again() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 2, 20, 1, "none").await;
    let truth = world.simulator.truth().await;
    let seller = truth["sellers"][0]["seller"].as_str().expect("seller").to_owned();
    world.simulator.post("/_sim/revoke", json!({ "seller": seller })).await;
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(report["sellers_blocked"], json!([seller]), "{report}");
    assert!(report["published"].as_u64() > Some(0), "the other seller is polled: {report}");
    let state = |world: &World| {
        let listed = world.run(&["sellers", "list", "--json"]).expect(0);
        let row = listed.as_array().expect("a list").iter().find(|s| s["id"] == seller.as_str()).expect("listed").clone();
        (row["state"].as_str().expect("state").to_owned(), row["code"].as_str().map(str::to_owned))
    };
    assert_eq!(state(&world), ("blocked".to_owned(), Some("invalid_grant".to_owned())));
    let checked = world.run(&["check", "--json"]).expect(0);
    assert!(checked.as_array().expect("a list").iter().any(|e| e["name"] == "seller" && e["status"] == "warn"), "{checked:#}");
    // A restart with the same token changes nothing and still says it.
    assert_eq!(world.run(&["run", "--until-idle", "--json"]).expect(0)["sellers_blocked"], json!([seller]));

    let token = world.folder.path().join("new.token");
    std::fs::write(&token, "another-grant\n").expect("write");
    let region = truth["sellers"][0]["region"].as_str().expect("region");
    let market = truth["sellers"][0]["marketplaces"][0].as_str().expect("marketplace");
    let token = token.display().to_string();
    let add = ["sellers", "add", "--id", &seller, "--region", region, "--marketplaces", market, "--token-file", &token, "--json"];
    world.run(&add).expect(0);
    assert_eq!(state(&world), ("active".to_owned(), None));
}

#[tokio::test(flavor = "multi_thread")]
async fn raw_records_that_are_not_ours_are_sealed_and_set_aside() {
    const MARKER: &[u8] = b"Wilhelmina Fremdschreiber, Musterweg 12";
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 1, 10, 1, "none").await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    let framed = |id: u32| [&[0][..], &id.to_be_bytes(), MARKER].concat();
    let mut incompressible = MARKER.to_vec();
    rand::RngCore::fill_bytes(&mut <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(1), {
        incompressible.resize(1_000_000, 0);
        incompressible.get_mut(MARKER.len()..).expect("longer")
    });
    let compressible = MARKER.repeat(18 * 1024 * 1024 / MARKER.len());
    let values: [Option<Vec<u8>>; 7] = [
        None,
        Some(Vec::new()),
        Some(MARKER.to_vec()),
        Some(framed(sunder_schemas::records::schema::RecordType::DeadLetter.latest().id)),
        Some(framed(4_000_000)),
        Some(incompressible),
        Some(compressible),
    ];
    let producer: BaseProducer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &services.kafka)
        .set("message.max.bytes", "50000000")
        .set("compression.type", "lz4")
        .create()
        .expect("producer");
    let topic = format!("{}.raw.orders.v1", world.prefix);
    for value in &values {
        let record = BaseRecord::to(&topic).partition(1).key(MARKER);
        let record = match value {
            Some(value) => record.payload(value.as_slice()),
            None => record,
        };
        producer.send(record).map_err(|(error, _)| error).expect("send");
        producer.flush(SHOWN_WITHIN).expect("flush");
    }
    assert_eq!(producer.in_flight_count(), 0);

    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_eq!(report["dead_lettered"], values.len(), "{report}");
    assert_counts(&world).await;
    let (mut letters, mut codes) = (0, String::new());
    read_log(&world, &services.kafka, |topic, _, _, bytes| {
        if topic.contains(".dlq.") && !bytes.starts_with(b"~") {
            letters += 1;
            assert!(!bytes.windows(MARKER.len()).any(|w| w == MARKER), "a dead letter in clear");
            codes.push_str(&String::from_utf8_lossy(bytes));
        }
    });
    assert_eq!(letters, values.len());
    for code in ["empty_value", "not_framed", "foreign_schema", "unknown_schema"] {
        assert!(codes.contains(code), "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_lost_during_a_run_is_waited_for_and_nothing_is_lost() {
    let Some(services) = Services::from_env() else { return };
    let door = Door::to(&services.kafka);
    let behind = Services { kafka: door.address(), ..services.clone() };
    let world = World::start(&behind, Stores::Sqlite, 2, orders(300), 5, "none").await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    let running = Running::start(&world).await;
    door.shut();
    running.until(503, "kafka.bootstrap").await;
    let busy = running.cpu_percent(Duration::from_secs(5)).await;
    assert!(busy < 40, "{busy} % of a core while Kafka is away: it should wait, not knock without end");
    door.open();
    running.until(200, "ok").await;
    running.stop();
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_counts(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_gone_during_a_run_is_waited_for_and_nothing_is_lost() {
    let Some(services) = Services::from_env() else { return };
    let Some(postgres) = &services.postgres else { return };
    let address = postgres.split('@').next_back().and_then(|rest| rest.split('/').next()).expect("host and port").to_owned();
    let door = Door::to(&address);
    let behind = Services { postgres: Some(postgres.replace(&address, &door.address())), ..services.clone() };
    let world = World::start(&behind, Stores::Postgres, 2, orders(300), 5, "none").await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    let running = Running::start(&world).await;
    door.shut();
    running.until(503, "keys.database").await;
    door.open();
    running.until(200, "ok").await;
    running.stop();
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_counts(&world).await;
}

/// How many sessions of ours are in `state` in the database of `connection`.
async fn sessions(connection: &mut PgConnection, state: &'static str) -> i64 {
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'sunder'";
    let sql = sqlx::AssertSqlSafe(format!("{ours} AND {state}"));
    sqlx::query_scalar(sql).fetch_one(connection).await.expect("a count")
}

/// The network swallows what is on its way to any neighbour, and gives no error: what waits for an answer is called off, and done anew. A
/// transaction that the database holds open for a client it no longer hears is ended by the database, not waited for.
#[tokio::test(flavor = "multi_thread")]
async fn neighbours_that_fall_silent_during_a_run_are_asked_anew_and_nothing_is_lost() {
    let (Some(services), Some(bao)) = (Services::from_env(), Bao::from_env().await) else { return };
    if services.postgres.is_none() {
        return;
    }
    // What such a transaction holds, it holds for every database of the server.
    let server = Postgres::alone();
    let (databases, broker, keys) = (Door::to(&server.primary()), Door::to(&services.kafka), Door::to(bao.address()));
    let postgres = Some(format!("postgres://postgres@{}/postgres", databases.address()));
    let behind = Services { postgres, kafka: broker.address(), ..services.clone() };
    let mut world = World::start(&behind, Stores::Postgres, 2, orders(1_500), 43, "none").await;
    bao.give(&mut world, &keys);
    let api = Door::to(world.simulator.address());
    let text = std::fs::read_to_string(world.config()).expect("config");
    std::fs::write(world.config(), text.replace(world.simulator.address(), &api.address())).expect("write");
    let mut direct = PgConnection::connect(&world.urls.warehouse.replace(&databases.address(), &server.primary())).await.expect("database");
    let doors = [databases, broker, keys, api];
    world.run(&["topics", "apply", "--json"]).expect(0);
    let running = Running::start(&world).await;
    running.until_metric("sunder_sink_rows_written_total", 200.0).await;
    // A batch of the warehouse waits for its table while everything falls silent; then it goes on, and nobody ever ends it.
    direct.execute("BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE").await.expect("a lock");
    until(SHOWN_WITHIN, "a batch that waits for the table", async || sessions(&mut direct, "wait_event_type = 'Lock'").await > 0).await;
    doors.iter().for_each(Door::swallow);
    direct.execute("COMMIT").await.expect("the end of the lock");
    until(SHOWN_WITHIN, "a transaction that nobody ends", async || sessions(&mut direct, "state = 'idle in transaction'").await > 0).await;
    let all = world.simulator.truth().await["totals"]["orders"].to_string();
    let stored = async || warehouse(&world, "SELECT CAST(count(*) AS TEXT) FROM orders").await[0][0].clone().expect("a count");
    until(SHOWN_WITHIN, "all orders in the warehouse", async || stored().await == all).await;
    running.until(200, "ok").await;
    running.stop();
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_counts(&world).await;
}
