//! A process that runs until it is told to stop, watched from outside.

use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::awaited::{SHOWN_WITHIN, found, until};
use super::world::{World, client, last_words, terminate};

/// Within this a process that is told to stop has drained: the bound of the program's own (`run`: 90 s), which it must not need, and more
/// would be its kill.
const DRAINED_WITHIN: Duration = Duration::from_secs(60);

/// A process with all roles that runs until it is told to stop.
pub(super) struct Running {
    child: Child,
    health: String,
    /// Where it logs to.
    log: std::path::PathBuf,
}

impl Running {
    /// All roles.
    pub(super) async fn start(world: &World) -> Self {
        Self::roles(world, &[]).await
    }

    /// These roles, and `serve`.
    pub(super) async fn roles(world: &World, roles: &[&str]) -> Self {
        let serving = if roles.is_empty() { &[][..] } else { &["serve"] };
        let args = [&["run", "--json"], roles, serving].concat();
        let before = log_of(world).lines().count();
        let child = world.command(&args).spawn().expect("sunder starts");
        let health = found(SHOWN_WITHIN, "it serves", async || {
            let log = log_of(world);
            let line = log.lines().skip(before).find(|line| line.contains("serving /livez"))?;
            Some(format!("http://{}", serde_json::from_str::<Value>(line).ok()?["address"].as_str()?))
        })
        .await;
        Self { child, health, log: world.folder.path().join("log.txt") }
    }

    /// Waits until `/readyz` answers with `status` and names `word`; `/livez` answers all the time.
    pub(super) async fn until(&self, status: u16, word: &str) {
        until(SHOWN_WITHIN, &format!("/readyz says {status} and {word}"), async || {
            let live = client().get(format!("{}/livez", self.health)).send().await.expect("it is alive");
            assert!(live.status().is_success());
            let ready = client().get(format!("{}/readyz", self.health)).send().await.expect("it is alive");
            let (found, text) = (ready.status().as_u16(), ready.text().await.expect("text"));
            found == status && text.contains(word)
        })
        .await;
    }

    /// SIGTERM: it drains and ends with 0 and its report.
    pub(super) fn stop(self) -> Value {
        let (started, log) = (Instant::now(), self.log.clone());
        terminate(self.child.id());
        let (code, printed) = self.ended();
        assert_eq!(code, Some(0), "SIGTERM: {}", last_words(&log));
        assert!(started.elapsed() < DRAINED_WITHIN, "drained after {:?}", started.elapsed());
        serde_json::from_slice(&printed).expect("one JSON document")
    }
}

impl Running {
    /// The process.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the metrics have a line that begins with `name` and a value above `above`.
    pub(super) async fn until_metric(&self, name: &str, above: f64) {
        until(SHOWN_WITHIN, &format!("{name} above {above}"), async || {
            let text = client().get(format!("{}/metrics", self.health)).send().await.expect("it is alive").text().await.expect("text");
            let values = text.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.sum::<f64>() > above
        })
        .await;
    }

    /// The share of a core that it takes over `period`, in percent.
    pub(super) async fn cpu_percent(&self, period: Duration) -> u128 {
        let ticks = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
            // After the name in brackets: user and system time are fields 14 and 15 of proc_pid_stat(5), in hundredths of a second.
            let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
            fields[11].parse::<u128>().expect("ticks") + fields[12].parse::<u128>().expect("ticks")
        };
        let (before, started) = (ticks(), Instant::now());
        tokio::time::sleep(period).await;
        (ticks() - before) * 1_000 / started.elapsed().as_millis()
    }

    /// Waits for the end; its exit code and what it printed.
    pub(super) fn ended(mut self) -> (Option<i32>, Vec<u8>) {
        let mut printed = Vec::new();
        std::io::Read::read_to_end(&mut self.child.stdout.take().expect("stdout"), &mut printed).expect("read");
        (self.child.wait().expect("wait").code(), printed)
    }
}

/// What the world's processes logged so far.
pub(super) fn log_of(world: &World) -> String {
    String::from_utf8_lossy(&std::fs::read(world.folder.path().join("log.txt")).unwrap_or_default()).into_owned()
}

impl Drop for Running {
    fn drop(&mut self) {
        // A failed test leaves no process behind; one that ended already cannot be killed, which is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
