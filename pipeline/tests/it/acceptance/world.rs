//! A whole installation for one test: a simulator process, a config, and the program run as an operator runs it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long one command may take before it counts as hung; far above what any needs.
const COMMAND_MAX: Duration = Duration::from_secs(900);

/// Where Kafka, the databases and their files are.
#[derive(Debug, Clone)]
pub(super) struct Services {
    pub(super) kafka: String,
    pub(super) kafka_logs: Vec<PathBuf>,
    pub(super) postgres: Option<String>,
}

impl Services {
    /// From the variables that `scripts/services env` prints. In CI their absence is a failure; elsewhere it is said loudly.
    #[expect(clippy::disallowed_methods, reason = "tests find their services by environment variables")]
    pub(super) fn from_env() -> Option<Self> {
        let Ok(kafka) = std::env::var("SUNDER_TEST_KAFKA") else {
            assert!(std::env::var("CI").is_err(), "SUNDER_TEST_KAFKA is not set: CI needs scripts/services");
            eprintln!("NOT RUN: no Apache Kafka. Start it with `scripts/services start`, then `eval \"$(scripts/services env)\"`.");
            return None;
        };
        let kafka_logs =
            std::env::var("SUNDER_TEST_KAFKA_LOGS").unwrap_or_default().split(',').filter(|s| !s.is_empty()).map(PathBuf::from).collect();
        Some(Self { kafka, kafka_logs, postgres: std::env::var("SUNDER_TEST_POSTGRES").ok() })
    }
}

/// Which database the stores of a world are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stores {
    Sqlite,
    Postgres,
}

/// One installation.
pub(super) struct World {
    pub(super) folder: tempfile::TempDir,
    pub(super) prefix: String,
    pub(super) simulator: Simulator,
    pub(super) urls: Urls,
    env: Vec<(String, String)>,
}

/// The databases of a world.
#[derive(Debug, Clone)]
pub(super) struct Urls {
    pub(super) keys: String,
    pub(super) vault: String,
    pub(super) warehouse: String,
}

impl World {
    /// Starts a simulator and lays out a config for `services`.
    pub(super) async fn start(services: &Services, stores: Stores, sellers: usize, orders: usize, seed: u64, faults: &str) -> Self {
        Self::growing(services, stores, (sellers, orders, 0), seed, faults).await
    }

    /// The same, and `later` orders arrive within 30 days.
    pub(super) async fn growing(
        services: &Services,
        stores: Stores,
        (sellers, orders, later): (usize, usize, usize),
        seed: u64,
        faults: &str,
    ) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let prefix = format!("t{}", uuid::Uuid::new_v4().simple());
        let simulator = Simulator::start(folder.path(), (sellers, orders, later), seed, faults);
        let urls = match stores {
            Stores::Sqlite => {
                let file = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
                Urls { keys: file("keys.db"), vault: file("vault.db"), warehouse: file("warehouse.db") }
            }
            Stores::Postgres => create_databases(services.postgres.as_deref().expect("SUNDER_TEST_POSTGRES"), &prefix).await,
        };
        let env = [
            ("SUNDER_KAFKA__BOOTSTRAP", services.kafka.as_str()),
            ("SUNDER_KAFKA__PREFIX", &prefix),
            ("SUNDER_KAFKA__PARTITIONS", "4"),
            ("SUNDER_KAFKA__REPLICATION", "1"),
            ("SUNDER_KEYS__DATABASE", &urls.keys),
            ("SUNDER_VAULT__URL", &urls.vault),
            ("SUNDER_WAREHOUSE__URL", &urls.warehouse),
            ("SUNDER_SERVE__LISTEN", "127.0.0.1:0"),
        ];
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Self { folder, prefix, simulator, urls, env }
    }

    /// Sets or replaces a config override of later commands.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(k, _)| k != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub(super) fn config(&self) -> PathBuf {
        self.folder.path().join("sunder.toml")
    }

    /// The program with this world's config; standard error goes to `log-<n>.txt` beside it, where the leak search finds it.
    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sunder"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log.txt")).expect("log file");
        command.args(args).arg("--config").arg(self.config()).envs(self.env.iter().cloned()).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        command
    }

    /// The last lines that any process of this world wrote to standard error.
    pub(super) fn last_words(&self) -> String {
        last_words(&self.folder.path().join("log.txt"))
    }

    /// What a command prints, as text.
    pub(super) fn stdout(&self, args: &[&str]) -> String {
        let output = self.command(args).output().expect("sunder runs");
        assert!(output.status.success(), "`sunder {}` failed", args.join(" "));
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs a command to its end.
    pub(super) fn run(&self, args: &[&str]) -> Ended {
        let child = self.command(args).spawn().expect("sunder starts");
        Ended::of(wait(child, args), args, self.folder.path())
    }
}

impl Drop for World {
    /// A passed test takes its topics away: brokers hold every segment open, and many tests share them. A failed one leaves them to be read.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let address = self.env.iter().find(|(name, _)| name == "SUNDER_KAFKA__BOOTSTRAP").map(|(_, address)| address.clone());
        let options = rdkafka::ClientConfig::new().set("bootstrap.servers", address.unwrap_or_default()).set("log_level", "0").to_owned();
        let Ok(admin) = options.create::<rdkafka::admin::AdminClient<_>>() else { return };
        // A world without a broker has no topics; the wait is for one that was taken away.
        let Ok(metadata) = admin.inner().fetch_metadata(None, Duration::from_secs(2)) else { return };
        let own = format!("{}.", self.prefix);
        let names: Vec<_> = metadata.topics().iter().map(rdkafka::metadata::MetadataTopic::name).filter(|n| n.starts_with(&own)).collect();
        if !names.is_empty() {
            drop(futures::executor::block_on(admin.delete_topics(&names, &rdkafka::admin::AdminOptions::new())));
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) json: Value,
    pub(super) what: String,
    pub(super) log_tail: String,
}

