//! Signed notes and the transparency log of certificates, in the formats of C2SP (`signed-note`, `tlog-checkpoint`, `tlog-proof`):
//! what Go's `golang.org/x/mod/sumdb/note` and `sumdb/tlog` read.
//!
//! Invariants: a note that [`open`] accepts is byte for byte the note that was signed; a log proof that [`check_proof`] accepts names
//! one leaf of one signed tree head. Signing is Ed25519 by ring; nothing here reads a clock, a file or a random source.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use signed_note::{Note, Signature, StandardVerifier, Verifier as _, VerifierList};
use tlog_tiles::checkpoint::Checkpoint;
use tlog_tiles::tlog;
use zeroize::Zeroizing;

pub use tlog_tiles::tlog::{Hash, HashReader, RecordProof};

/// Ed25519 in the key formats of signed notes (C2SP signed-note, "Signature types").
const ALG_ED25519: u8 = 1;
/// Hashes in an inclusion proof at the most: a tree of 2^63 leaves is that deep (chosen; refuses senseless files).
const PROOF_HASHES_MAX: usize = 64;
/// First line of a proof file (C2SP tlog-proof).
const PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1";

/// Why a note, a key or a proof is not accepted: a stable code in words, without quoting the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The key's name is empty or holds white space or a plus sign.
    #[error("the name of the key is not usable: no white space, no plus sign")]
    BadName,
    /// Not a key of the form `name+hash+base64` (or `PRIVATE+KEY+...`).
    #[error("not a note key")]
    BadKey,
    /// Not a signed note, or not in its only valid spelling.
    #[error("not a well-formed signed note")]
    Malformed,
    /// Signed, but not by this key.
    #[error("not signed by the given key")]
    UnknownSigner,
    /// Signed by this key's name, but the signature does not fit the text.
    #[error("the signature does not fit the text")]
    BadSignature,
    /// Not a log proof, or its head is no checkpoint.
    #[error("not a well-formed log proof")]
    BadProof,
    /// The proof does not lead from the leaf to the signed head.
    #[error("the log proof does not lead from this statement to the signed head")]
    NotIncluded,
}

/// Signs notes under one name. Its secret half is wiped on drop by ring's owner and never prints.
pub struct NoteSigner {
    name: String,
    id: u32,
    pair: Ed25519KeyPair,
}

impl std::fmt::Debug for NoteSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NoteSigner({})", self.verifier_key())
    }
}

impl NoteSigner {
    /// A signer called `name` from 32 random bytes.
    ///
    /// # Errors
    /// [`NoteError::BadName`].
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        if !signed_note::is_key_name_valid(name) || name.chars().any(char::is_control) {
            return Err(NoteError::BadName);
        }
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| NoteError::BadKey)?;
        let id = signed_note::key_id(name, &public_bytes(&pair));
        Ok(Self { name: name.to_owned(), id, pair })
    }

    /// Reads the one-line secret form `PRIVATE+KEY+name+hash+base64` (as Go's `note.GenerateKey` writes it).
    ///
    /// # Errors
    /// [`NoteError::BadKey`] without quoting it.
    pub fn from_secret_line(line: &str) -> Result<Self, NoteError> {
        let rest = line.trim_end().strip_prefix("PRIVATE+KEY+").ok_or(NoteError::BadKey)?;
        let (name, rest) = rest.split_once('+').ok_or(NoteError::BadKey)?;
        let (hash, key) = rest.split_once('+').ok_or(NoteError::BadKey)?;
        let key = Zeroizing::new(BASE64.decode(key).map_err(|_| NoteError::BadKey)?);
        let seed = match key.split_first() {
            Some((&ALG_ED25519, seed)) => Zeroizing::new(<[u8; 32]>::try_from(seed).map_err(|_| NoteError::BadKey)?),
            _ => return Err(NoteError::BadKey),
        };
        let signer = Self::from_seed(name, &seed)?;
        if format!("{:08x}", signer.id) != hash {
            return Err(NoteError::BadKey);
        }
        Ok(signer)
    }

    /// The one-line secret form of the signer made from `seed`, for its key file.
    ///
    /// # Errors
    /// [`NoteError::BadName`].
    pub fn secret_line(name: &str, seed: &[u8; 32]) -> Result<Zeroizing<String>, NoteError> {
        let signer = Self::from_seed(name, seed)?;
        let mut key = Zeroizing::new(vec![ALG_ED25519]);
        key.extend_from_slice(seed);
        let encoded = Zeroizing::new(BASE64.encode(&*key));
        Ok(Zeroizing::new(format!("PRIVATE+KEY+{name}+{:08x}+{}\n", signer.id, encoded.as_str())))
    }

    /// The signer's name, e.g. `example.com/sunder`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a stranger needs to check its notes: `name+hash+base64`, one line.
    #[must_use]
    pub fn verifier_key(&self) -> String {
        format!("{}+{:08x}+{}", self.name, self.id, BASE64.encode(public_bytes(&self.pair)))
    }

    /// Signs `text`, which must end in a line feed and hold no other control character.
    ///
    /// # Errors
    /// [`NoteError::Malformed`] where it does not, or is above 1,000,000 bytes (the format's own limit in Go and here).
    pub fn sign(&self, text: &[u8]) -> Result<Vec<u8>, NoteError> {
        let signature = self.pair.sign(text).as_ref().to_vec();
        let signature = Signature::new(self.name.clone(), self.id, signature).map_err(|_| NoteError::BadName)?;
        let signed = Note::new(text, &[signature]).map_err(|_| NoteError::Malformed)?.to_bytes();
        // What cannot be read back must not leave: the limit counts text and signatures together.
        Note::from_bytes(&signed).map_err(|_| NoteError::Malformed)?;
        Ok(signed)
    }

    /// Signs the head of a log of `size` leaves with root `root`.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn sign_head(&self, size: u64, root: Hash) -> Result<Vec<u8>, NoteError> {
        let head = Checkpoint::new(&self.name, size, root, "").map_err(|_| NoteError::BadName)?;
        self.sign(&head.to_bytes())
    }
}

