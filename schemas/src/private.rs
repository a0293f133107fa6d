//! Personal data in clear ([`Plain`]) and as ciphertext ([`SealedBlock`]).
//!
//! Invariants: a `Plain` never prints, serialises or clones and is wiped on drop; a sealed block says which key it needs in its
//! first 20 bytes, so that stores can be searched for the blocks of a destroyed key without opening anything.

use std::fmt;

use zeroize::Zeroize;

use crate::ids::KeyId;

/// Personal data in clear. Lives only between a fetched answer and `seal`, and inside an authorised `open`.
pub struct Plain<T: Zeroize>(T);

impl<T: Zeroize> Plain<T> {
    /// Takes `value` into care.
    #[must_use]
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. Only sealing and an authorised, audited read may call this.
    #[must_use]
    pub const fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> fmt::Debug for Plain<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plain(..)")
    }
}

impl<T: Zeroize> Drop for Plain<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// First byte of every sealed block; not a byte that UTF-8 text, JSON or a registry frame begins with.
pub const BLOCK_MAGIC: u8 = 0xE5;
/// The version of the block's layout.
pub const BLOCK_VERSION: u8 = 1;
/// AES-256-GCM with a 96-bit random nonce.
pub const BLOCK_ALG_AES_256_GCM: u8 = 1;
/// Length of magic, version, algorithm, flags and key id.
pub const BLOCK_HEADER_LEN: usize = 20;
/// Length of header, nonce and tag: what sealing adds to a plaintext.
pub const BLOCK_OVERHEAD: usize = BLOCK_HEADER_LEN + 12 + 16;

/// A sealed group of fields: `magic ver alg flags | key id 16 | nonce 12 | ciphertext | tag 16`.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedBlock(Vec<u8>);

/// Bytes that are not a sealed block of this layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a sealed block: {0}")]
pub struct BlockError(pub &'static str);

impl SealedBlock {
    /// Takes bytes that carry the header of a sealed block.
    ///
    /// # Errors
    /// [`BlockError`] where they are too short or of another layout.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, BlockError> {
        Self::key_of(&bytes)?;
        Ok(Self(bytes))
    }

    /// The key id in the header of `bytes`, without copying.
    ///
    /// # Errors
    /// [`BlockError`] where `bytes` is too short or of another layout.
    pub fn key_of(bytes: &[u8]) -> Result<KeyId, BlockError> {
        match bytes {
            [BLOCK_MAGIC, BLOCK_VERSION, BLOCK_ALG_AES_256_GCM, 0, rest @ ..] if rest.len() >= 16 + 12 + 16 => {
                rest.first_chunk::<16>().map(|id| KeyId(*id)).ok_or(BlockError("too short"))
            }
            [BLOCK_MAGIC, ..] => Err(BlockError("unknown version, algorithm or flags, or too short")),
            _ => Err(BlockError("no magic byte")),
        }
    }

    /// The header that names `key`; also the needle a scan looks for.
    #[must_use]
    pub fn header(key: KeyId) -> [u8; BLOCK_HEADER_LEN] {
        let mut header = [0u8; BLOCK_HEADER_LEN];
        let (front, id) = header.split_at_mut(4);
        front.copy_from_slice(&[BLOCK_MAGIC, BLOCK_VERSION, BLOCK_ALG_AES_256_GCM, 0]);
        id.copy_from_slice(&key.0);
        header
    }

    /// The whole block.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The whole block, given away.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// The key it needs.
    #[must_use]
    pub fn key(&self) -> KeyId {
        let mut id = [0u8; 16];
        for (to, from) in id.iter_mut().zip(self.0.iter().skip(4)) {
            *to = *from;
        }
        KeyId(id)
    }
}

impl fmt::Debug for SealedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedBlock(key {}, {} bytes)", self.key(), self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_hides_its_value() {
        assert_eq!(format!("{:?}", Plain::new("Jane".to_owned())), "Plain(..)");
    }

    #[test]
    fn a_block_tells_its_key() {
        let key = KeyId([7; 16]);
        let mut bytes = SealedBlock::header(key).to_vec();
        bytes.extend([0; 28]);
        assert_eq!(SealedBlock::from_bytes(bytes.clone()).unwrap().key(), key);
        bytes.pop();
        assert!(SealedBlock::from_bytes(bytes).is_err());
        assert!(SealedBlock::key_of(b"{\"a\":1}").is_err());
    }
}
