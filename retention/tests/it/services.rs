//! Root keys in real key services: OpenBao's transit engine, and the wire of AWS KMS against moto.

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use serde_json::{Value, json};
use sunder_retention::keydb::KeyDb;
use sunder_retention::keys::Keyring;
use sunder_retention::root::{KmsAccess, KmsRoot, Retired, RootError, RootKey, ServiceOptions, TokenSource, TransitRoot};
use sunder_retention::rotate::rotate_root;
use sunder_retention::testing::TestKeys;
use sunder_schemas::ids::SellerId;
use sunder_schemas::time::SystemClock;

use crate::support::{PLAIN, databases, order};

/// Plain HTTP on loopback.
const LOOPBACK: ServiceOptions = ServiceOptions { allow_http: true };

/// A variable that `scripts/services env` prints. In CI its absence is a failure; elsewhere it is said loudly.
#[expect(clippy::print_stderr, reason = "a test that cannot run says so to whoever started it")]
fn service(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "tests find their services by environment variables")]
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let found = variable(name);
    if found.is_none() {
        assert!(variable("CI").is_none(), "{name} is not set: CI needs scripts/services");
        eprintln!("NOT RUN: {name} is not set. Start it with `scripts/services start`, then `eval \"$(scripts/services env)\"`.");
    }
    found
}

fn secret(text: &str) -> TokenSource {
    let text = text.to_owned();
    Arc::new(move || Ok(SecretString::from(text.clone())))
}

/// OpenBao with a transit key of this test's own.
struct Bao {
    base: String,
    token: String,
    key: String,
    http: reqwest::Client,
}

impl Bao {
    async fn new() -> Option<Self> {
        let base = service("SUNDER_TEST_OPENBAO")?;
        let token = service("SUNDER_TEST_OPENBAO_TOKEN")?;
        drop(rustls::crypto::ring::default_provider().install_default());
        let this = Self { base, token, key: format!("k{}", uuid::Uuid::new_v4().simple()), http: reqwest::Client::new() };
        this.post(&format!("transit/keys/{}", this.key), json!({})).await;
        Some(this)
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let answer = self.http.post(format!("{}/v1/{path}", self.base)).header("X-Vault-Token", &self.token).json(&body);
        let answer = answer.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.status());
        answer.json().await.unwrap_or_default()
    }

    /// A token that may do only what `policy` says.
    async fn limited(&self, policy: &str) -> String {
        let name = format!("p{}", uuid::Uuid::new_v4().simple());
        self.post(&format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
        let made = self.post("auth/token/create", json!({ "policies": [name], "no_default_policy": true })).await;
        made.pointer("/auth/client_token").unwrap().as_str().unwrap().to_owned()
    }

    fn root(&self, token: &str) -> TransitRoot {
        TransitRoot::new(&format!("{}/transit/{}", self.base, self.key), secret(token), LOOPBACK).unwrap()
    }
}

async fn wraps_and_unwraps(root: &dyn RootKey) -> Vec<u8> {
    root.probe().await.unwrap();
    let wrapped = root.wrap(b"seller A", &[7; 32]).await.unwrap();
    assert_eq!(root.unwrap(b"seller A", &wrapped).await.unwrap().as_slice(), &[7; 32]);
    assert_eq!(root.unwrap(b"seller B", &wrapped).await.unwrap_err(), RootError::NotOurs);
    let mut flipped = wrapped.clone();
    let last = flipped.len() - 3;
    flipped[last] ^= 1;
    assert!(root.unwrap(b"seller A", &flipped).await.is_err());
    assert_eq!(root.unwrap(b"seller A", b"not ours").await.unwrap_err(), RootError::NotOurs);
    assert_eq!(root.version_of(&wrapped), Some(root.version().await.unwrap()));
    wrapped
}

#[tokio::test]
async fn openbao_wraps_in_its_context_rotates_and_lets_the_old_version_open_nothing() {
    let Some(bao) = Bao::new().await else { return };
    let root = bao.root(&bao.token);
    let old = wraps_and_unwraps(&root).await;
    assert_eq!((root.rotate(1).await.unwrap(), root.rotate(1).await.unwrap()), (2, 2), "asked twice it is done once");
    let new = wraps_and_unwraps(&root).await;
    assert_eq!((root.version_of(&old), root.version_of(&new)), (Some(1), Some(2)));
    assert_eq!(root.unwrap(b"seller A", &old).await.unwrap().as_slice(), &[7; 32]);
    assert_eq!(root.retire(2).await.unwrap(), Retired::Destroyed);
    assert_eq!(root.retire(2).await.unwrap(), Retired::Destroyed, "twice is once");
    assert_eq!(root.unwrap(b"seller A", &old).await.unwrap_err(), RootError::NotOurs);
    assert_eq!(root.unwrap(b"seller A", &new).await.unwrap().as_slice(), &[7; 32]);
    assert!(root.describe().contains(&bao.key) && !root.describe().contains(&bao.token));
}

