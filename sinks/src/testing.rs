//! Databases for tests: a PostgreSQL server that is shared by the tests of a process, and one database per test.
//!
//! The server is the one that `SUNDER_TEST_POSTGRES` names, else a private one from the first of `/usr/lib/postgresql/*/bin`, under a
//! temporary folder and on a free port of loopback, stopped when the last test lets go of it.
#![expect(clippy::expect_used, clippy::print_stderr, reason = "this module serves tests alone")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

/// A server that tests share.
pub struct Server {
    /// URL of its `postgres` database.
    pub url: String,
    private: Option<(PathBuf, tempfile::TempDir)>,
}

static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());

/// The shared server; `None`, with a loud message, where there is no PostgreSQL on this machine.
///
/// # Panics
/// In CI (`CI` is set), where a missing server is a failure.
#[must_use]
pub fn postgres() -> Option<Arc<Server>> {
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = shared.upgrade() {
        return Some(server);
    }
    let Some(server) = Server::find() else {
        assert!(variable("CI").is_none(), "no PostgreSQL: set SUNDER_TEST_POSTGRES or install it");
        eprintln!("\n*** NO POSTGRESQL: this half of the test did not run (set SUNDER_TEST_POSTGRES or install postgresql) ***\n");
        return None;
    };
    let server = Arc::new(server);
    *shared = Arc::downgrade(&server);
    Some(server)
}

#[expect(clippy::disallowed_methods, reason = "tests are configured by the environment alone")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Server {
    fn find() -> Option<Self> {
        if let Some(url) = variable("SUNDER_TEST_POSTGRES") {
            return Some(Self { url, private: None });
        }
        let mut versions: Vec<PathBuf> =
            std::fs::read_dir("/usr/lib/postgresql").ok()?.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
        versions.sort();
        let bin = versions.into_iter().find(|bin| bin.join("initdb").exists())?;
        let folder = tempfile::Builder::new().prefix("sunder-pg-").tempdir().expect("a temporary folder");
        let is_root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.starts_with(b"0\n"));
        if is_root {
            run(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        let data = folder.path().join("data");
        run(as_owner(is_root, &bin.join("initdb")).args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "-D"]).arg(&data));
        // The port is free now; another process could only take it between here and the start, which then fails loudly.
        let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").port();
        let options = format!("-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off");
        run(as_owner(is_root, &bin.join("pg_ctl"))
            .args(["-w", "-t", "60", "-o", &options, "-l"])
            .arg(folder.path().join("log"))
            .arg("-D")
            .arg(&data)
            .arg("start"));
        Some(Self { url: format!("postgres://postgres@127.0.0.1:{port}/postgres"), private: Some((bin, folder)) })
    }

    /// A fresh database and its URL; it goes with the private server.
    ///
    /// # Panics
    /// Where the server does not answer.
    pub async fn database(&self) -> String {
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        let options = PgConnectOptions::from_str(&self.url).expect("a URL of PostgreSQL");
        let mut connection = options.connect().await.expect("PostgreSQL answers");
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut connection).await.expect("a fresh database");
        connection.close().await.expect("a clean end");
        let (server, _) = self.url.rsplit_once('/').expect("a database in the URL");
        format!("{server}/{name}")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((bin, folder)) = &self.private {
            let is_root = Command::new("id").arg("-u").output().is_ok_and(|out| out.stdout.starts_with(b"0\n"));
            let stop = as_owner(is_root, &bin.join("pg_ctl"))
                .args(["-m", "immediate", "-w", "-D"])
                .arg(folder.path().join("data"))
                .arg("stop")
                .output();
            if !stop.is_ok_and(|out| out.status.success()) {
                eprintln!("the private PostgreSQL under {} did not stop", folder.path().display());
            }
        }
    }
}

/// PostgreSQL refuses to run as root, so root runs it as the packages' user.
fn as_owner(is_root: bool, program: &Path) -> Command {
    if !is_root {
        return Command::new(program);
    }
    let mut command = Command::new("runuser");
    command.args(["-u", "postgres", "--"]).arg(program);
    command
}

fn run(command: &mut Command) {
    // Standard output is not piped: the server inherits it and would keep the pipe open.
    let status = command.current_dir("/").stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    assert!(status.as_ref().is_ok_and(std::process::ExitStatus::success), "{command:?}: {status:?}");
}
