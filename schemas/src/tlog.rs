//! The transparency log of certificates, in the formats of C2SP (`tlog-checkpoint`, `tlog-proof`, `tlog-tiles`): what Go's
//! `golang.org/x/mod/sumdb/tlog` computes.
//!
//! Invariants: a proof that [`check_proof`] accepts leads from one leaf to one signed head; two heads that [`check_consistency`] accepts
//! are of one log that only grew; tiles that [`LogFiles::check`] accepts are, byte for byte, those of the signed head. Nothing here reads
//! a clock, a file or a random source.

use std::collections::BTreeMap;

use tlog_tiles::checkpoint::Checkpoint;
use tlog_tiles::tlog;

pub use tlog_tiles::tlog::{Error as TreeError, Hash, HashReader, RecordProof};

use crate::note::{self, NoteError, NoteSigner};

/// Hashes in a proof at the most: a tree of 2^63 leaves is that deep (chosen; refuses senseless files).
const PROOF_HASHES_MAX: usize = 64;
/// First line of a proof file (C2SP tlog-proof).
const PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1";
/// First line of a consistency file; ours, as C2SP has no such file.
const CONSISTENCY_HEADER: &str = "sunder-consistency/1";
/// Leaves of a log that is read as files, at the most: a certificate a minute for 30 years (chosen; bounds memory to 512 MiB).
pub const LEAVES_MAX: u64 = 1 << 24;
/// Hashes in a full tile (C2SP tlog-tiles).
const TILE_WIDTH: usize = 256;
/// Bytes of a hash.
const HASH_BYTES: usize = 32;

/// Why a proof, a head or a log is not accepted, without quoting the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The note around a head.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// Not a log proof, a consistency file or a head, or not in its only valid spelling.
    #[error("not a well-formed log proof or head")]
    BadProof,
    /// The proof does not lead from the leaf to the signed head.
    #[error("the log proof does not lead from this statement to the signed head")]
    NotIncluded,
    /// Two signed heads are not of one log that only grew: something was rewritten or dropped.
    #[error("the log was rewritten: an older signed head is not the beginning of a newer one")]
    Inconsistent,
    /// A tile is missing, too many, or differs from what the signed head demands.
    #[error("the tiles are not those of the signed head")]
    BadTiles,
    /// More leaves than are read.
    #[error("the log has more leaves than can be read as files")]
    TooLarge,
}

impl LogError {
    /// Every code of its own, for the page that explains them.
    pub const ALL: [Self; 5] = [Self::BadProof, Self::NotIncluded, Self::Inconsistent, Self::BadTiles, Self::TooLarge];

    /// The stable code (`docs/errors.md`).
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Note(error) => error.code(),
            Self::BadProof => "bad_proof",
            Self::NotIncluded => "not_included",
            Self::Inconsistent => "inconsistent_log",
            Self::BadTiles => "bad_tiles",
            Self::TooLarge => "log_too_large",
        }
    }
}

/// The head of a log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    /// Number of leaves.
    pub size: u64,
    /// Root hash.
    pub root: Hash,
}

/// Signs `head` as a checkpoint whose origin is the signer's name.
///
/// # Errors
/// [`NoteError`].
pub fn sign_head(signer: &NoteSigner, head: &Head) -> Result<Vec<u8>, NoteError> {
    let checkpoint = Checkpoint::new(signer.name(), head.size, head.root, "").map_err(|_| NoteError::BadName)?;
    signer.sign(&checkpoint.to_bytes())
}

/// Reads and checks a signed head.
///
/// # Errors
/// [`LogError`].
pub fn open_head(note: &[u8], verifier_key: &str) -> Result<Head, LogError> {
    let opened = note::open(note, verifier_key)?;
    let head = Checkpoint::from_bytes(&opened.text).map_err(|_| LogError::BadProof)?;
    if head.origin() != opened.signer {
        return Err(LogError::BadProof);
    }
    Ok(Head { size: head.size(), root: *head.hash() })
}

/// The hash of one leaf of the log: SHA-256 over a zero byte and the signed text (RFC 6962).
#[must_use]
pub fn leaf_hash(text: &[u8]) -> Hash {
    tlog::record_hash(text)
}

/// The proof file of leaf `index` (C2SP tlog-proof): the audit path, then the signed head.
#[must_use]
pub fn proof_file(index: u64, path: &[Hash], head: &[u8]) -> Vec<u8> {
    let mut file = format!("{PROOF_HEADER}\nindex {index}\n");
    push_hashes(&mut file, path);
    file.push('\n');
    let mut file = file.into_bytes();
    file.extend_from_slice(head);
    file
}

fn push_hashes(file: &mut String, path: &[Hash]) {
    for hash in path {
        file.push_str(&hash.to_string());
        file.push('\n');
    }
}

