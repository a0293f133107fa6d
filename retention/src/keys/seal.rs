//! Sealing: AES-256-GCM under a data key, bound to seller, entity, field group and classification.
//!
//! Invariants: a block opens only under its own key and in the context it was sealed in; nonces are random and never reused (a data
//! key seals fewer than 2^10 blocks, so two of 96 random bits meet with less than 2^-77); sealing allocates the block and nothing else.
//! `ring` keeps an expanded key that it does not wipe; a dropped [`DataKey`] may therefore linger in the process's memory, and in
//! nothing else.

use std::cell::RefCell;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, KeyId, SellerId};
use sunder_schemas::private::{BLOCK_HEADER_LEN, BLOCK_OVERHEAD, Plain, SealedBlock};
use zeroize::Zeroizing;

use crate::root::KEY_LEN;

/// Nonces drawn at once: one call of the kernel costs 0.6 us, a draw from the buffer about 10 ns (kafka-design 2.3).
const NONCES: usize = 512;
/// Associated data up to this length stays on the stack. Chosen: a seller id of 64 and a classification of 128 bytes fit.
const AAD_STACK: usize = 320;
/// What is sealed as witness of a key: constant, not personal.
const WITNESS: &[u8] = b"sunder witness 1: this text is not personal data";
/// Stands in the place of the field group in a witness's associated data; no field group has this name.
const WITNESS_GROUP: &str = "~witness";

/// What a block is bound to beside its key.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Whose data.
    pub seller: &'a SellerId,
    /// The order's token.
    pub entity: EntityToken,
    /// Which fields.
    pub group: FieldGroup,
    /// The catalogue version that classified them, e.g. `orders_2026-01-01#1`.
    pub classification: &'a str,
}

/// A block that does not open: wrong key, wrong context, or changed bytes. Says nothing of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealed block {key} does not open: {code}")]
pub struct OpenError {
    /// The key in its header.
    pub key: KeyId,
    /// `other_key` or `not_authentic`.
    pub code: &'static str,
}

/// The data key of one subject, in memory.
pub struct DataKey {
    id: KeyId,
    key: LessSafeKey,
}

impl std::fmt::Debug for DataKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataKey({})", self.id)
    }
}

impl DataKey {
    /// A key of random bytes with a random id; the bytes are given back for wrapping and must not outlive it.
    ///
    /// # Errors
    /// `None` where the system gives no randomness.
    pub(crate) fn mint(random: &dyn SecureRandom) -> Option<(Self, Zeroizing<[u8; KEY_LEN]>)> {
        let mut id = [0u8; 16];
        let mut bytes = Zeroizing::new([0u8; KEY_LEN]);
        random.fill(&mut id).ok()?;
        random.fill(bytes.as_mut()).ok()?;
        Some((Self::from_bytes(KeyId(id), bytes.as_ref())?, bytes))
    }

