//! The program as another program drives it: one JSON document whatever happens, waits that end, signals that are obeyed.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::CommandFactory;
use serde_json::{Value, json};
use sunder::kafka::{Kafka, KafkaSettings};

use super::awaited::{SHOWN_WITHIN, until};
use super::door::Door;
use super::orders;
use super::running::{Running, log_of};
use super::story::assert_counts;
use super::world::{Services, Stores, World, kill, terminate};

/// A wait that follows a blocked case ends after 20 s; this is far above.
const ENDS_WITHIN: Duration = Duration::from_secs(600);

/// Runs a command and gives its exit code and its one document.
#[track_caller]
fn document(world: &World, args: &[&str]) -> (i32, Value) {
    let output = world.command(args).output().expect("sunder runs");
    let what = args.join(" ");
    let mut documents = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let first = documents.next().unwrap_or_else(|| panic!("`sunder {what}` printed nothing")).expect("JSON");
    assert!(documents.next().is_none(), "`sunder {what}` printed more than one document");
    (output.status.code().expect("an exit code"), first)
}

/// Every command of the program, as its words.
fn all_commands() -> BTreeSet<String> {
    fn below(command: &clap::Command, words: &str, all: &mut BTreeSet<String>) {
        let words = format!("{words} {}", command.get_name());
        let mut is_leaf = true;
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            is_leaf = false;
            below(sub, &words, all);
        }
        if is_leaf {
            all.insert(words.trim().to_owned());
        }
    }
    let mut all = BTreeSet::new();
    for command in sunder::cli::Cli::command().get_subcommands().filter(|sub| sub.get_name() != "help") {
        below(command, "", &mut all);
    }
    // These run until they are told to stop, or take long; they have tests of their own.
    for own in ["simulate", "demo"] {
        all.remove(own);
    }
    all
}