/// A header, one line of its own, then hashes.
fn read_hashes<'a>(text: &'a str, header: &str) -> Result<(&'a str, Vec<Hash>), LogError> {
    let mut lines = text.split('\n');
    if lines.next() != Some(header) {
        return Err(LogError::BadProof);
    }
    let line = lines.next().ok_or(LogError::BadProof)?;
    let path: Vec<Hash> =
        lines.take(PROOF_HASHES_MAX + 1).map(Hash::parse_hash).collect::<Result<_, _>>().map_err(|_| LogError::BadProof)?;
    if path.len() > PROOF_HASHES_MAX {
        return Err(LogError::BadProof);
    }
    Ok((line, path))
}

/// Checks that `text` is the leaf that `proof` (a file of [`proof_file`]) leads to a signed head from; returns its index and the head.
///
/// # Errors
/// [`LogError::BadProof`], [`LogError::NotIncluded`], or what is wrong with the head's signature.
pub fn check_proof(proof: &[u8], text: &[u8], verifier_key: &str) -> Result<(u64, Head), LogError> {
    let file = std::str::from_utf8(proof).map_err(|_| LogError::BadProof)?;
    let (front, head) = file.split_once("\n\n").ok_or(LogError::BadProof)?;
    let (line, path) = read_hashes(front, PROOF_HEADER)?;
    let index: u64 = line.strip_prefix("index ").and_then(|digits| digits.parse().ok()).ok_or(LogError::BadProof)?;
    // One spelling only, so that no byte of the file can differ.
    if proof_file(index, &path, head.as_bytes()) != proof {
        return Err(LogError::BadProof);
    }
    let head = open_head(head.as_bytes(), verifier_key)?;
    tlog::check_record(&path, head.size, head.root, index, leaf_hash(text)).map_err(|_| LogError::NotIncluded)?;
    Ok((index, head))
}

/// The consistency file from the head of `old_size` leaves to a newer head: which it begins from, then the hashes.
#[must_use]
pub fn consistency_file(old_size: u64, path: &[Hash]) -> Vec<u8> {
    let mut file = format!("{CONSISTENCY_HEADER}\nfrom {old_size}\n");
    push_hashes(&mut file, path);
    file.into_bytes()
}

/// Checks that `old` is the beginning of `new`, by a file of [`consistency_file`].
///
/// # Errors
/// [`LogError::BadProof`] or [`LogError::Inconsistent`].
pub fn check_consistency(file: &[u8], old: &Head, new: &Head) -> Result<(), LogError> {
    let text = std::str::from_utf8(file).ok().and_then(|text| text.strip_suffix('\n')).ok_or(LogError::BadProof)?;
    let (line, path) = read_hashes(text, CONSISTENCY_HEADER)?;
    let from: u64 = line.strip_prefix("from ").and_then(|digits| digits.parse().ok()).ok_or(LogError::BadProof)?;
    if consistency_file(from, &path) != file || from != old.size {
        return Err(LogError::BadProof);
    }
    tlog::check_tree(&path, new.size, new.root, old.size, old.root).map_err(|_| LogError::Inconsistent)
}

/// A log that grows leaf by leaf, with the memory of one path: what a reader of all leaves computes.
#[derive(Debug, Clone, Default)]
pub struct Growing {
    size: u64,
    /// Roots of the full subtrees, the largest first: one for each bit of `size`.
    roots: Vec<Hash>,
}

impl Growing {
    /// Appends a leaf and returns the hashes that storing it adds: its own, then that of each subtree it completes.
    pub fn push(&mut self, leaf: Hash) -> Vec<Hash> {
        let mut stored = vec![leaf];
        let mut hash = leaf;
        for _ in 0..self.size.trailing_ones() {
            // One root stands for each set bit.
            let Some(left) = self.roots.pop() else { break };
            hash = tlog::node_hash(left, hash);
            stored.push(hash);
        }
        self.roots.push(hash);
        self.size += 1;
        stored
    }

    /// The head of what was appended so far.
    #[must_use]
    pub fn head(&self) -> Head {
        let root = self.roots.iter().rev().copied().reduce(|right, left| tlog::node_hash(left, right));
        Head { size: self.size, root: root.unwrap_or(tlog::EMPTY_HASH) }
    }
}

/// A whole log as files: the signed head and its tiles (C2SP tlog-tiles, without the entries: they name sellers).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogFiles {
    /// `checkpoint`: the signed head.
    pub checkpoint: Vec<u8>,
    /// By path, e.g. `tile/0/000` or `tile/0/000.p/5`.
    pub tiles: BTreeMap<String, Vec<u8>>,
}