    /// The key `id` of these bytes.
    pub(crate) fn from_bytes(id: KeyId, bytes: &[u8]) -> Option<Self> {
        Some(Self { id, key: LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?) })
    }

    /// A key that is in no database, for benches, tests and the control of a scan.
    ///
    /// # Panics
    /// Where the system gives no randomness.
    #[must_use]
    #[expect(clippy::expect_used, reason = "without randomness nothing here may go on")]
    pub fn ephemeral() -> Self {
        Self::mint(&SystemRandom::new()).expect("the system gives randomness").0
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> KeyId {
        self.id
    }

    /// Seals `plain` in `context`.
    ///
    /// # Panics
    /// Where the system gives no randomness, or `plain` is longer than AES-GCM allows (64 GiB): both are broken invariants.
    #[must_use]
    pub fn seal(&self, context: &Context<'_>, plain: &[u8]) -> SealedBlock {
        self.seal_as(context.seller, context.entity, context.group.as_str(), context.classification, plain)
    }

    /// Opens `block` in `context`.
    ///
    /// # Errors
    /// [`OpenError`] where the block is of another key, another context or was changed.
    pub fn open(&self, context: &Context<'_>, block: &[u8]) -> Result<Plain<Vec<u8>>, OpenError> {
        self.open_as(context.seller, context.entity, context.group.as_str(), context.classification, block)
    }

    /// The key's witness: a block of constant text that the recover test tries for good.
    #[must_use]
    pub(crate) fn witness(&self, seller: &SellerId, entity: EntityToken) -> SealedBlock {
        self.seal_as(seller, entity, WITNESS_GROUP, "", WITNESS)
    }

    /// Whether `block` is this key's witness.
    #[must_use]
    pub fn opens_witness(&self, seller: &SellerId, entity: EntityToken, block: &[u8]) -> bool {
        self.open_as(seller, entity, WITNESS_GROUP, "", block).is_ok_and(|plain| plain.reveal() == WITNESS)
    }

    #[expect(clippy::expect_used, reason = "no randomness and texts of 64 GiB are broken invariants")]
    fn seal_as(&self, seller: &SellerId, entity: EntityToken, group: &str, classification: &str, plain: &[u8]) -> SealedBlock {
        let header = SealedBlock::header(self.id);
        let nonce = next_nonce().expect("the system gives randomness");
        let mut block = Vec::with_capacity(BLOCK_OVERHEAD + plain.len());
        block.extend_from_slice(&header);
        block.extend_from_slice(&nonce);
        block.extend_from_slice(plain);
        let (_, text) = block.split_at_mut(BLOCK_HEADER_LEN + NONCE_LEN);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = with_aad(&header, seller, entity, group, classification, |aad| {
            self.key.seal_in_place_separate_tag(nonce, Aad::from(aad), text).expect("shorter than 64 GiB")
        });
        block.extend_from_slice(tag.as_ref());
        SealedBlock::from_bytes(block).expect("it carries the header just written")
    }

    fn open_as(
        &self,
        seller: &SellerId,
        entity: EntityToken,
        group: &str,
        classification: &str,
        block: &[u8],
    ) -> Result<Plain<Vec<u8>>, OpenError> {
        let broken = OpenError { key: self.id, code: "not_authentic" };
        let key = SealedBlock::key_of(block).map_err(|_| broken)?;
        if key != self.id {
            return Err(OpenError { key, code: "other_key" });
        }
        let (header, rest) = block.split_first_chunk::<BLOCK_HEADER_LEN>().ok_or(broken)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(broken)?;
        let mut text = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let length = with_aad(header, seller, entity, group, classification, |aad| {
            self.key.open_in_place(nonce, Aad::from(aad), &mut text).map(|plain| plain.len())
        })
        .map_err(|_| broken)?;
        text.truncate(length);
        Ok(Plain::new(std::mem::take(&mut *text)))
    }
}

/// What the key database keeps of a key beside its wrapped form: AES-GCM alone would accept a second key that was made to fit.
pub(crate) fn commitment(bytes: &[u8]) -> [u8; 32] {
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, bytes), b"commit");
    let mut out = [0u8; 32];
    out.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    out
}

/// Whether `commitment` is that of a key of these bytes, in constant time.
pub(crate) fn commits(bytes: &[u8], commitment: &[u8]) -> bool {
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, bytes), b"commit", commitment).is_ok()
}

/// Builds `header | len seller | len entity | len group | len classification`, lengths in two bytes, and lends it to `f`.
fn with_aad<T>(
    header: &[u8; BLOCK_HEADER_LEN],
    seller: &SellerId,
    entity: EntityToken,
    group: &str,
    classification: &str,
    f: impl FnOnce(&[u8]) -> T,
) -> T {
    let parts: [&[u8]; 4] = [seller.as_str().as_bytes(), &entity.0, group.as_bytes(), classification.as_bytes()];
    let length = BLOCK_HEADER_LEN + parts.iter().map(|p| p.len() + 2).sum::<usize>();
    let mut stack = [0u8; AAD_STACK];
    let mut heap;
    let buffer: &mut [u8] = if let Some(part) = stack.get_mut(..length) {
        part
    } else {
        heap = vec![0u8; length];
        &mut heap
    };
    let mut rest = &mut *buffer;
    let mut put = |bytes: &[u8]| {
        let (to, tail) = std::mem::take(&mut rest).split_at_mut(bytes.len());
        to.copy_from_slice(bytes);
        rest = tail;
    };
    put(header);
    for part in parts {
        // A longer part than 64 KiB cannot be: ids are bounded, and a classification is a name of ours.
        put(&u16::try_from(part.len()).unwrap_or(u16::MAX).to_be_bytes());
        put(part);
    }
    f(buffer)
}