fn of_the_simulator(world: &World) -> (String, String) {
    let config: toml::Table = std::fs::read_to_string(world.config()).expect("config").parse().expect("TOML");
    let seller = config["seller"].as_array().and_then(|sellers| sellers.first()).expect("a seller").clone();
    let text = |value: &toml::Value| value.as_str().expect("text").to_owned();
    (text(&seller["id"]), text(&seller["refresh_token"]["file"]))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_prints_one_document_when_it_works_and_when_it_does_not() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 1, 8, 31, "none").await;
    let (seller, token) = of_the_simulator(&world);
    let personal = world.simulator.personal().await;
    let order = personal.iter().find(|p| p["allowed"] == true).and_then(|p| p["order"].as_str()).expect("an order").to_owned();
    let mut others =
        personal.iter().filter(|p| p["allowed"] == true && p["group"] == "recipient_address").filter_map(|p| p["order"].as_str());
    let other = others.find(|id| *id != order).expect("another order").to_owned();
    let out = world.folder.path().join("out").display().to_string();
    let signer = world.folder.path().join("new.signer").display().to_string();
    let mut tried: BTreeSet<String> = BTreeSet::new();
    let mut run = |line: &str, code: i32| -> Value {
        let words: Vec<String> = line
            .split_whitespace()
            .map(|w| {
                w.replace("SELLER", &seller)
                    .replace("ORDER", &order)
                    .replace("TOKEN", &token)
                    .replace("OUT", &out)
                    .replace("SIGNER", &signer)
            })
            .collect();
        let named: Vec<&str> = words.iter().map(String::as_str).take_while(|w| !w.starts_with('-')).collect();
        tried.extend((1..=named.len()).map(|n| named.iter().take(n).copied().collect::<Vec<_>>().join(" ")));
        let mut args: Vec<&str> = words.iter().map(String::as_str).collect();
        args.push("--json");
        let (found, document) = document(&world, &args);
        assert_eq!(found, code, "`sunder {line}`: {document:#}\n{}", log_of(&world).lines().last().unwrap_or_default());
        if code == 1 || code == 2 {
            let is_answer = document.get("state").is_some();
            assert!(is_answer || (document["error"]["exit"] == code && document["error"]["message"].is_string()), "{line}: {document:#}");
        }
        document
    };
    run("config example", 0);
    run("config schema", 0);
    run("topics apply", 0);
    run("topics diff", 0);
    run("check", 0);
    run("run --until-idle", 0);
    run("sellers list", 0);
    run("sellers add --id A2NEW --region eu --marketplaces A1PA6795UKMFR9 --token-file TOKEN", 0);
    run("sellers pause A2NEW", 0);
    run("erase --seller SELLER --all --reason buyer-request --dry-run", 0);
    let open = "open --seller SELLER --order ORDER --purpose fulfilment --role shipping";
    assert_eq!(run(open, 0)["state"], "readable");
    assert_eq!(run("open --seller SELLER --order ORDER --purpose none --role shipping", 1)["state"], "denied");
    let case = run("erase --seller SELLER --order ORDER --reason buyer-request", 0)["id"].as_str().expect("id").to_owned();
    let error = run(&format!("certificate {case} --out OUT"), 3);
    assert!(error["error"]["message"].as_str().is_some_and(|m| m.contains(&case)), "{error}");
    assert_eq!(run("erase --seller SELLER --order ORDER --reason buyer-request --wait", 0)["state"], "certified");
    assert_eq!(run(open, 3)["state"], "erased");
    run("cases", 0);
    run(&format!("cases {case}"), 0);
    run(&format!("verify {case}"), 0);
    run("verify --all", 0);
    run(&format!("certificate {case} --out OUT"), 0);
    let key = run("certificate key", 0)["key"].as_str().expect("key").to_owned();
    run(&format!("certificate check {out}/certificate.note --key {key}"), 0);
    run("certificate new-signer SIGNER --name example.com/x", 0);
    run("certificate log --out OUT/log", 0);
    run("audit verify", 0);
    run("audit checkpoint --out OUT/heads", 0);
    run("trace --table orders --key 0c0c7d211d87dce7b7a4479ac42d10f6", 3);
    for sink in ["warehouse", "vault"] {
        let built = run(&format!("replay --sink {sink}"), 0);
        assert_eq!((built["sink"] == sink, built["rows"].as_u64() > Some(0), &built["unreadable"]), (true, true, &json!(0)), "{built:#}");
    }
    run("replay --sink warehouse --until 2001-01-01T00:00:00Z", 3);
    let add = format!("hold add --seller SELLER --order {other} --statute HGB --document invoice --fields recipient_address");
    let hold = run(&format!("{add} --until 2040-12-31"), 0)["id"].as_str().expect("id").to_owned();
    run("hold list", 0);
    run(&format!("hold remove {hold}"), 0);
    run("inventory", 0);
    run("keys status", 0);
    run("keys rotate", 0);
    run("keys inventory", 0);
    run("sellers remove A2NEW", 0);

    // What fails: an unknown thing, a wrong word, a file that is not there.
    run("cases case-20200101-0000000000000000", 1);
    run("verify case-20200101-0000000000000000", 1);
    run("sellers remove A0NOBODY", 2);
    run("sellers pause A0NOBODY", 1);
    run("keys rotate --seller A0NOBODY", 1);
    run(&format!("{add} --until 2020-12-31"), 2);
    run("hold remove hold-20200101-0000000000000000", 2);
    run("sellers add --id A3 --region mars --marketplaces X --token-file TOKEN", 2);
    run("open --seller SELLER --order ORDER --purpose fulfilment --fields no_such_group", 2);
    run("certificate check OUT/nothing.note --key x", 2);
    run("certificate new-signer SIGNER --name example.com/x", 2);
    run("certificate", 2);
    run("trace --table buyers --key x", 2);
    run("replay --sink buyers", 2);
    assert!(log_of(&world).contains("[possible values: warehouse, vault]"), "the sinks are named");
    run("replay --sink vault --until 2026-11-01T00:00:00Z", 2);
    run("replay --sink warehouse --until yesterday", 2);
    run("erase --seller SELLER --order ORDER --reason because", 2);
    run("no-such-command", 2);
    run("run no-such-role", 2);
    run("check --config nowhere.toml", 2);
    let missed: Vec<_> = all_commands().into_iter().filter(|command| !tried.contains(command)).collect();
    assert!(missed.is_empty(), "commands that were not tried: {missed:?}");
    // The words typed may be personal, so they are not repeated into a document that may be kept.
    let output = world.command(&["erase", "--order", "302-1234567-1234567", "--wiat", "--json"]).output().expect("runs");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("302-1234567"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_cannot_be_written_is_no_success_and_a_closed_reader_no_fault() {
    let nowhere = Services { kafka: "127.0.0.1:1".to_owned(), kafka_logs: Vec::new(), postgres: None };
    let world = World::start(&nowhere, Stores::Sqlite, 1, 1, 1, "none").await;
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let status = world.command(&["cases", "--json"]).stdout(full).status().expect("runs");
    assert_eq!(status.code(), Some(1), "nobody has the result");
    let mut child = world.command(&["config", "schema"]).stdout(Stdio::piped()).spawn().expect("starts");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("wait").code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_beside_a_running_process_ends_with_the_case_and_takes_it_over_when_that_dies() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 1, 12, 32, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, _) = of_the_simulator(&world);
    let erase = |order: &str, limit: &str| {
        let args = ["erase", "--seller", &seller, "--order", order, "--reason", "buyer-request", "--wait", "--wait-limit", limit, "--json"];
        args.map(str::to_owned)
    };
    let run = |args: &[String]| world.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    // Nobody stores: the case waits for what does not come, which is nothing to mend.
    let retain = Running::roles(&world, &["retain"]).await;
    let case = run(&erase("999-0000001-0000001", "3s")).expect(3);
    assert!(case["blocked"] == false && case["state"] != "certified", "{case:#}");
    assert!(log_of(&world).contains("following the case"), "progress is told");
    retain.stop();

    let all = Running::start(&world).await;
    assert_eq!(run(&erase("999-0000001-0000001", "10m")).expect(0)["state"], "certified", "the same case, followed to its end");

    // The process that worked it dies: the one that waits goes on with it.
    let waiting = world.command(&erase("999-0000003-0000003", "10m").each_ref().map(String::as_str)).spawn().expect("starts");
    kill(all.id());
    let output = waiting.wait_with_output().expect("wait");
    let case: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!((output.status.code(), case["state"].as_str()), (Some(0), Some("certified")), "{case:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_on_a_blocked_case_ends_before_its_limit_and_names_the_block() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 1, 12, 33, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let (seller, _) = of_the_simulator(&world);
    let kafka = Kafka::connect(KafkaSettings::plaintext(&services.kafka, &world.prefix, 4, 1)).await.expect("kafka");
    let topic = format!("{}.pii.orders.v1", world.prefix);
    let all = Running::start(&world).await;
    let erase = ["erase", "--seller", &seller, "--order", "999-0000001-0000001", "--reason", "buyer-request", "--wait", "--json"];
    let waiting = world.command(&erase).spawn().expect("starts");
    // Its own start looked at the topics already: from here on the case meets the drift.
    let started = Instant::now();
    until(SHOWN_WITHIN, "the case", async || log_of(&world).contains("case opened")).await;
    kafka.set_settings(&topic, vec![("delete.retention.ms".to_owned(), "1000".to_owned())]).await.expect("set");
    let output = waiting.wait_with_output().expect("wait");
    assert!(started.elapsed() < ENDS_WITHIN, "{:?}", started.elapsed());
    let case: Value = serde_json::from_slice(&output.stdout).expect("one document");
    assert_eq!((output.status.code(), case["blocked"].as_bool()), (Some(3), Some(true)), "{case:#}");
    assert!(case["blocked_by"].as_str().is_some_and(|why| why.contains(&topic) && why.contains("delete.retention.ms")), "{case:#}");
    world.run(&["topics", "apply", "--json"]).expect(0);
    let id = case["id"].as_str().expect("id");
    until(SHOWN_WITHIN, "mended, it goes on by itself", async || world.run(&["cases", id, "--json"]).expect(0)["state"] == "certified")
        .await;
    all.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_drains_in_seconds_and_loses_nothing() {
    let Some(services) = Services::from_env() else { return };
    let world = World::start(&services, Stores::Sqlite, 3, orders(3_000), 34, "none").await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    let mut polled = 0;
    // More than once, so that what the first one left half-way is taken up while the second is stopped.
    for _ in 0..2 {
        let running = Running::start(&world).await;
        running.until_metric("sunder_spapi_calls_total", 1.0).await;
        polled += running.stop()["polled"].as_u64().expect("a count");
    }
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert!(polled + report["polled"].as_u64().expect("a count") > 0, "{report}");
    assert_eq!(report["dead_lettered"], 0, "{report}");
    assert_counts(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_at_once_what_the_first_one_drains() {
    let Some(services) = Services::from_env() else { return };
    let door = Door::to(&services.kafka);
    let behind = Services { kafka: door.address(), ..services.clone() };
    let world = World::start(&behind, Stores::Sqlite, 2, orders(300), 35, "none").await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    let running = Running::start(&world).await;
    running.until_metric("sunder_spapi_calls_total", 0.0).await;
    // Without Kafka there is nobody to drain to, and so time for the second signal.
    door.shut();
    terminate(running.id());
    until(SHOWN_WITHIN, "an answer to the first signal", async || log_of(&world).contains("a second signal ends at once")).await;
    let started = Instant::now();
    terminate(running.id());
    let (code, printed) = running.ended();
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let document: Value = serde_json::from_slice(&printed).expect("one document");
    assert_eq!((code, &document["error"]["exit"]), (Some(1), &json!(1)), "{document}");
    door.open();
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    assert_counts(&world).await;
}

#[cfg(feature = "embedded")]
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_run_on_the_embedded_broker_leaves_the_processor_to_others() {
    /// Of one core. Asking for ever it was all of one and more; a slow machine gives it less, not more.
    const PERCENT_MAX: u128 = 70;
    const MEASURED: Duration = Duration::from_secs(8);
    let embedded = Services { kafka: "embedded".to_owned(), kafka_logs: Vec::new(), postgres: None };
    let world = World::start(&embedded, Stores::Sqlite, 1, 5, 36, "none").await;
    let running = Running::start(&world).await;
    running.until_metric("sunder_sink_rows_written_total", 0.0).await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", running.id())).expect("limits");
    let core: Vec<&str> = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line").split_whitespace().collect();
    assert_eq!(core[4..6], ["0", "0"], "a core dump would hold keys");
    // Not a wait for anything: the time over which it is measured, once what was begun with is settled.
    tokio::time::sleep(MEASURED).await;
    let percent = running.cpu_percent(MEASURED).await;
    assert!(percent < PERCENT_MAX, "{percent} % of a core while there is nothing to do");
    running.stop();
}