/// A log whose tiles were checked.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedLog {
    /// Its head.
    pub head: Head,
    leaves: Vec<Hash>,
}

impl LogFiles {
    /// The files of a log with these leaves and this signed head.
    #[must_use]
    pub fn of(leaves: &[Hash], checkpoint: Vec<u8>) -> Self {
        let mut tiles = BTreeMap::new();
        let mut level = 0u8;
        let mut hashes = leaves.to_vec();
        while !hashes.is_empty() {
            for (n, tile) in hashes.chunks(TILE_WIDTH).enumerate() {
                tiles.insert(tile_path(level, n, tile.len()), tile.iter().flat_map(|hash| hash.0).collect());
            }
            hashes = hashes.chunks_exact(TILE_WIDTH).map(root_of).collect();
            level += 1;
        }
        Self { checkpoint, tiles }
    }

    /// Checks the head's signature and every byte of every tile.
    ///
    /// # Errors
    /// [`LogError`].
    pub fn check(&self, verifier_key: &str) -> Result<CheckedLog, LogError> {
        let head = open_head(&self.checkpoint, verifier_key)?;
        if head.size > LEAVES_MAX {
            return Err(LogError::TooLarge);
        }
        let size = usize::try_from(head.size).map_err(|_| LogError::TooLarge)?;
        let mut leaves = Vec::new();
        for n in 0..size.div_ceil(TILE_WIDTH) {
            let width = TILE_WIDTH.min(size - n * TILE_WIDTH);
            let tile = self.tiles.get(&tile_path(0, n, width)).ok_or(LogError::BadTiles)?;
            if tile.len() != width * HASH_BYTES {
                return Err(LogError::BadTiles);
            }
            leaves.extend(tile.chunks_exact(HASH_BYTES).filter_map(|bytes| bytes.try_into().ok().map(Hash)));
        }
        if root_of(&leaves) != head.root || Self::of(&leaves, Vec::new()).tiles != self.tiles {
            return Err(LogError::BadTiles);
        }
        Ok(CheckedLog { head, leaves })
    }
}

impl CheckedLog {
    /// Whether `older` is the beginning of this log.
    #[must_use]
    pub fn begins_with(&self, older: &Head) -> bool {
        let size = usize::try_from(older.size).ok();
        size.and_then(|size| self.leaves.get(..size)).is_some_and(|leaves| root_of(leaves) == older.root)
    }

    /// The index of the leaf with this hash.
    #[must_use]
    pub fn position(&self, leaf: &Hash) -> Option<u64> {
        self.leaves.iter().position(|hash| hash == leaf).and_then(|at| u64::try_from(at).ok())
    }
}

fn root_of(leaves: &[Hash]) -> Hash {
    let mut log = Growing::default();
    for leaf in leaves {
        log.push(*leaf);
    }
    log.head().root
}

