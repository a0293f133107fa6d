//! PostgreSQL servers of a test's own: one that may be kept waiting without holding up others' cases, or a pair that fails over.

use super::brokers::services;

/// A server, with a streaming standby where one was asked for, under a folder of its own; stopped and removed on drop.
pub(super) struct Postgres {
    home: tempfile::TempDir,
}

impl Postgres {
    /// One server.
    pub(super) fn alone() -> Self {
        Self::start(&[])
    }

    /// A primary and its standby; `sync`: the primary waits for its standby with each commit; `async`: it does not.
    pub(super) fn with_standby(mode: &str) -> Self {
        Self::start(&["--standby", mode])
    }

    fn start(how: &[&str]) -> Self {
        let this = Self { home: tempfile::tempdir().expect("temporary folder") };
        this.script(&[&["start", "--only", "postgres"], how].concat());
        this
    }

    /// Has the script of the services do something with it.
    pub(super) fn script(&self, args: &[&str]) {
        services(self.home.path(), args);
    }

    fn at(&self, file: &str) -> String {
        let port = std::fs::read_to_string(self.home.path().join("postgres").join(file)).expect("a port");
        format!("127.0.0.1:{}", port.trim())
    }

    /// Where the first server listens.
    pub(super) fn primary(&self) -> String {
        self.at("port")
    }

    /// Where its standby listens.
    pub(super) fn standby(&self) -> String {
        self.at("standby.port")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.script(&["stop"]);
    }
}
