//! Rules over the whole config: what may stand together, and what production refuses.

use std::collections::BTreeSet;

use sunder_schemas::class::FieldGroup;
use sunder_schemas::time::Period;
use sunder_schemas::topic::Profile;

use super::{Config, Environment};

/// Longest life of personal data after delivery (Amazon's Data Protection Policy).
const PERSONAL_MAX: Period = Period::days(30);
/// Longest life of business data, in calendar months (the policies this product was drawn from; Amazon since November 2025).
const NON_PERSONAL_MONTHS_MAX: u32 = 18;
/// Shortest life of audit events: twelve months and a margin (DESIGN section 4).
const AUDIT_MIN: Period = Period::days(400);

/// Longest that a process may use a key which was destroyed without its hearing of it (DESIGN section 5).
const LEASE_MAX: Period = Period::Millis(60_000);

/// All that is wrong with `config`, each with its key and the fix; empty where it can be used.
#[must_use]
pub fn check(config: &Config) -> Vec<String> {
    let mut problems = Vec::new();
    periods(config, &mut problems);
    urls(config, &mut problems);
    sellers(config, &mut problems);
    if config.environment == Environment::Production {
        production(config, &mut problems);
    }
    for copy in &config.copy {
        if copy.what.trim().is_empty() || copy.owner.trim().is_empty() {
            problems.push("copy: each needs what it is and an owner who answers for it".to_owned());
        }
    }
    if !config.serve.listen.ip().is_loopback() {
        problems
            .push("serve.listen: only a loopback address may be bound until TLS and sign-in are there; put a proxy in front".to_owned());
    }
    if config.kafka.partitions < 1 || config.kafka.replication < 1 {
        problems.push("kafka.partitions and kafka.replication: 1 or more".to_owned());
    }
    if !config.kafka.prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.') || config.kafka.prefix.is_empty() {
        problems.push("kafka.prefix: lower-case letters, digits and dots only".to_owned());
    }
    if !(config.spapi.rate_scale.is_finite() && config.spapi.rate_scale > 0.0) {
        problems.push("spapi.rate_scale: a number above 0".to_owned());
    }
    problems
}

fn periods(config: &Config, problems: &mut Vec<String>) {
    let retention = &config.retention;
    if retention.personal_after_delivery.millis_max() > PERSONAL_MAX.millis_max() {
        problems.push("retention.personal_after_delivery: 30d at most (Amazon's Data Protection Policy)".to_owned());
    }
    let too_long = match retention.non_personal {
        Period::Months(n) => n > NON_PERSONAL_MONTHS_MAX,
        // 18 calendar months are never fewer than 546 days.
        Period::Millis(ms) => ms > Period::days(546).millis_max(),
    };
    if too_long {
        problems.push("retention.non_personal: 18 months at most".to_owned());
    }
    if retention.audit.millis_max() < AUDIT_MIN.millis_max() {
        problems.push("retention.audit: 400d at least".to_owned());
    }
    if config.keys.lease.is_some_and(|lease| lease.millis_max() > LEASE_MAX.millis_max()) {
        problems.push("keys.lease: 60s at most".to_owned());
    }
    let margins = retention.margin.millis_max() + Period::days(i64::from(config.keys.backup_days)).millis_max();
    if margins >= retention.personal_after_delivery.millis_max() {
        problems.push(
            "retention.margin and keys.backup_days together leave nothing of retention.personal_after_delivery; make them shorter"
                .to_owned(),
        );
    }
    if config.keys.database.starts_with("postgres") && config.environment == Environment::Production && config.keys.backup_days == 0 {
        problems.push("keys.backup_days: at least 1 on PostgreSQL, whose files keep old pages for a while (WAL, dead tuples)".to_owned());
    }
}

fn urls(config: &Config, problems: &mut Vec<String>) {
    for (key, url) in [("keys.database", &config.keys.database), ("vault.url", &config.vault.url), ("warehouse.url", &config.warehouse.url)]
    {
        let known = ["postgres://", "postgresql://", "sqlite://"].iter().any(|s| url.starts_with(s));
        if !known {
            problems.push(format!("{key}: must begin with postgres:// or sqlite:///"));
        }
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) || rest.contains("password=") {
            problems.push(format!("{key}: a password inside a URL ends up in logs; put it beside as a reference"));
        }
    }
    one_store_each(config, problems);
    let root_known = ["file:", "transit:", "awskms:"].iter().any(|s| config.keys.root.starts_with(s));
    if !root_known {
        problems.push("keys.root: must begin with file:, transit: or awskms:".to_owned());
    }
    if config.keys.root.starts_with("transit:") && config.keys.root_token.is_none() {
        problems.push("keys.root_token: needed for a transit: root key".to_owned());
    }
    let has_aws = config.keys.root_access_key_id.is_some() && config.keys.root_secret_access_key.is_some();
    if config.keys.root.starts_with("awskms:") && !has_aws {
        problems.push("keys.root_access_key_id and keys.root_secret_access_key: needed for an awskms: root key".to_owned());
    }
}