struct Nonces {
    bytes: [u8; NONCES * NONCE_LEN],
    used: usize,
    random: SystemRandom,
}

/// The next random nonce of this thread's buffer. A nonce is public once used, so the buffer needs no wiping.
fn next_nonce() -> Option<[u8; NONCE_LEN]> {
    thread_local! {
        static BUFFER: RefCell<Nonces> =
            RefCell::new(Nonces { bytes: [0; NONCES * NONCE_LEN], used: NONCES * NONCE_LEN, random: SystemRandom::new() });
    }
    BUFFER.with_borrow_mut(|nonces| {
        if nonces.used >= nonces.bytes.len() {
            nonces.random.fill(&mut nonces.bytes).ok()?;
            nonces.used = 0;
        }
        let nonce = nonces.bytes.get(nonces.used..)?.first_chunk::<NONCE_LEN>().copied()?;
        nonces.used += NONCE_LEN;
        Some(nonce)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context<'a>(seller: &'a SellerId, group: FieldGroup, classification: &'a str) -> Context<'a> {
        Context { seller, entity: EntityToken([1; 16]), group, classification }
    }

    #[test]
    fn a_block_opens_in_its_own_context_alone() {
        let (a, b) = (SellerId::parse("A1").unwrap(), SellerId::parse("A2").unwrap());
        let key = DataKey::ephemeral();
        let here = context(&a, FieldGroup::BuyerName, "orders#1");
        let block = key.seal(&here, b"Jane");
        assert_eq!(block.key(), key.id());
        assert_eq!(key.open(&here, block.as_bytes()).unwrap().reveal(), b"Jane");
        let others = [
            context(&b, FieldGroup::BuyerName, "orders#1"),
            context(&a, FieldGroup::Gift, "orders#1"),
            context(&a, FieldGroup::BuyerName, "orders#2"),
            Context { entity: EntityToken([2; 16]), ..here },
        ];
        for other in &others {
            assert_eq!(key.open(other, block.as_bytes()).unwrap_err().code, "not_authentic");
        }
        assert_eq!(DataKey::ephemeral().open(&here, block.as_bytes()).unwrap_err().code, "other_key");
        assert!(key.opens_witness(&a, EntityToken([1; 16]), key.witness(&a, EntityToken([1; 16])).as_bytes()));
        assert!(!key.opens_witness(&a, EntityToken([1; 16]), block.as_bytes()));
    }

    #[test]
    fn nonces_do_not_repeat_across_refills() {
        let mut seen = std::collections::HashSet::new();
        for _ in 0..3 * NONCES {
            assert!(seen.insert(next_nonce().unwrap()));
        }
    }

    #[test]
    fn a_commitment_is_of_one_key() {
        assert!(commits(&[1; 32], &commitment(&[1; 32])));
        assert!(!commits(&[2; 32], &commitment(&[1; 32])));
    }

    proptest! {
        #[test]
        fn sealing_round_trips_and_every_flipped_byte_is_seen(
            text in proptest::collection::vec(any::<u8>(), 0..400), name in "[a-z#0-9]{0,400}", flip in any::<prop::sample::Index>()
        ) {
            let seller = SellerId::parse("A1").unwrap();
            let key = DataKey::ephemeral();
            let here = context(&seller, FieldGroup::Gift, &name);
            let block = key.seal(&here, &text);
            let opened = key.open(&here, block.as_bytes()).unwrap();
            prop_assert_eq!(opened.reveal(), &text);
            let mut bytes = block.into_bytes();
            let at = flip.index(bytes.len());
            bytes[at] ^= 0x20;
            prop_assert!(key.open(&here, &bytes).is_err());
        }
    }
}