/// `tile/<level>/<n>`, with `.p/<width>` where it is not full; `n` in groups of three digits, `x` before all but the last.
fn tile_path(level: u8, n: usize, width: usize) -> String {
    let mut path = format!("{:03}", n % 1000);
    let mut rest = n / 1000;
    while rest > 0 {
        path = format!("x{:03}/{path}", rest % 1000);
        rest /= 1000;
    }
    let partial = if width == TILE_WIDTH { String::new() } else { format!(".p/{width}") };
    format!("tile/{level}/{path}{partial}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signer() -> NoteSigner {
        NoteSigner::from_seed("example.com/sunder", &[7; 32]).unwrap()
    }

    struct Stored(Vec<Hash>);
    impl HashReader for Stored {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, TreeError> {
            Ok(indexes.iter().map(|i| self.0[usize::try_from(*i).unwrap()]).collect())
        }
    }

    fn text(n: u64) -> Vec<u8> {
        format!("leaf {n}\n").into_bytes()
    }

    fn stored(leaves: u64) -> Stored {
        let mut stored = Stored(Vec::new());
        for n in 0..leaves {
            let new = tlog::stored_hashes(n, &text(n), &stored).unwrap();
            stored.0.extend(new);
        }
        stored
    }

    fn head(leaves: u64, stored: &Stored) -> Head {
        Head { size: leaves, root: tlog::tree_hash(leaves, stored).unwrap() }
    }

    fn proof(leaves: u64, index: u64) -> Vec<u8> {
        let stored = stored(leaves);
        let path = tlog::prove_record(leaves, index, &stored).unwrap();
        proof_file(index, &path, &sign_head(&signer(), &head(leaves, &stored)).unwrap())
    }

    fn log(leaves: u64) -> LogFiles {
        let hashes: Vec<Hash> = (0..leaves).map(|n| leaf_hash(&text(n))).collect();
        LogFiles::of(&hashes, sign_head(&signer(), &head(leaves, &stored(leaves))).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_leaf_proves_and_no_other_does(leaves in 1u64..40, pick in 0u64..40) {
            let index = pick % leaves;
            let (file, key) = (proof(leaves, index), signer().verifier_key());
            prop_assert_eq!(check_proof(&file, &text(index), &key).unwrap().0, index);
            prop_assert_eq!(check_proof(&file, b"leaf x\n", &key).unwrap_err(), LogError::NotIncluded);
        }

        #[test]
        fn every_older_head_is_the_beginning_and_no_other_is(leaves in 1u64..40, pick in 0u64..40) {
            let size = 1 + pick % leaves;
            let stored = stored(leaves);
            let (old, new) = (head(size, &stored), head(leaves, &stored));
            let file = consistency_file(size, &tlog::prove_tree(leaves, size, &stored).unwrap());
            prop_assert!(check_consistency(&file, &old, &new).is_ok());
            let other = Head { root: leaf_hash(b"x"), ..old };
            prop_assert_eq!(check_consistency(&file, &other, &new).unwrap_err(), LogError::Inconsistent);
            let whole = log(leaves).check(&signer().verifier_key()).unwrap();
            prop_assert!(whole.begins_with(&old) && !whole.begins_with(&other));
        }

        #[test]
        fn the_growing_log_stores_what_the_reference_does(leaves in 0u64..70) {
            let (mut growing, mut all) = (Growing::default(), Vec::new());
            for n in 0..leaves {
                all.extend(growing.push(leaf_hash(&text(n))));
            }
            let stored = stored(leaves);
            prop_assert_eq!(&all, &stored.0);
            prop_assert_eq!(growing.head(), if leaves == 0 { Head { size: 0, root: tlog::EMPTY_HASH } } else { head(leaves, &stored) });
        }
    }

    #[test]
    fn tiles_lie_where_the_reference_puts_them() {
        for leaves in [1, 255, 256, 257, 513, 66_000] {
            let mut paths: Vec<String> =
                tlog_tiles::tile::Tile::new_tiles(8, 0, leaves).iter().map(|tile| tile.path().replacen("tile/8/", "tile/", 1)).collect();
            paths.sort();
            let hashes: Vec<Hash> = (0..leaves).map(|n| leaf_hash(&text(n))).collect();
            assert_eq!(LogFiles::of(&hashes, Vec::new()).tiles.into_keys().collect::<Vec<_>>(), paths, "{leaves}");
        }
        assert_eq!(tile_path(1, 1_234_067, 7), "tile/1/x001/x234/067.p/7");
    }

    #[test]
    fn every_flipped_bit_of_proof_consistency_and_tiles_is_found() {
        let key = signer().verifier_key();
        let flip = |file: &[u8], holds: &dyn Fn(&[u8]) -> bool| {
            assert!(holds(file));
            for at in 0..file.len() {
                for bit in 0..8 {
                    let mut bad = file.to_vec();
                    bad[at] ^= 1 << bit;
                    assert!(!holds(&bad), "byte {at} bit {bit}");
                }
                assert!(!holds(&file[..at]), "cut at {at}");
            }
            assert!(!holds(&[file, b"\n"].concat()) && !holds(&[file, b" "].concat()));
        };
        flip(&proof(5, 3), &|file| check_proof(file, &text(3), &key).is_ok());
        let stored = stored(7);
        let (old, new) = (head(3, &stored), head(7, &stored));
        flip(&consistency_file(3, &tlog::prove_tree(7, 3, &stored).unwrap()), &|file| check_consistency(file, &old, &new).is_ok());
        let log = log(300);
        flip(&log.checkpoint, &|file| LogFiles { checkpoint: file.to_vec(), ..log.clone() }.check(&key).is_ok());
        for path in log.tiles.keys() {
            let with = |file: Option<Vec<u8>>| {
                let mut log = log.clone();
                match file {
                    Some(file) => log.tiles.insert(path.clone(), file),
                    None => log.tiles.remove(path),
                };
                log.check(&key).is_ok()
            };
            assert!(!with(None), "{path} is missing");
            let tile = &log.tiles[path];
            // Each bit is hashed alike: every byte, one bit each.
            for at in 0..tile.len() {
                let mut bad = tile.clone();
                bad[at] ^= 1 << (at % 8);
                assert!(!with(Some(bad)), "{path} byte {at}");
            }
            assert!(!with(Some(tile[..tile.len() - 1].to_vec())) && !with(Some([tile.as_slice(), b"x"].concat())));
        }
        let mut more = log.clone();
        more.tiles.insert("tile/0/002".to_owned(), vec![0; 8192]);
        assert_eq!(more.check(&key).unwrap_err(), LogError::BadTiles);
    }
}
