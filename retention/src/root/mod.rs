//! The root key: wraps the keys of sellers, refresh tokens and quarantine keys. It never leaves its service.
//!
//! Invariants: what is wrapped in one context does not unwrap in another; every wrapped key says under which version of the root it lies,
//! so that a rotation knows what is left; an error names the service's address and a code, never a secret or the service's own text.
//! [`FileRoot`] is for one machine; [`TransitRoot`] is OpenBao or Vault, [`KmsRoot`] is AWS KMS.

mod awskms;
mod file;
mod service;
mod signature;
mod transit;

use async_trait::async_trait;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::rand::SecureRandom;
use zeroize::Zeroizing;

pub use awskms::{KmsAccess, KmsRoot};
pub use file::FileRoot;
pub use service::{ServiceOptions, TokenSource};
pub use transit::TransitRoot;

/// Length of every symmetric key here, in bytes (AES-256, HMAC-SHA256).
pub const KEY_LEN: usize = 32;
/// First byte of what a key of ours wraps: the layout `version 1 | nonce 12 | ciphertext | tag 16`.
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
    /// The file does not hold a key.
    #[error("root key file must hold exactly 32 bytes, or what `sunder keys rotate` wrote")]
    Length,
    /// A file is there already where a new key was to be written.
    #[error("root key file exists already and is never overwritten")]
    Exists,
    /// The bytes were not wrapped by this key in this context.
    #[error("wrapped key does not open under this root key")]
    NotOurs,
    /// The words of `keys.root` lead to no key.
    #[error("{0}")]
    Address(&'static str),
    /// The key service does not answer or refuses.
    #[error("key service at {address} does not do its part: {code}")]
    Service {
        /// Where it is.
        address: String,
        /// A short code: `timeout`, `connect`, `http_403`, ...
        code: String,
        /// Whether trying again may help.
        retry: bool,
    },
}

/// What became of the old versions of a root key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retired {
    /// They unwrap nothing any more.
    Destroyed,
    /// The service keeps them for as long as the key lives; nothing of ours lies under them.
    KeptByService,
}

/// A root key, wherever it lives.
#[async_trait]
pub trait RootKey: Send + Sync {
    /// Wraps `key` under the newest version so that it only opens with the same `context`.
    ///
    /// # Errors
    /// [`RootError`].
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, RootError>;

    /// Opens what [`RootKey::wrap`] made with the same `context`.
    ///
    /// # Errors
    /// [`RootError`]; [`RootError::NotOurs`] where bytes, key or context differ, or its version is retired.
    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError>;

    /// What kind of root it is and where, for `check` and certificates; never a secret.
    fn describe(&self) -> String;

    /// The newest version, from 1.
    ///
    /// # Errors
    /// [`RootError`].
    async fn version(&self) -> Result<u64, RootError>;

    /// Under which version `wrapped` lies; `None` where it is none of ours.
    fn version_of(&self, wrapped: &[u8]) -> Option<u64>;

    /// Makes a new version, unless there is one above `from` already; returns the newest. Idempotent for one `from`.
    ///
    /// # Errors
    /// [`RootError`].
    async fn rotate(&self, from: u64) -> Result<u64, RootError>;

    /// Takes from the versions below `version` the power to unwrap, as far as the service can. Idempotent.
    ///
    /// # Errors
    /// [`RootError`]: older versions may still unwrap.
    async fn retire(&self, version: u64) -> Result<Retired, RootError>;

    /// Whether it answers and allows what is needed: wraps and unwraps a constant.
    ///
    /// # Errors
    /// [`RootError`].
    async fn probe(&self) -> Result<(), RootError> {
        const CONTEXT: &[u8] = b"sunder probe 1";
        let wrapped = self.wrap(CONTEXT, &[0; KEY_LEN]).await?;
        self.unwrap(CONTEXT, &wrapped).await.map(|_| ())
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
