//! The rules of the workspace's dependencies: arrows point one way, licences are allowed, one TLS provider, no foreign sources.

use std::process::Command;

use serde_json::Value;

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml")])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata failed");
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().expect("packages").iter()
}

#[test]
fn arrows_point_one_way() {
    let order = ["sunder-schemas", "sunder-retention", "sunder-sinks", "sunder", "sunder-benches"];
    let forbidden_in_schemas = ["tokio", "rdkafka", "sqlx", "reqwest", "axum", "async-trait", "futures"];
    let metadata = metadata();
    let mut seen = 0;
    for package in packages(&metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(rank) = order.iter().position(|n| *n == name) else { continue };
        seen += 1;
        for dependency in package["dependencies"].as_array().expect("dependencies").iter().filter(|d| d["kind"].is_null()) {
            let to = dependency["name"].as_str().unwrap_or_default();
            if let Some(other) = order.iter().position(|n| *n == to) {
                assert!(other < rank, "{name} must not name {to}: it stands to its right");
            }
            assert!(!(rank == 0 && forbidden_in_schemas.contains(&to)), "schemas is pure and must not name {to}");
            assert!(!(rank < 3 && to == "rdkafka"), "{name} must not know Kafka clients");
        }
    }
    assert_eq!(seen, order.len());
}

#[test]
fn licences_are_on_the_list_of_deny_toml() {
    let deny: toml::Table = toml::from_str(include_str!("../../../deny.toml")).expect("deny.toml reads");
    let allowed: Vec<&str> = deny["licenses"]["allow"].as_array().expect("allow").iter().filter_map(toml::Value::as_str).collect();
    let metadata = metadata();
    let mut wrong = Vec::new();
    for package in packages(&metadata) {
        let licence = package["license"].as_str().unwrap_or("none").replace('/', " OR ");
        let alternatives = licence.replace(['(', ')'], "");
        // Good enough for the expressions crates use: one alternative of which every part is allowed.
        let ok = alternatives.split(" OR ").any(|a| a.split(" AND ").all(|part| allowed.contains(&part.trim())));
        if !ok {
            wrong.push(format!("{} {}: {licence}", package["name"], package["version"]));
        }
    }
    assert!(wrong.is_empty(), "licences not on the list: {wrong:#?}");
}

#[test]
fn one_tls_provider_and_one_source_of_crates() {
    let metadata = metadata();
    for package in packages(&metadata) {
        let name = package["name"].as_str().unwrap_or_default();
        assert!(!["aws-lc-sys", "aws-lc-rs", "native-tls"].contains(&name), "{name} came in");
        let source = package["source"].as_str().unwrap_or_default();
        assert!(!source.starts_with("git+"), "{name} comes from git");
    }
}