/// Every store has a database of its own: the proof reads a store's files for what must not be in them, and would find in the vault's
/// the key ids that the ledger keeps by right.
fn one_store_each(config: &Config, problems: &mut Vec<String>) {
    let stores = [("keys.database", &config.keys.database), ("vault.url", &config.vault.url), ("warehouse.url", &config.warehouse.url)];
    for (index, (key, url)) in stores.iter().enumerate() {
        let same = stores.iter().skip(index + 1).filter(|(_, other)| place(url) == place(other));
        problems.extend(same.map(|(other, _)| format!("{key} and {other}: name the same database; give each its own")));
    }
}

/// What a database URL leads to, without its options: the file of SQLite, as far as it exists without links and dots.
fn place(url: &str) -> std::path::PathBuf {
    let bare = url.split('?').next().unwrap_or_default();
    let Some(path) = bare.strip_prefix("sqlite:") else { return bare.replacen("postgresql://", "postgres://", 1).into() };
    let path = std::path::Path::new(path.trim_start_matches("//"));
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    let real = path.canonicalize().ok().or_else(|| Some(folder?.join(path.file_name()?)));
    real.unwrap_or_else(|| path.components().collect())
}

fn sellers(config: &Config, problems: &mut Vec<String>) {
    let named: BTreeSet<FieldGroup> = config.purpose.iter().flat_map(|p| p.fields.iter().copied()).collect();
    let mut seen = BTreeSet::new();
    for seller in &config.seller {
        let id = &seller.id;
        if !seen.insert(id.clone()) {
            problems.push(format!("seller {id}: named twice"));
        }
        if !["eu", "na", "fe"].contains(&seller.region.as_str()) {
            problems.push(format!("seller {id}: region must be eu, na or fe"));
        }
        if seller.marketplaces.is_empty() {
            problems.push(format!("seller {id}: marketplaces is empty"));
        }
        for group in &seller.personal {
            if !group.may_be_wanted() {
                problems.push(format!("seller {id}: personal cannot name {group}; it follows the other groups by itself"));
            } else if !named.contains(group) {
                problems.push(format!("seller {id}: no [[purpose]] names the wanted group {group}; name one, or do not collect it"));
            }
        }
        if seller.since.millis_max() > config.retention.non_personal.millis_max() {
            problems.push(format!("seller {id}: since reaches beyond retention.non_personal; what it fetched would have to go at once"));
        }
    }
}

fn production(config: &Config, problems: &mut Vec<String>) {
    let spapi = &config.spapi;
    let addresses = [
        ("spapi.endpoint", spapi.endpoint.as_deref()),
        ("spapi.endpoints.eu", spapi.endpoints.eu.as_deref()),
        ("spapi.endpoints.na", spapi.endpoints.na.as_deref()),
        ("spapi.endpoints.fe", spapi.endpoints.fe.as_deref()),
        ("spapi.lwa_endpoint", Some(spapi.lwa_endpoint.as_str())),
        ("registry.url", config.registry.as_ref().map(|r| r.url.as_str())),
        ("keys.root", config.keys.root.strip_prefix("transit:")),
        ("keys.root_endpoint", config.keys.root_endpoint.as_deref()),
    ];
    for (key, url) in addresses {
        if url.is_some_and(|u| !u.starts_with("https://")) {
            problems.push(format!("{key}: plain HTTP is refused in production; use https://"));
        }
    }
    if config.retention.profile == Profile::Test {
        problems.push("retention.profile: \"test\" is refused in production; use \"production\"".to_owned());
    }
    if config.clock.offset.millis_max() != 0 {
        problems.push("clock.offset: refused in production; the policy clock is the system's".to_owned());
    }
    #[expect(clippy::float_cmp, reason = "exactly the default, not nearly")]
    if spapi.rate_scale != 1.0 {
        problems.push("spapi.rate_scale: refused in production; Amazon's published rates apply".to_owned());
    }
    if config.kafka.bootstrap == "embedded" {
        problems.push("kafka.bootstrap: the embedded broker is not durable and is refused in production".to_owned());
    } else if config.kafka.security.as_ref().is_none_or(|s| !s.protocol.ends_with("SSL")) {
        problems.push("kafka.security: plaintext is refused in production; set protocol SASL_SSL or SSL".to_owned());
    }
    if config.keys.root.starts_with("file:") && config.keys.file_root_reason.as_deref().unwrap_or_default().trim().is_empty() {
        problems
            .push("keys.root: a root key in a file needs keys.file_root_reason in production; better use transit: or awskms:".to_owned());
    }
    if config.principal.is_empty() && !config.purpose.is_empty() {
        problems.push("principal: in production say who may claim which roles, [[principal]] os_user and roles".to_owned());
    }
    if config.certificate.as_ref().is_none_or(|c| c.signer.is_none()) {
        problems.push("certificate.signer: needed in production; `sunder certificate new-signer FILE --name NAME` makes one".to_owned());
    }
}