#[tokio::test]
async fn a_token_without_a_right_is_refused_with_a_code_and_the_address() {
    let Some(bao) = Bao::new().await else { return };
    let rights = |what: &str| format!("path \"transit/{what}/{}\" {{ capabilities = [\"update\"] }}", bao.key);
    let wrapped = bao.root(&bao.token).wrap(b"c", &[1; 32]).await.unwrap();
    // Who may encrypt and decrypt can do all of a role's daily work, and no more.
    let worker = bao.root(&bao.limited(&format!("{}\n{}", rights("encrypt"), rights("decrypt"))).await);
    worker.probe().await.unwrap();
    assert!(matches!(worker.rotate(1).await.unwrap_err(), RootError::Service { code, .. } if code == "http_403"));
    let sealer = bao.root(&bao.limited(&rights("encrypt")).await);
    let error = sealer.unwrap(b"c", &wrapped).await.unwrap_err();
    assert!(error.to_string().contains(&bao.base) && error.to_string().contains("http_403"), "{error}");
    let stranger = bao.root("s.nobody");
    let error = stranger.wrap(b"c", &[1; 32]).await.unwrap_err();
    assert!(!error.to_string().contains("nobody"), "{error}");
    // Nobody listens there: tried again, then said with the address.
    let closed = TransitRoot::new("http://127.0.0.1:1/transit/k", secret("t"), LOOPBACK).unwrap();
    let error = closed.wrap(b"c", &[1; 32]).await.unwrap_err();
    assert!(matches!(&error, RootError::Service { retry: true, code, .. } if code == "connect"), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
}

/// The keyring of a process whose root key is in OpenBao.
async fn ring(db: &TestKeys, root: TransitRoot) -> Keyring {
    Keyring::new(KeyDb::open(&db.url, None).await.unwrap(), Arc::new(root), Arc::new(SystemClock::default()), PLAIN)
}

#[tokio::test]
async fn a_key_database_lives_on_openbao_through_a_rotation_and_goes_on_with_cached_keys_while_it_is_away() {
    let Some(bao) = Bao::new().await else { return };
    let (_, all) = databases().await;
    let (a, b) = (SellerId::parse("A1BAO").unwrap(), SellerId::parse("A2BAO").unwrap());
    for db in &all {
        let here = ring(db, bao.root(&bao.token)).await;
        let token = here.seller(&a).await.unwrap().order_token(&order(1));
        let done = rotate_root(&here, Duration::ZERO, "test").await.unwrap();
        assert_eq!((done.rewrapped, done.retired), (3, "destroyed"), "{}", db.engine);
        let again = ring(db, bao.root(&bao.token)).await;
        assert_eq!(again.seller(&a).await.unwrap().order_token(&order(1)), token, "tokens stay what they were");
        assert_eq!(done.to, here.root().version().await.unwrap());

        // The service goes away: what is in memory works on, what is not waits and says why.
        let relay = Relay::start(&bao.base).await;
        let cut = TransitRoot::new(&format!("http://{}/transit/{}", relay.address, bao.key), secret(&bao.token), LOOPBACK).unwrap();
        let cut = ring(db, cut).await;
        cut.seller(&a).await.unwrap();
        relay.stop().await;
        assert_eq!(cut.seller(&a).await.unwrap().order_token(&order(1)), token);
        let error = cut.seller(&b).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains(&relay.address), "{error}");
        assert!(cut.root().probe().await.is_err());
    }
}

/// A TCP relay that can be cut.
struct Relay {
    address: String,
    stop: tokio::sync::watch::Sender<bool>,
    task: tokio::sync::Mutex<tokio::task::JoinSet<()>>,
}

impl Relay {
    async fn start(base: &str) -> Self {
        let to = base.trim_start_matches("http://").to_owned();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    _ = stopped.changed() => return,
                    accepted = listener.accept() => {
                        let (mut from, to) = (accepted.unwrap().0, to.clone());
                        open.spawn(async move {
                            let mut to = tokio::net::TcpStream::connect(to).await.unwrap();
                            drop(tokio::io::copy_bidirectional(&mut from, &mut to).await);
                        });
                    }
                }
            }
        });
        Self { address, stop, task: tokio::sync::Mutex::new(task) }
    }

    async fn stop(&self) {
        self.stop.send(true).unwrap();
        while self.task.lock().await.join_next().await.is_some() {}
    }
}

/// A KMS key at moto. Moto still decrypts after a deletion, so it judges the wire alone.
async fn kms(base: &str) -> KmsRoot {
    drop(rustls::crypto::ring::default_provider().install_default());
    let made = reqwest::Client::new()
        .post(base)
        .header("x-amz-target", "TrentService.CreateKey")
        .header("content-type", "application/x-amz-json-1.1")
        .header("authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/eu-west-1/kms/aws4_request, SignedHeaders=host, Signature=00")
        .body("{}")
        .send()
        .await
        .unwrap();
    let made: Value = made.json().await.unwrap();
    let arn = made.pointer("/KeyMetadata/Arn").unwrap().as_str().unwrap().to_owned();
    let access = KmsAccess { access_key_id: secret("test"), secret_access_key: secret("test"), session_token: Some(secret("session")) };
    KmsRoot::new(&arn, Some(base), access, Arc::new(SystemClock::default()), LOOPBACK).unwrap()
}

#[tokio::test]
async fn the_wire_of_kms_wraps_in_its_context_and_rotates() {
    let Some(base) = service("SUNDER_TEST_KMS") else { return };
    let root = kms(&base).await;
    let old = wraps_and_unwraps(&root).await;
    assert_eq!(root.version_of(&old), Some(1));
    let newest = root.rotate(1).await.unwrap();
    assert_eq!((newest, root.rotate(1).await.unwrap()), (2, 2), "asked twice it is done once");
    assert_eq!(root.retire(2).await.unwrap(), Retired::KeptByService);
    let new = wraps_and_unwraps(&root).await;
    assert_eq!(root.version_of(&new), Some(2));
    let missing = "arn:aws:kms:eu-west-1:123456789012:key/00000000-0000-0000-0000-000000000000";
    let access = KmsAccess { access_key_id: secret("test"), secret_access_key: secret("test"), session_token: None };
    let missing = KmsRoot::new(missing, Some(&base), access, Arc::new(SystemClock::default()), LOOPBACK).unwrap();
    let error = missing.wrap(b"c", &[1; 32]).await.unwrap_err();
    assert!(matches!(&error, RootError::Service { code, retry: false, .. } if code == "NotFoundException"), "{error}");
}
