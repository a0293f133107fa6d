//! A root key in a file: for one machine.
//!
//! The file holds 32 random bytes (version 1), or `SUNDER-ROOT-1\n` and then each version as four bytes of number and 32 of key. A
//! process reads it again for every wrap and for a version it does not know, so that a rotation by another one reaches it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::{KEY_LEN, Retired, RootError, RootKey, WRAP_VERSION, unwrap, wrap};
use crate::secretfile;

/// What a file with several versions begins with.
const MAGIC: &[u8] = b"SUNDER-ROOT-1\n";
/// Bytes of one version in such a file.
const RECORD_LEN: usize = 4 + KEY_LEN;
/// Versions in one file at the most: a rotation leaves one (chosen).
const VERSIONS_MAX: usize = 16;
/// How often a file is read that another process replaces meanwhile. Chosen: a rotation replaces it twice.
const READS_MAX: u32 = 10;
/// First byte of what a version above 1 wraps; its number follows in four bytes, then the layout of version 1.
const WRAP_NUMBERED: u8 = 2;

type Secret = Zeroizing<[u8; KEY_LEN]>;

/// A root key in a file, mode 0600.
pub struct FileRoot {
    path: PathBuf,
    random: SystemRandom,
    keys: RwLock<BTreeMap<u32, LessSafeKey>>,
}

impl FileRoot {
    /// Makes a new key file; never overwrites one.
    ///
    /// # Errors
    /// [`RootError::Exists`] or [`RootError::Unreadable`].
    pub fn create(path: &Path) -> Result<Self, RootError> {
        let key = random_key()?;
        secretfile::create(path, key.as_ref()).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => RootError::Exists,
            _ => unreadable(e),
        })?;
        Self::from_keys(path, &BTreeMap::from([(1, key)]))
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`RootError`] where the file is missing, open to others, another user's, or holds no key.
    pub fn open(path: &Path) -> Result<Self, RootError> {
        Self::from_keys(path, &read(path)?)
    }

    /// Reads the key file, or makes it where there is none (test and demo; production names its key).
    ///
    /// # Errors
    /// As [`FileRoot::open`] and [`FileRoot::create`].
    pub fn open_or_create(path: &Path) -> Result<Self, RootError> {
        if !path.exists() {
            match Self::create(path) {
                // Another process was first; its key is read below.
                Err(RootError::Exists) => {}
                made => return made,
            }
        }
        Self::open(path)
    }

    fn from_keys(path: &Path, keys: &BTreeMap<u32, Secret>) -> Result<Self, RootError> {
        Ok(Self { keys: RwLock::new(expand(keys)?), random: SystemRandom::new(), path: path.to_owned() })
    }

    /// Reads the file again: another process may have rotated it.
    fn reload(&self) -> Result<(), RootError> {
        let keys = expand(&read(&self.path)?)?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    fn broken(&self, code: &str) -> RootError {
        RootError::Service { address: self.describe(), code: code.to_owned(), retry: false }
    }
}

/// The version's number and what it wrapped, in the layout of [`wrap`].
fn split(wrapped: &[u8]) -> Option<(u32, std::borrow::Cow<'_, [u8]>)> {
    match wrapped.split_first()? {
        (&WRAP_VERSION, _) => Some((1, wrapped.into())),
        (&WRAP_NUMBERED, rest) => {
            let (number, inner) = rest.split_first_chunk::<4>()?;
            Some((u32::from_be_bytes(*number), inner.into()))
        }
        _ => None,
    }
}

#[async_trait]
impl RootKey for FileRoot {
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, RootError> {
        self.reload()?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let (number, newest) = keys.last_key_value().ok_or(RootError::Length)?;
        let inner = wrap(newest, &self.random, context, key).ok_or_else(|| self.broken("seal"))?;
        if *number == 1 {
            return Ok(inner);
        }
        let mut out = vec![WRAP_NUMBERED];
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&inner);
        Ok(out)
    }

    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        let (number, inner) = split(wrapped).ok_or(RootError::NotOurs)?;
        // A version that another process has retired opens nothing here either.
        self.reload()?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&number).and_then(|key| unwrap(key, context, &inner)).ok_or(RootError::NotOurs)
    }

    fn describe(&self) -> String {
        format!("file:{}", self.path.display())
    }

    async fn version(&self) -> Result<u64, RootError> {
        self.reload()?;
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.last_key_value().map(|(number, _)| u64::from(*number)).ok_or(RootError::Length)
    }

    fn version_of(&self, wrapped: &[u8]) -> Option<u64> {
        split(wrapped).map(|(number, _)| u64::from(number))
    }

    async fn rotate(&self, from: u64) -> Result<u64, RootError> {
        let mut file = secretfile::locked(&self.path).map_err(unreadable)?;
        let mut keys = read(&self.path)?;
        let newest = keys.last_key_value().map_or(0, |(number, _)| *number);
        if u64::from(newest) > from {
            return Ok(u64::from(newest));
        }
        keys.insert(newest + 1, random_key()?);
        replace(&self.path, &mut file, &keys)?;
        self.reload()?;
        Ok(u64::from(newest) + 1)
    }

    async fn retire(&self, version: u64) -> Result<Retired, RootError> {
        let mut file = secretfile::locked(&self.path).map_err(unreadable)?;
        let mut keys = read(&self.path)?;
        let before = keys.len();
        let newest = keys.last_key_value().map_or(0, |(number, _)| *number);
        keys.retain(|number, _| u64::from(*number) >= version || *number == newest);
        if keys.len() < before {
            replace(&self.path, &mut file, &keys)?;
        }
        self.reload()?;
        Ok(Retired::Destroyed)
    }
}

