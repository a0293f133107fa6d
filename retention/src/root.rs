//! The root key: wraps the keys of sellers, refresh tokens and quarantine keys. It never leaves its service.
//!
//! Invariants: what is wrapped in one context does not unwrap in another; a key file is never readable by group or world.
//! [`FileRoot`] is for one machine; key services implement [`RootKey`] beside it.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::secretfile;

/// Length of every symmetric key here, in bytes (AES-256, HMAC-SHA256).
pub const KEY_LEN: usize = 32;
/// First byte of what a root wraps: the layout `version 1 | nonce 12 | ciphertext | tag 16`.
const WRAP_VERSION: u8 = 1;

/// Why the root key cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// The file is not there or cannot be read; `code` is the kind of the system's error.
    #[error("root key file cannot be read: {code}")]
    Unreadable {
        /// E.g. `not found`.
        code: String,
    },
    /// Group or world may read or write the file.
    #[error("root key file is open to others (mode {mode:04o}): set it to 0600")]
    Exposed {
        /// Its permission bits.
        mode: u32,
    },
    /// The file belongs to another user.
    #[error("root key file belongs to another user than the one this program runs as")]
    ForeignOwner,
    /// The file does not hold exactly 32 bytes.
    #[error("root key file must hold exactly 32 bytes")]
    Length,
    /// A file is there already where a new key was to be written.
    #[error("root key file exists already and is never overwritten")]
    Exists,
    /// The bytes were not wrapped by this key in this context.
    #[error("wrapped key does not open under this root key")]
    NotOurs,
    /// The key service does not answer or refuses.
    #[error("key service refused: {code}")]
    Service {
        /// A short code.
        code: String,
        /// Whether trying again may help.
        retry: bool,
    },
}

/// A root key, wherever it lives.
#[async_trait]
pub trait RootKey: Send + Sync {
    /// Wraps `key` so that it only opens with the same `context`.
    ///
    /// # Errors
    /// [`RootError`].
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, RootError>;

    /// Opens what [`RootKey::wrap`] made with the same `context`.
    ///
    /// # Errors
    /// [`RootError`]; [`RootError::NotOurs`] where bytes, key or context differ.
    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError>;

    /// What kind of root it is and where, for `check` and certificates; never a secret.
    fn describe(&self) -> String;
}

/// A root key in a file of 32 random bytes, mode 0600.
pub struct FileRoot {
    key: LessSafeKey,
    random: SystemRandom,
    path: PathBuf,
}

impl FileRoot {
    /// Makes a new key file; never overwrites one.
    ///
    /// # Errors
    /// [`RootError::Exists`] or [`RootError::Unreadable`].
    pub fn create(path: &Path) -> Result<Self, RootError> {
        let random = SystemRandom::new();
        let mut key = Zeroizing::new([0u8; KEY_LEN]);
        random.fill(key.as_mut()).map_err(|_| RootError::Unreadable { code: "no randomness".to_owned() })?;
        secretfile::create(path, key.as_ref()).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => RootError::Exists,
            _ => unreadable(e),
        })?;
        Self::from_key(&key, path)
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`RootError`] where the file is missing, open to others, another user's, or not 32 bytes long.
    pub fn open(path: &Path) -> Result<Self, RootError> {
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
        let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_LEN + 1));
        Read::by_ref(&mut file).take(KEY_LEN as u64 + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        let key = Zeroizing::new(<[u8; KEY_LEN]>::try_from(bytes.as_slice()).map_err(|_| RootError::Length)?);
        Self::from_key(&key, path)
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

    fn from_key(key: &[u8; KEY_LEN], path: &Path) -> Result<Self, RootError> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| RootError::Length)?;
        Ok(Self { key: LessSafeKey::new(key), random: SystemRandom::new(), path: path.to_owned() })
    }
}

/// The user this process runs as: the owner of its entry in `/proc` (the standard library has no `geteuid`).
fn own_uid() -> Option<u32> {
    std::fs::metadata("/proc/self").map(|m| m.uid()).ok()
}

#[expect(clippy::needless_pass_by_value, reason = "used as map_err(unreadable)")]
fn unreadable(error: std::io::Error) -> RootError {
    RootError::Unreadable { code: error.kind().to_string() }
}

#[async_trait]
impl RootKey for FileRoot {
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, RootError> {
        wrap(&self.key, &self.random, context, key).ok_or_else(|| RootError::Service { code: "seal".to_owned(), retry: false })
    }

    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        unwrap(&self.key, context, wrapped).ok_or(RootError::NotOurs)
    }

    fn describe(&self) -> String {
        format!("file:{}", self.path.display())
    }
}

/// Wraps `key` under `wrapping` with `context` as associated data: `version | nonce | ciphertext | tag`.
pub(crate) fn wrap(wrapping: &LessSafeKey, random: &dyn SecureRandom, context: &[u8], key: &[u8]) -> Option<Vec<u8>> {
    let mut nonce = [0u8; NONCE_LEN];
    random.fill(&mut nonce).ok()?;
    let mut out = Vec::with_capacity(1 + NONCE_LEN + key.len() + AES_256_GCM.tag_len());
    out.push(WRAP_VERSION);
    out.extend_from_slice(&nonce);
    let mut secret = Zeroizing::new(key.to_vec());
    let nonce = Nonce::assume_unique_for_key(nonce);
    let tag = wrapping.seal_in_place_separate_tag(nonce, Aad::from(context), &mut secret).ok()?;
    out.extend_from_slice(&secret);
    out.extend_from_slice(tag.as_ref());
    Some(out)
}

/// Opens what [`wrap`] made.
pub(crate) fn unwrap(wrapping: &LessSafeKey, context: &[u8], wrapped: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (version, rest) = wrapped.split_first()?;
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
    if *version != WRAP_VERSION {
        return None;
    }
    let mut buffer = Zeroizing::new(sealed.to_vec());
    let length = wrapping.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context), &mut buffer).ok()?.len();
    // The tag behind the key is no secret; cutting it off reallocates nothing.
    buffer.truncate(length);
    Some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrapped_in_one_context_opens_in_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("root.key");
        let root = FileRoot::create(&path).unwrap();
        let wrapped = root.wrap(b"seller A", &[7; 32]).await.unwrap();
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
        for length in [0, 31, 33] {
            std::fs::write(&path, vec![1; length]).unwrap();
            assert_eq!(FileRoot::open(&path).err(), Some(RootError::Length), "{length}");
        }
        assert!(matches!(FileRoot::open(&folder.path().join("none")).err(), Some(RootError::Unreadable { .. })));
    }
}