fn public_bytes(pair: &Ed25519KeyPair) -> Vec<u8> {
    let mut bytes = vec![ALG_ED25519];
    bytes.extend_from_slice(pair.public_key().as_ref());
    bytes
}

/// A note whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The signed text, with its final line feed.
    pub text: Vec<u8>,
    /// The name of the key that signed it.
    pub signer: String,
}

/// Reads a signed note and checks it with `verifier_key` (`name+hash+base64`).
///
/// Exactly one signature, by that key, and the one spelling that signing gives: no byte of the file can differ.
///
/// # Errors
/// [`NoteError`] saying which part does not hold.
pub fn open(note: &[u8], verifier_key: &str) -> Result<Opened, NoteError> {
    let verifier = StandardVerifier::new(verifier_key.trim()).map_err(|_| NoteError::BadKey)?;
    let signer = verifier.name().to_owned();
    let parsed = Note::from_bytes(note).map_err(|_| NoteError::Malformed)?;
    if parsed.to_bytes() != note {
        return Err(NoteError::Malformed);
    }
    match parsed.verify(&VerifierList::new(vec![Box::new(verifier)])) {
        Ok((known, others)) if known.len() == 1 && others.is_empty() => {}
        Ok(_) => return Err(NoteError::Malformed),
        Err(signed_note::NoteError::InvalidSignature { .. }) => return Err(NoteError::BadSignature),
        Err(signed_note::NoteError::UnverifiedNote) => return Err(NoteError::UnknownSigner),
        Err(_) => return Err(NoteError::Malformed),
    }
    // `verify` drops repeated signatures; one signature means one signature line.
    let lines = note.rsplit(|b| *b == b'\n').skip(1).take_while(|line| !line.is_empty()).count();
    if lines != 1 {
        return Err(NoteError::Malformed);
    }
    Ok(Opened { text: parsed.text().to_vec(), signer })
}

/// A signed tree head.
#[derive(Debug, Clone, PartialEq)]
pub struct Head {
    /// Number of leaves.
    pub size: u64,
    /// Root hash.
    pub root: Hash,
}