fn random_key() -> Result<Secret, RootError> {
    let mut key = Zeroizing::new([0u8; KEY_LEN]);
    SystemRandom::new().fill(key.as_mut()).map_err(|_| RootError::Unreadable { code: "no randomness".to_owned() })?;
    Ok(key)
}

fn expand(keys: &BTreeMap<u32, Secret>) -> Result<BTreeMap<u32, LessSafeKey>, RootError> {
    let expand = |key: &Secret| UnboundKey::new(&AES_256_GCM, key.as_ref()).map(LessSafeKey::new).map_err(|_| RootError::Length);
    keys.iter().map(|(number, key)| Ok((*number, expand(key)?))).collect()
}

/// Reads all versions in the file at `path`, again where it was rotated away under the reading.
fn read(path: &Path) -> Result<BTreeMap<u32, Secret>, RootError> {
    for _ in 0..READS_MAX {
        let mut file = File::open(path).map_err(unreadable)?;
        // The checks look at the opened file, so that it cannot be exchanged between check and read.
        let meta = file.metadata().map_err(unreadable)?;
        let mode = meta.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(RootError::Exposed { mode });
        }
        if Some(meta.uid()) != own_uid() {
            return Err(RootError::ForeignOwner);
        }
        let longest = MAGIC.len() + VERSIONS_MAX * RECORD_LEN;
        let mut bytes = Zeroizing::new(Vec::with_capacity(longest + 1));
        Read::by_ref(&mut file).take(longest as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if secretfile::is_current(path, &file).map_err(unreadable)? {
            return parse(&bytes);
        }
    }
    Err(RootError::Unreadable { code: "replaced under every reading".to_owned() })
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<u32, Secret>, RootError> {
    if let Ok(key) = <[u8; KEY_LEN]>::try_from(bytes) {
        // Zeros are a file that was rotated away and wiped: no key.
        return if key == [0; KEY_LEN] { Err(RootError::Length) } else { Ok(BTreeMap::from([(1, Zeroizing::new(key))])) };
    }
    let records = bytes.strip_prefix(MAGIC).ok_or(RootError::Length)?;
    let mut keys = BTreeMap::new();
    for record in records.chunks(RECORD_LEN) {
        let (number, key) = record.split_first_chunk::<4>().ok_or(RootError::Length)?;
        let key = Zeroizing::new(<[u8; KEY_LEN]>::try_from(key).map_err(|_| RootError::Length)?);
        keys.insert(u32::from_be_bytes(*number), key);
    }
    if keys.is_empty() || records.len() > VERSIONS_MAX * RECORD_LEN { Err(RootError::Length) } else { Ok(keys) }
}

/// Writes `keys` to a new file that takes the place of `path`, whole or not at all, and overwrites the bytes of the old one.
fn replace(path: &Path, old: &mut File, keys: &BTreeMap<u32, Secret>) -> Result<(), RootError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAGIC.len() + keys.len() * RECORD_LEN));
    bytes.extend_from_slice(MAGIC);
    for (number, key) in keys {
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(key.as_ref());
    }
    secretfile::replace(path, old, &bytes).map_err(unreadable)
}

/// The user this process runs as: the owner of its entry in `/proc` (the standard library has no `geteuid`).
fn own_uid() -> Option<u32> {
    std::fs::metadata("/proc/self").map(|m| m.uid()).ok()
}

