//! Brokers of a test's own, that may be stopped, killed, damaged, secured and searched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sunder_schemas::ids::KeyId;
use sunder_schemas::private::SealedBlock;

use super::world::Services;

/// Longer than any `file.delete.delay.ms` of a test, on a busy machine too.
const UNLINKED_WITHIN: Duration = Duration::from_secs(30);

/// A cluster under a folder of its own; stopped and removed on drop.
pub(super) struct Cluster {
    home: tempfile::TempDir,
    brokers: u8,
    address: String,
}

/// One at a time: a cluster is three brokers on machines that may have two cores.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The turn to start a cluster; held while it runs.
pub(super) async fn turn() -> tokio::sync::MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}

impl Cluster {
    /// Starts three brokers with the program files of `services`.
    pub(super) fn start(services: &Services) -> Self {
        Self::of(services, 3)
    }

    /// Starts so many, one or three.
    pub(super) fn of(services: &Services, brokers: u8) -> Self {
        Self::start_as(services, brokers, &[])
    }

    /// Starts one broker that wants TLS and a password, and asks what a user may do.
    pub(super) fn start_secured(services: &Services) -> Self {
        Self::start_as(services, 1, &["--secured"])
    }

    fn start_as(services: &Services, brokers: u8, how: &[&str]) -> Self {
        let home = tempfile::tempdir().expect("temporary folder");
        let library = services.kafka_logs.first().and_then(|data| data.ancestors().nth(2)).expect("SUNDER_TEST_KAFKA_LOGS").join("lib");
        std::fs::create_dir(home.path().join("kafka")).expect("folder");
        std::os::unix::fs::symlink(library, home.path().join("kafka/lib")).expect("link");
        let mut this = Self { home, brokers, address: String::new() };
        this.script(&[&["start", "--only", "kafka", "--brokers", &brokers.to_string()], how].concat());
        this.address = std::fs::read_to_string(this.home.path().join("kafka/address")).expect("address").trim().to_owned();
        this
    }

    fn script(&self, args: &[&str]) {
        services(self.home.path(), args);
    }

    /// These brokers, as a world is told of them.
    pub(super) fn services(&self) -> Services {
        Services { kafka: self.address.clone(), kafka_logs: (1..=self.brokers).map(|node| self.data(node)).collect(), postgres: None }
    }

    /// The file of the authority that signed a secured broker's certificate, and the one of its users' password.
    pub(super) fn secrets(&self) -> (PathBuf, PathBuf) {
        (self.home.path().join("kafka/tls/ca.pem"), self.home.path().join("kafka/password"))
    }

    pub(super) fn data(&self, node: u8) -> PathBuf {
        self.home.path().join(format!("kafka/{node}/data"))
    }

    /// Ends it cleanly.
    pub(super) fn stop(&self, node: u8) {
        self.script(&["broker", "stop", &node.to_string()]);
    }

    pub(super) fn kill(&self, node: u8) {
        self.script(&["broker", "kill", &node.to_string()]);
    }

    pub(super) fn start_again(&self, node: u8) {
        self.script(&["broker", "start", &node.to_string()]);
    }

    /// Where a block of one of `keys` lies in the segment files of topics whose name contains `part`, on any broker: as plain bytes or
    /// inside a compressed batch. Two equal walks, since files are renamed while they are searched (kafka-confirmed section 4), without
    /// a file that the cleaner has replaced and `file.delete.delay.ms` still keeps: those are waited for.
    pub(super) fn blocks_of(&self, prefix: &str, part: &str, keys: &[KeyId]) -> Vec<String> {
        let headers: Vec<Vec<u8>> = keys.iter().map(|key| SealedBlock::header(*key).to_vec()).collect();
        let finder = aho_corasick::AhoCorasick::new(headers).expect("automaton");
        let walk = || {
            let mut found = Vec::new();
            for node in 1..=self.brokers {
                for folder in std::fs::read_dir(self.data(node)).into_iter().flatten().flatten() {
                    let name = folder.file_name().to_string_lossy().into_owned();
                    if name.starts_with(prefix) && name.contains(part) {
                        found.extend(files_with(&folder.path(), &finder));
                    }
                }
            }
            found.sort();
            found
        };
        let started = Instant::now();
        let mut last = walk();
        loop {
            let next = walk();
            let goes = next.iter().any(|file| file.ends_with(".deleted")) && started.elapsed() < UNLINKED_WITHIN;
            if next == last && !goes {
                return next;
            }
            last = next;
        }
    }
}

/// Runs `scripts/services` for servers of a test's own under `home`.
pub(super) fn services(home: &Path, args: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/services");
    let status = Command::new(script).args(args).env("SUNDER_SERVICES", home).status().expect("scripts/services runs");
    assert!(status.success(), "scripts/services {}", args.join(" "));
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.script(&["stop"]);
    }
}

/// Segment files in `folder`, in whatever state of renaming, in which `finder` finds something.
fn files_with(folder: &Path, finder: &aho_corasick::AhoCorasick) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = path.to_string_lossy().into_owned();
        // Index files hold offsets alone, in ten sparse megabytes each.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        if name.contains(".log") && (finder.is_match(&bytes) || batches(&bytes).iter().any(|records| finder.is_match(records))) {
            found.push(name);
        }
    }
    found
}

/// The batches of a segment's bytes, each with its keys, values and header values one after the other.
fn batches(bytes: &[u8]) -> Vec<Vec<u8>> {
    use kafka_protocol::records::RecordBatchDecoder;
    let mut batches = Vec::new();
    let mut rest = bytes;
    while let Some(length) = rest.get(8..12).map(|length| u32::from_be_bytes(length.try_into().expect("four bytes"))) {
        let whole = 12 + usize::try_from(length).expect("length");
        // Segments are allocated ahead: what follows the last batch is nothing.
        let Some(batch) = rest.get(..whole).filter(|batch| batch.get(16) == Some(&2)) else { break };
        if let Ok(records) = RecordBatchDecoder::decode(&mut bytes::Bytes::copy_from_slice(batch)) {
            let parts = records.records.into_iter().flat_map(|record| record.key.into_iter().chain(record.value));
            batches.push(parts.flatten().collect());
        }
        rest = rest.get(whole..).unwrap_or_default();
    }
    batches
}
