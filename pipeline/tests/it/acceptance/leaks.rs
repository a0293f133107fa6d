//! Searches bytes for personal values in several encodings. A search that cannot find its own planted control is void.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use base64::Engine as _;

/// Base64 of shorter inner text also occurs by chance.
const ENCODED_LEN_MIN: usize = 12;
/// How many values are also searched for in other encodings than UTF-8 and JSON.
const ENCODED_VALUES_MAX: usize = 400;

/// The compiled search.
pub(super) struct Leaks {
    automaton: AhoCorasick,
    values: usize,
}

/// A place where a value was found; the value itself is not kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Leak {
    pub(super) place: String,
    pub(super) needle: usize,
}

impl Leaks {
    /// Looks for `values` as UTF-8 and JSON text, and for a sample of them in hex, base64 at three offsets and percent-encoding.
    pub(super) fn of<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let values: BTreeSet<&str> = values.into_iter().collect();
        assert!(!values.is_empty(), "a leak search needs values");
        let mut needles: BTreeSet<Vec<u8>> = BTreeSet::new();
        let step = values.len().div_ceil(ENCODED_VALUES_MAX).max(1);
        for (index, value) in values.iter().enumerate() {
            needles.insert(value.as_bytes().to_vec());
            let json = serde_json::to_string(value).expect("text");
            needles.insert(json.trim_matches('"').as_bytes().to_vec());
            if index % step == 0 {
                needles.insert(hex::encode(value).into_bytes());
                needles.insert(percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC).to_string().into_bytes());
                for offset in 0..3 {
                    // The inner characters of base64 do not depend on what stands around the value.
                    let shifted = [vec![0u8; offset], value.as_bytes().to_vec()].concat();
                    let text = base64::engine::general_purpose::STANDARD_NO_PAD.encode(shifted);
                    let inner = text.get(4..text.len().saturating_sub(3)).unwrap_or_default();
                    if inner.len() >= ENCODED_LEN_MIN {
                        needles.insert(inner.as_bytes().to_vec());
                    }
                }
            }
        }
        let automaton = AhoCorasick::builder().kind(Some(AhoCorasickKind::ContiguousNFA)).build(&needles).expect("automaton");
        let leaks = Self { automaton, values: values.len() };
        // The control: the search must find a value in the middle of other bytes, or a clean result means nothing.
        let control = format!("\u{0}{}\u{0}", values.first().expect("a value"));
        assert!(leaks.find_in(control.as_bytes()).is_some(), "the leak search finds nothing at all");
        leaks
    }

    /// How many values it looks for.
    pub(super) const fn values(&self) -> usize {
        self.values
    }

    /// The first needle in `bytes`.
    pub(super) fn find_in(&self, bytes: &[u8]) -> Option<usize> {
        self.automaton.find(bytes).map(|m| m.pattern().as_usize())
    }

    /// Every file below `folder` in which a needle lies, with the number of bytes that were read.
    pub(super) fn find_below(&self, folder: &Path) -> (Vec<Leak>, u64) {
        let mut found = Vec::new();
        let mut read = 0;
        for file in files_below(folder) {
            // A file that vanishes while it is being read is one the store just removed.
            let Ok(bytes) = std::fs::read(&file) else { continue };
            read += bytes.len() as u64;
            if let Some(needle) = self.find_in(&bytes) {
                found.push(Leak { place: file.display().to_string(), needle });
            }
        }
        (found, read)
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files
}