impl Ended {
    fn of(output: Output, args: &[&str], folder: &Path) -> Self {
        let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        let log = std::fs::read_to_string(folder.join("log.txt")).unwrap_or_default();
        let log_tail = log.lines().rev().take(25).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        Self { code: output.status.code(), json, what: args.join(" "), log_tail }
    }

    /// Asserts the exit code and gives the JSON.
    #[track_caller]
    pub(super) fn expect(self, code: i32) -> Value {
        assert_eq!(self.code, Some(code), "`sunder {}` printed {:#}\nlog:\n{}", self.what, self.json, self.log_tail);
        self.json
    }
}

fn wait(mut child: Child, args: &[&str]) -> Output {
    // Standard output is read to its end on this thread, so the pipe never fills; a watcher ends a hung child.
    let pid = child.id();
    let done = std::sync::Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
    let watcher = {
        let done = done.clone();
        let what = args.join(" ");
        std::thread::spawn(move || {
            let start = Instant::now();
            let mut ended = done.0.lock().expect("lock");
            while !*ended && start.elapsed() < COMMAND_MAX {
                ended = done.1.wait_timeout(ended, COMMAND_MAX).expect("lock").0;
            }
            if !*ended {
                eprintln!("`sunder {what}` hung; killing it");
                kill(pid);
            }
        })
    };
    let mut stdout = Vec::new();
    std::io::Read::read_to_end(&mut child.stdout.take().expect("stdout"), &mut stdout).expect("read");
    let status = child.wait().expect("wait");
    *done.0.lock().expect("lock") = true;
    done.1.notify_all();
    watcher.join().expect("watcher");
    Output { status, stdout, stderr: Vec::new() }
}

/// `kill -9` for a process this test started.
pub(super) fn kill(pid: u32) {
    let status = Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs");
    assert!(status.success() || status.code() == Some(1));
}

/// SIGTERM for a process this test started.
pub(super) fn terminate(pid: u32) {
    let status = Command::new("kill").args(["-TERM", &pid.to_string()]).status().expect("kill runs");
    assert!(status.success() || status.code() == Some(1));
}

/// A running simulator process; stopped on drop.
pub(super) struct Simulator {
    child: Child,
    pub(super) base: String,
}

impl Simulator {
    fn start(folder: &Path, (sellers, orders, later): (usize, usize, usize), seed: u64, faults: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_sunder"))
            .args(["simulate", "--json", "--listen", "127.0.0.1:0", "--rate-scale", "100000", "--faults", faults])
            .args(["--sellers", &sellers.to_string(), "--orders", &orders.to_string(), "--seed", &seed.to_string()])
            .args(["--later-orders", &later.to_string()])
            .arg("--write-config")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("simulator starts");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let base = loop {
            let line = lines.next().expect("simulator says where it listens").expect("utf-8");
            if let Some(at) = line.find("http://") {
                break line.split_at(at).1.split('"').next().unwrap_or_default().trim_end_matches(['"', ',', ' ', '/']).to_owned();
            }
        };
        // Whatever it prints later must not fill the pipe.
        std::thread::spawn(move || for _ in lines {});
        Self { child, base }
    }

    /// Where it listens.
    pub(super) fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    pub(super) async fn get(&self, path: &str) -> String {
        let response = client().get(format!("{}{path}", self.base)).send().await.expect("simulator answers");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.text().await.expect("text")
    }

    pub(super) async fn post(&self, path: &str, body: Value) {
        let response = client().post(format!("{}{path}", self.base)).json(&body).send().await.expect("simulator answers");
        assert!(response.status().is_success(), "{path}: {}", response.status());
    }

    pub(super) async fn truth(&self) -> Value {
        serde_json::from_str(&self.get("/_sim/truth").await).expect("truth is JSON")
    }

    /// Every personal value it ever gives, one JSON object each: seller, order, group, path, value, allowed.
    pub(super) async fn personal(&self) -> Vec<Value> {
        self.get("/_sim/truth/personal").await.lines().map(|l| serde_json::from_str(l).expect("JSON lines")).collect()
    }

    /// The orders whose delivery address it would give now and that were not cancelled, each as its seller and its number.
    pub(super) async fn addressed(&self) -> std::collections::BTreeSet<(String, String)> {
        let orders = self.get("/_sim/truth/orders").await;
        let orders = orders.lines().map(|l| serde_json::from_str::<Value>(l).expect("JSON lines"));
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let is_cancelled = |order: &Value| order["fulfillment"]["fulfillmentStatus"] == "CANCELLED";
        let addressed = orders.filter(|l| l["order"]["recipient"]["deliveryAddress"].is_object() && !is_cancelled(&l["order"]));
        addressed.map(|l| (text(&l["seller"]), text(&l["order"]["orderId"]))).collect()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The last lines of a log.
pub(super) fn last_words(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

pub(super) fn client() -> reqwest::Client {
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::new()
}

async fn create_databases(server: &str, name: &str) -> Urls {
    use sqlx::Connection;
    let mut connection = sqlx::PgConnection::connect(server).await.expect("PostgreSQL answers");
    let base = server.rsplit_once('/').expect("a database in the URL").0;
    let mut made = Vec::new();
    for part in ["keys", "vault", "warehouse"] {
        let database = format!("{name}_{part}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}"))).execute(&mut connection).await.expect("create database");
        made.push(format!("{base}/{database}"));
    }
    let mut made = made.into_iter();
    let mut next = || made.next().expect("three databases");
    Urls { keys: next(), vault: next(), warehouse: next() }
}
