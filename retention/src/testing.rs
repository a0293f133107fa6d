//! What tests of several crates share: a private PostgreSQL, and key databases on both engines. Feature `testing` only.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, reason = "tests stop loudly")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor};
use sunder_schemas::time::{Clock, Timestamp};
use tempfile::TempDir;

use crate::deadline::Policy;
use crate::keydb::KeyDb;
use crate::keys::Keyring;
use crate::root::FileRoot;

/// URL of a PostgreSQL server whose user may create databases, e.g. `postgres://postgres@127.0.0.1:5432`; `scripts/test` sets it.
pub const SERVER_VARIABLE: &str = "SUNDER_TEST_POSTGRES";
/// How long a private server may take to answer.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The server of this test process: given by the environment, started, or not to be had.
enum Server {
    Given(String),
    Private { url: String, _watch: Child },
    Missing,
}

static SERVER: OnceLock<Server> = OnceLock::new();

/// The URL of a new, empty database on PostgreSQL, or `None` where no server is to be had: then the test says so loudly and its
/// PostgreSQL half passes. In CI (variable `CI`) a missing server is a failure.
///
/// # Panics
/// Where the server is there and the database cannot be made.
pub async fn postgres() -> Option<String> {
    let server = tokio::task::spawn_blocking(|| SERVER.get_or_init(start)).await.unwrap();
    let base = match server {
        Server::Given(url) | Server::Private { url, .. } => without_database(url),
        Server::Missing => return None,
    };
    let name = format!("sunder_test_{}", uuid::Uuid::new_v4().simple());
    let pool = PgPoolOptions::new().max_connections(1).connect(&format!("{base}/postgres")).await.expect("the PostgreSQL server answers");
    pool.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.expect("the database is made");
    pool.close().await;
    Some(format!("{base}/{name}"))
}

/// The server of a URL, which may name a database.
fn without_database(url: &str) -> &str {
    let server = url.find("://").map_or(0, |at| at + 3);
    url.get(server..).and_then(|rest| rest.find('/')).and_then(|slash| url.get(..server + slash)).unwrap_or(url)
}

fn variable(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "tests have no config")]
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn start() -> Server {
    if let Some(url) = variable(SERVER_VARIABLE) {
        return Server::Given(url);
    }
    let Some(bin) = binaries() else {
        let message = "PostgreSQL is not installed and SUNDER_TEST_POSTGRES is not set: the PostgreSQL half of these tests does NOT run";
        assert!(variable("CI").is_none(), "{message}");
        eprintln!("\n*** {message} ***\n");
        return Server::Missing;
    };
    // A short path: the socket's name may have 107 bytes.
    let folder = TempDir::with_prefix("sunder-pg-").expect("a temp folder").keep();
    let as_root = own_uid() == Some(0);
    if as_root {
        run(Command::new("chown").arg("postgres").arg(&folder), "chown");
    }
    let data = folder.join("data");
    let tool = |name: &str| {
        let mut command = if as_root {
            let mut command = Command::new("runuser");
            command.args(["-u", "postgres", "--"]).arg(bin.join(name));
            command
        } else {
            Command::new(bin.join(name))
        };
        command.current_dir(&folder);
        command
    };
    run(tool("initdb").args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "-D"]).arg(&data), "initdb");
    // The port is free now; should another process take it first, the server ends at once and the message says so.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port();
    let child = tool("postgres")
        .arg("-D")
        .arg(&data)
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", "fsync=off", "-c", "max_connections=200"])
        .arg("-k")
        .arg(&folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("PostgreSQL starts");
    let watch = watch(&folder);
    wait_until_ready(&tool("pg_isready"), port, child);
    Server::Private { url: format!("postgres://postgres@127.0.0.1:{port}"), _watch: watch }
}

fn wait_until_ready(probe: &Command, port: u16, mut child: Child) {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let mut command = Command::new(probe.get_program());
        command.args(probe.get_args()).args(["-h", "127.0.0.1", "-p", &port.to_string(), "-t", "1"]);
        if command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success()) {
            return;
        }
        assert!(child.try_wait().expect("the server's state").is_none(), "PostgreSQL ended while it started");
        assert!(Instant::now() < deadline, "PostgreSQL did not answer within {START_TIMEOUT:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// Stops the server and removes its folder when this process ends, however it ends: a shell waits on a pipe that only we hold open.
fn watch(folder: &Path) -> Child {
    Command::new("sh")
        .args(["-c", "read -r _; kill -QUIT \"$(head -n 1 \"$0/data/postmaster.pid\")\"; rm -rf \"$0\""])
        .arg(folder)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell starts")
}

fn binaries() -> Option<PathBuf> {
    let mut versions: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten().map(|e| e.path().join("bin")).collect();
    versions.sort();
    versions.into_iter().find(|bin| bin.join("initdb").exists())
}

fn own_uid() -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").map(|m| m.uid()).ok()
}

fn run(command: &mut Command, what: &str) {
    let output = command.output().unwrap_or_else(|e| panic!("{what} does not start: {}", e.kind()));
    assert!(output.status.success(), "{what} failed: {}", String::from_utf8_lossy(&output.stderr));
}

/// A temp folder, in memory where the system has such a place: a test of a thousand databases waits for no disk.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a temp folder")
}

/// A key database with all that belongs to it.
#[derive(Debug)]
pub struct TestKeys {
    /// `sqlite` or `postgres`, for messages.
    pub engine: &'static str,
    /// Its URL, to open it a second time.
    pub url: String,
    /// The keyring.
    pub keyring: Arc<Keyring>,
    /// Holds the root key and the SQLite file.
    pub folder: TempDir,
}

impl TestKeys {
    /// A keyring on SQLite in a temp folder.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub async fn sqlite(clock: Arc<dyn Clock>, policy: Policy) -> Self {
        let folder = folder();
        let url = format!("sqlite://{}/keys.db", folder.path().display());
        Self::open("sqlite", url, folder, clock, policy).await
    }

    /// A keyring on a new PostgreSQL database, if a server is to be had.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub async fn postgres(clock: Arc<dyn Clock>, policy: Policy) -> Option<Self> {
        let url = postgres().await?;
        Some(Self::open("postgres", url, tempfile::tempdir().unwrap(), clock, policy).await)
    }

    /// On every engine that is to be had.
    ///
    /// # Panics
    /// Where one cannot be made.
    pub async fn all(clock: Arc<dyn Clock>, policy: Policy) -> Vec<Self> {
        let mut all = vec![Self::sqlite(Arc::clone(&clock), policy).await];
        all.extend(Self::postgres(clock, policy).await);
        all
    }

    /// A second process: its own pool, caches and lease over the same database and root.
    ///
    /// # Panics
    /// Where it cannot be made.
    pub async fn another(&self, clock: Arc<dyn Clock>) -> Arc<Keyring> {
        let root = FileRoot::open(&self.folder.path().join("root.key")).unwrap();
        let db = KeyDb::open(&self.url, None).await.unwrap();
        Arc::new(Keyring::new(db, Arc::new(root), clock, *self.keyring.policy()))
    }

    async fn open(engine: &'static str, url: String, folder: TempDir, clock: Arc<dyn Clock>, policy: Policy) -> Self {
        let root = FileRoot::open_or_create(&folder.path().join("root.key")).unwrap();
        let db = KeyDb::open(&url, None).await.unwrap();
        Self { engine, url, keyring: Arc::new(Keyring::new(db, Arc::new(root), clock, policy)), folder }
    }
}

/// A fixed day for tests: 2026-11-22T00:00:00Z.
pub const TEST_DAY: Timestamp = Timestamp(1_795_305_600_000);
