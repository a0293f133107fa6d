//! `kill -9` of a random role at a random moment: after a restart nothing is lost, nothing doubled, no step of a case skipped.

use std::process::Child;
use std::time::Duration;

use rand::{Rng, SeedableRng};

use super::story::assert_counts;
use super::world::{Services, Stores, World, kill, terminate};
use super::{orders, warehouse};

/// Kills of one run where `SUNDER_KILLS` does not say.
const KILLS: usize = 20;
/// States a certified case has been through, in this order.
const STEPS: [&str; 9] =
    ["requested", "scoped", "keys_destroyed", "caches_revoked", "tombstoned", "drained", "sinks_clean", "verified", "certified"];

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "tests take their seed and size from the environment")]
async fn killed_at_any_moment_nothing_is_lost_doubled_or_skipped() {
    let Some(services) = Services::from_env() else { return };
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default);
    let seed = number("SUNDER_KILL_SEED", 20_261_122);
    let kills = usize::try_from(number("SUNDER_KILLS", KILLS as u64)).expect("a small number");
    eprintln!("seed {seed} (SUNDER_KILL_SEED), {kills} kills (SUNDER_KILLS)");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);

    let mut world = World::start(&services, Stores::Postgres, 3, orders(600), seed, "mild").await;
    world.run(&["topics", "apply", "--json"]).expect(0);
    for round in 0..kills {
        if round == kills / 2 {
            world.simulator.post("/_sim/clock", serde_json::json!({"advance": "70d"})).await;
            world.set("SUNDER_CLOCK__OFFSET", "70d");
        }
        let mut roles: Vec<(&str, Child)> =
            ["poll", "split", "sink", "retain"].map(|role| (role, world.command(&["run", role]).spawn().expect("role starts"))).into();
        // Not a wait for anything: the moment of the kill is what the seed draws.
        tokio::time::sleep(Duration::from_millis(random.random_range(200..4_000))).await;
        let (role, mut victim) = roles.swap_remove(random.random_range(0..roles.len()));
        eprintln!("round {round}: kill -9 {role}");
        kill(victim.id());
        victim.wait().expect("wait");
        for (role, mut child) in roles {
            terminate(child.id());
            let status = child.wait().expect("wait");
            assert!(status.success(), "{role} did not drain on SIGTERM: {status}\n{}", world.last_words());
        }
    }
    let report = world.run(&["run", "--until-idle", "--json"]).expect(0);
    eprintln!("{report}");
    assert_counts(&world).await;
    let doubled = warehouse(&world, "SELECT order_token FROM orders GROUP BY order_token HAVING count(*) > 1").await;
    assert!(doubled.is_empty(), "{} orders twice", doubled.len());
    let cases = world.run(&["cases", "--json"]).expect(0);
    let cases = cases.as_array().expect("a list");
    assert!(!cases.is_empty(), "70 days later there are cases");
    for case in cases {
        let shown = world.run(&["cases", case["id"].as_str().expect("id"), "--json"]).expect(0);
        let steps: Vec<&str> = shown["events"]
            .as_array()
            .expect("events")
            .iter()
            .filter_map(|e| e["step"].as_str())
            .filter(|step| STEPS.contains(step))
            .collect();
        let mut distinct = steps.clone();
        distinct.dedup();
        assert_eq!(distinct, STEPS, "steps of {}", case["id"]);
    }
    world.run(&["audit", "verify", "--json"]).expect(0);
}