#[expect(clippy::needless_pass_by_value, reason = "used as map_err(unreadable)")]
fn unreadable(error: std::io::Error) -> RootError {
    RootError::Unreadable { code: error.kind().to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrapped_in_one_context_opens_in_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let root = FileRoot::create(&path).unwrap();
        let mut wraps = vec![root.wrap(b"seller A", &[7; 32]).await.unwrap()];
        assert_eq!(root.rotate(1).await.unwrap(), 2);
        wraps.push(root.wrap(b"seller A", &[7; 32]).await.unwrap());
        for wrapped in wraps {
            let again = FileRoot::open(&path).unwrap();
            assert_eq!(again.unwrap(b"seller A", &wrapped).await.unwrap().as_slice(), &[7; 32]);
            assert_eq!(again.unwrap(b"seller B", &wrapped).await.unwrap_err(), RootError::NotOurs);
            for index in 0..wrapped.len() {
                let mut flipped = wrapped.clone();
                flipped[index] ^= 1;
                assert!(again.unwrap(b"seller A", &flipped).await.is_err(), "byte {index}");
            }
            assert!(again.unwrap(b"seller A", &wrapped[..10]).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_rotated_key_opens_what_it_wrapped_until_its_version_is_retired() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let (here, there) = (FileRoot::create(&path).unwrap(), FileRoot::open(&path).unwrap());
        let old = here.wrap(b"c", &[1; 32]).await.unwrap();
        let kept = std::fs::read(&path).unwrap();
        assert_eq!((here.rotate(1).await.unwrap(), here.rotate(1).await.unwrap()), (2, 2), "asked twice it is done once");
        // The other process did not hear of it: it wraps under the new version all the same, and opens what lies under it.
        let new = there.wrap(b"c", &[2; 32]).await.unwrap();
        assert_eq!((there.version_of(&old), there.version_of(&new)), (Some(1), Some(2)));
        assert_eq!(here.unwrap(b"c", &new).await.unwrap().as_slice(), &[2; 32]);
        assert_eq!(there.unwrap(b"c", &old).await.unwrap().as_slice(), &[1; 32]);
        assert_eq!(here.retire(2).await.unwrap(), Retired::Destroyed);
        for process in [&here, &there] {
            assert_eq!(
                process.unwrap(b"c", &old).await.unwrap_err(),
                RootError::NotOurs,
                "in every process that had the version in memory"
            );
        }
        assert_eq!(FileRoot::open(&path).unwrap().unwrap(b"c", &new).await.unwrap().as_slice(), &[2; 32]);
        // The bytes of before open nothing of after.
        let before = folder.path().join("before.key");
        std::fs::write(&before, kept).unwrap();
        std::fs::set_permissions(&before, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(FileRoot::open(&before).unwrap().unwrap(b"c", &new).await.unwrap_err(), RootError::NotOurs);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    /// Two rotations at once must not make two versions of one number, and no reader may see half a file.
    #[test]
    fn rotations_at_once_agree_on_one_key_while_others_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        FileRoot::create(&path).unwrap();
        let start = std::sync::Barrier::new(6);
        let run = || tokio::runtime::Builder::new_current_thread().build().unwrap();
        std::thread::scope(|scope| {
            for rotates in [true, true, true, false, false, false] {
                let (path, start) = (&path, &start);
                scope.spawn(move || {
                    let root = FileRoot::open(path).unwrap();
                    for round in 1..=30 {
                        // All begin each round together, so that those who rotate meet.
                        start.wait();
                        run().block_on(async {
                            if rotates {
                                assert_eq!(root.rotate(round).await.unwrap(), round + 1);
                            }
                            let wrapped = root.wrap(b"c", &[5; 32]).await.unwrap();
                            assert_eq!(FileRoot::open(path).unwrap().unwrap(b"c", &wrapped).await.unwrap().as_slice(), &[5; 32]);
                        });
                        start.wait();
                        if rotates {
                            assert_eq!(run().block_on(root.retire(round)).unwrap(), Retired::Destroyed);
                        }
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no copy of a key is left beside");
    }

    #[test]
    fn a_key_file_that_is_open_to_others_or_cut_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        FileRoot::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(FileRoot::create(&path).err(), Some(RootError::Exists));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(FileRoot::open(&path).err(), Some(RootError::Exposed { mode: 0o640 }));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        for length in [0, 31, 33, MAGIC.len() + 4 + 31] {
            std::fs::write(&path, vec![1; length]).unwrap();
            assert_eq!(FileRoot::open(&path).err(), Some(RootError::Length), "{length}");
        }
        for cut in [MAGIC.len(), MAGIC.len() + 3, MAGIC.len() + RECORD_LEN - 1, MAGIC.len() + RECORD_LEN + 1] {
            let mut bytes = MAGIC.to_vec();
            bytes.resize(cut, 2);
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(FileRoot::open(&path).err(), Some(RootError::Length), "{cut}");
        }
        std::fs::write(&path, [0; KEY_LEN]).unwrap();
        assert_eq!(FileRoot::open(&path).err(), Some(RootError::Length), "a wiped file is no key");
        assert!(matches!(FileRoot::open(&folder.path().join("none")).err(), Some(RootError::Unreadable { .. })));
    }
}