/// Reads and checks a signed tree head.
///
/// # Errors
/// [`NoteError`].
pub fn open_head(note: &[u8], verifier_key: &str) -> Result<Head, NoteError> {
    let opened = open(note, verifier_key)?;
    let head = Checkpoint::from_bytes(&opened.text).map_err(|_| NoteError::BadProof)?;
    if head.origin() != opened.signer {
        return Err(NoteError::BadProof);
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
    for hash in path {
        file.push_str(&hash.to_string());
        file.push('\n');
    }
    file.push('\n');
    let mut file = file.into_bytes();
    file.extend_from_slice(head);
    file
}

/// Checks that `text` is the leaf that `proof` (a file of [`proof_file`]) leads to a signed head from; returns its index and the head.
///
/// # Errors
/// [`NoteError::BadProof`], [`NoteError::NotIncluded`], or what is wrong with the head's signature.
pub fn check_proof(proof: &[u8], text: &[u8], verifier_key: &str) -> Result<(u64, Head), NoteError> {
    let file = std::str::from_utf8(proof).map_err(|_| NoteError::BadProof)?;
    let (front, head) = file.split_once("\n\n").ok_or(NoteError::BadProof)?;
    let mut lines = front.split('\n');
    if lines.next() != Some(PROOF_HEADER) {
        return Err(NoteError::BadProof);
    }
    let digits = lines.next().and_then(|line| line.strip_prefix("index ")).ok_or(NoteError::BadProof)?;
    let index: u64 = digits.parse().map_err(|_| NoteError::BadProof)?;
    let path: Vec<Hash> =
        lines.take(PROOF_HASHES_MAX + 1).map(Hash::parse_hash).collect::<Result<_, _>>().map_err(|_| NoteError::BadProof)?;
    // One spelling only, so that no byte of the file can differ.
    if path.len() > PROOF_HASHES_MAX || proof_file(index, &path, head.as_bytes()) != proof {
        return Err(NoteError::BadProof);
    }
    let head = open_head(head.as_bytes(), verifier_key)?;
    tlog::check_record(&path, head.size, head.root, index, leaf_hash(text)).map_err(|_| NoteError::NotIncluded)?;
    Ok((index, head))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn signer() -> NoteSigner {
        NoteSigner::from_seed("example.com/sunder", &[7; 32]).unwrap()
    }

    #[test]
    fn a_note_opens_with_its_key_alone() {
        let signer = signer();
        let note = signer.sign(b"{\"case\":\"case-1\"}\n").unwrap();
        let opened = open(&note, &signer.verifier_key()).unwrap();
        assert_eq!((opened.text.as_slice(), opened.signer.as_str()), (b"{\"case\":\"case-1\"}\n".as_slice(), "example.com/sunder"));
        let other = NoteSigner::from_seed("example.com/sunder", &[8; 32]).unwrap();
        assert_eq!(open(&note, &other.verifier_key()).unwrap_err(), NoteError::UnknownSigner);
        assert_eq!(open(&note, "nonsense").unwrap_err(), NoteError::BadKey);
    }

    #[test]
    fn the_secret_line_is_that_of_other_implementations() {
        let line = NoteSigner::secret_line("example.com/sunder", &[7; 32]).unwrap();
        assert_eq!(NoteSigner::from_secret_line(&line).unwrap().verifier_key(), signer().verifier_key());
        assert!(signed_note::StandardSigner::new(line.trim_end()).is_ok());
        assert!(NoteSigner::from_secret_line("PRIVATE+KEY+a+00000000+AAAA").is_err());
        assert!(!format!("{:?}", signer()).contains("PRIVATE"));
    }

    #[test]
    fn text_that_is_no_note_is_not_signed() {
        assert_eq!(signer().sign(b"no line feed").unwrap_err(), NoteError::Malformed);
        assert_eq!(signer().sign(b"tab\t\n").unwrap_err(), NoteError::Malformed);
        assert_eq!(signer().sign(&[vec![b'a'; 1_000_000], vec![b'\n']].concat()).unwrap_err(), NoteError::Malformed);
        assert_eq!(NoteSigner::from_seed("two words", &[1; 32]).unwrap_err(), NoteError::BadName);
    }

    #[test]
    fn a_second_signature_line_is_refused() {
        let signer = signer();
        let note = signer.sign(b"text\n").unwrap();
        let line = note.rsplit(|b| *b == b'\n').nth(1).unwrap().to_vec();
        let doubled = [note.as_slice(), line.as_slice(), b"\n"].concat();
        assert_eq!(open(&doubled, &signer.verifier_key()).unwrap_err(), NoteError::Malformed);
    }

    struct Stored(Vec<Hash>);
    impl HashReader for Stored {
        fn read_hashes(&self, indexes: &[u64]) -> Result<Vec<Hash>, tlog::Error> {
            Ok(indexes.iter().map(|i| self.0[usize::try_from(*i).unwrap()]).collect())
        }
    }

    fn proof(leaves: u64, index: u64) -> (Vec<u8>, Vec<u8>) {
        let text = |n: u64| format!("leaf {n}\n").into_bytes();
        let mut stored = Stored(Vec::new());
        for n in 0..leaves {
            let new = tlog::stored_hashes(n, &text(n), &stored).unwrap();
            stored.0.extend(new);
        }
        let root = tlog::tree_hash(leaves, &stored).unwrap();
        let path = tlog::prove_record(leaves, index, &stored).unwrap();
        (proof_file(index, &path, &signer().sign_head(leaves, root).unwrap()), text(index))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn every_leaf_proves_and_no_other_does(leaves in 1u64..40, pick in 0u64..40) {
            let index = pick % leaves;
            let (file, text) = proof(leaves, index);
            let key = signer().verifier_key();
            prop_assert_eq!(check_proof(&file, &text, &key).unwrap().0, index);
            prop_assert_eq!(check_proof(&file, b"leaf x\n", &key).unwrap_err(), NoteError::NotIncluded);
        }
    }

    #[test]
    fn every_flipped_byte_of_note_and_proof_is_found() {
        let key = signer().verifier_key();
        let note = signer().sign("{\"a\":\"ü\"}\n".as_bytes()).unwrap();
        let (file, text) = proof(5, 3);
        for bit in 0..8 {
            for at in 0..note.len() {
                let mut bad = note.clone();
                bad[at] ^= 1 << bit;
                assert!(open(&bad, &key).is_err(), "note byte {at} bit {bit}");
            }
            for at in 0..file.len() {
                let mut bad = file.clone();
                bad[at] ^= 1 << bit;
                assert!(check_proof(&bad, &text, &key).is_err(), "proof byte {at} bit {bit}");
            }
        }
    }
}
