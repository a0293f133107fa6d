//! Certificates and logs as strangers and attackers have them: the files and the key on a bare path; SQL on the key database; an older head.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use sunder_retention::keydb::KeyDb;

use super::world::{Services, Stores, World};

/// A world whose orders are all erased and certified.
async fn certified(services: &Services, stores: Stores) -> (World, Vec<String>) {
    let mut world = World::start(services, stores, 2, 30, 11, "none").await;
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    world.simulator.post("/_sim/clock", serde_json::json!({"advance": "70d"})).await;
    world.set("SUNDER_CLOCK__OFFSET", "70d");
    world.run(&["run", "--until-idle", "--json"]).expect(0);
    let cases = world.run(&["cases", "--json"]).expect(0);
    let ids: Vec<String> = cases.as_array().expect("a list").iter().filter_map(|case| case["id"].as_str().map(str::to_owned)).collect();
    assert!(ids.len() >= 2, "{cases:#}");
    (world, ids)
}

/// `sunder certificate check` with nothing of this machine: no environment, no home, an empty working folder.
fn check(bare: &Path, args: &[&str]) -> (Option<i32>, Value) {
    let output = Command::new(env!("CARGO_BIN_EXE_sunder"))
        .args(["certificate", "check", "--json"])
        .args(args)
        .env_clear()
        .env("HOME", "/nonexistent")
        .current_dir(bare)
        .output()
        .expect("sunder runs");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or(Value::Null))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_checked_where_only_the_file_and_the_key_exist() {
    let Some(services) = Services::from_env() else { return };
    let (world, cases) = certified(&services, Stores::Sqlite).await;
    let key = world.stdout(&["certificate", "key"]);
    let first = world.folder.path().join("first");
    let log = world.folder.path().join("log");
    world.run(&["certificate", &cases[0], "--out", &first.display().to_string(), "--json"]).expect(0);
    world.run(&["certificate", "log", "--out", &log.display().to_string(), "--json"]).expect(0);
    let place = tempfile::tempdir().expect("folder");
    let bare = place.path();
    std::fs::copy(first.join("certificate.note"), bare.join("c.note")).expect("copy");
    std::fs::write(bare.join("k.pub"), &key).expect("write");
    let (code, answer) = check(bare, &["c.note", "--key", "k.pub"]);
    assert_eq!((code, &answer["valid"], &answer["case"]), (Some(0), &Value::Bool(true), &Value::from(cases[0].as_str())), "{answer}");
    assert_eq!(check(bare, &["c.note", "--key", key.trim()]).0, Some(0), "the key itself");
    assert_eq!(check(bare, &["absent.note", "--key", "k.pub"]).0, Some(2));
    for (key, reason) in [("nonsense", "bad_key"), ("sunder.test/signer+00000000+AAAA", "bad_key")] {
        let (code, answer) = check(bare, &["c.note", "--key", key]);
        assert_eq!((code, &answer["valid"], &answer["reason"]), (Some(3), &Value::Bool(false), &Value::from(reason)));
    }
    let folder = first.display().to_string();
    let whole = [
        "--key",
        "k.pub",
        "--log",
        &log.display().to_string(),
        "--checkpoint",
        &first.join("certificate.checkpoint").display().to_string(),
    ];
    let (code, answer) = check(bare, &[&[folder.as_str()], whole.as_slice()].concat());
    assert_eq!((code, answer["log_size"].as_u64().is_some()), (Some(0), true), "{answer}");
    // Some bytes of every file: all of them are in the tests of the library.
    let mut files: Vec<_> = std::fs::read_dir(&first).expect("folder").map(|entry| entry.expect("entry").path()).collect();
    files.extend([log.join("checkpoint"), log.join(format!("tile/0/000.p/{}", answer["log_size"]))]);
    for file in files {
        let bytes = std::fs::read(&file).expect("file");
        for at in [0, 1, bytes.len() / 3, bytes.len() / 2, bytes.len() - 2, bytes.len() - 1] {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            std::fs::write(&file, bad).expect("write");
            let (code, answer) = check(bare, &[&[folder.as_str()], whole.as_slice()].concat());
            assert_eq!((code, &answer["valid"]), (Some(3), &Value::Bool(false)), "{} byte {at}: {answer}", file.display());
        }
        std::fs::write(&file, bytes).expect("write");
    }
    assert_eq!(check(bare, &[&[folder.as_str()], whole.as_slice()].concat()).0, Some(0), "as it was");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cut_off_the_logs_of_the_database_is_found_by_what_was_published() {
    let Some(services) = Services::from_env() else { return };
    let all = if services.postgres.is_some() { vec![Stores::Sqlite, Stores::Postgres] } else { vec![Stores::Sqlite] };
    for stores in all {
        let (world, _) = certified(&services, stores).await;
        let kept = world.folder.path().join("kept");
        world.run(&["audit", "checkpoint", "--out", &kept.display().to_string(), "--json"]).expect(0);
        let heads = [kept.join("audit.checkpoint").display().to_string(), kept.join("certificates.checkpoint").display().to_string()];
        let verify = ["audit", "verify", "--json", "--checkpoint", &heads[0], "--checkpoint", &heads[1]];
        let answer = world.run(&verify).expect(0);
        assert!(answer["published"]["audit_events"].as_u64() >= Some(20), "{answer:#}");
        assert_eq!(answer["certificates"]["leaves"], answer["published"]["certificates"].as_u64().unwrap_or_default() - 1, "{answer:#}");

        let db = KeyDb::open(&world.urls.keys, None).await.expect("key database");
        let run = async |sql: &'static str| sqlx::query(sql).execute(db.pool()).await.expect("tampering").rows_affected();
        // The last five audit events go, with their signed heads, and the end is mended: the rows that are left fit together.
        run("DELETE FROM audit_event WHERE seq > (SELECT MAX(seq) - 5 FROM audit_event)").await;
        run("DELETE FROM audit_checkpoint WHERE seq > (SELECT MAX(seq) FROM audit_event)").await;
        run("UPDATE audit_head SET seq = (SELECT MAX(seq) FROM audit_event), \
             hash = (SELECT hash FROM audit_event ORDER BY seq DESC LIMIT 1)")
        .await;
        let alone = world.run(&["audit", "verify", "--json", "--database-only"]).expect(0);
        assert_eq!(alone["published"], Value::Null, "the database alone cannot know");
        assert_eq!(world.run(&["audit", "verify", "--json"]).expect(3)["reason"], "chain_cut");
        let by_head = world.run(&["audit", "verify", "--json", "--database-only", "--checkpoint", &heads[0]]).expect(3);
        assert_eq!(by_head["reason"], "chain_cut");
        let mut log_file = std::fs::read(&heads[0]).expect("head");
        log_file[20] ^= 1;
        std::fs::write(&heads[0], log_file).expect("write");
        world.run(&["audit", "verify", "--json", "--database-only", "--checkpoint", &heads[0]]).expect(2);
    }
}
