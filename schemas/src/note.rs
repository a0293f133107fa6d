//! Signed notes in the format of C2SP (`signed-note`): what Go's `golang.org/x/mod/sumdb/note` reads.
//!
//! Invariant: a note that [`open`] accepts is byte for byte the note that was signed. Signing is Ed25519 by ring; nothing here reads a
//! clock, a file or a random source. The log over such notes is in [`crate::tlog`].

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use signed_note::{Note, Signature, StandardVerifier, Verifier as _, VerifierList};
use zeroize::Zeroizing;

/// Ed25519 in the key formats of signed notes (C2SP signed-note, "Signature types").
const ALG_ED25519: u8 = 1;
/// Longest note in bytes, text and signatures together (C2SP signed-note; Go refuses more too).
pub const NOTE_BYTES_MAX: usize = 1_000_000;

/// Why a note or a key is not accepted, without quoting the file.
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
}

impl NoteError {
    /// Every code, for the page that explains them.
    pub const ALL: [Self; 5] = [Self::BadName, Self::BadKey, Self::Malformed, Self::UnknownSigner, Self::BadSignature];

    /// The stable code (`docs/errors.md`).
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::BadName => "bad_key_name",
            Self::BadKey => "bad_key",
            Self::Malformed => "not_a_note",
            Self::UnknownSigner => "unknown_signer",
            Self::BadSignature => "bad_signature",
        }
    }
}

/// Signs notes under one name. Its secret half never prints; ring does not wipe it on drop.
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

/// The key line without its line end.
pub(crate) fn key_line(key: &str) -> &str {
    key.strip_suffix('\n').map_or(key, |line| line.strip_suffix('\r').unwrap_or(line))
}

/// The verifier of a key line. One line end is allowed, nothing else: no byte of a key file can differ.
fn verifier(key: &str) -> Result<StandardVerifier, NoteError> {
    let line = key_line(key);
    if line.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(NoteError::BadKey);
    }
    let verifier = StandardVerifier::new(line).map_err(|_| NoteError::BadKey)?;
    // The crate reads the hash in either case of letters; signing writes it in one.
    let hash = line.split('+').nth(1).unwrap_or_default();
    if hash != format!("{:08x}", verifier.key_id()) {
        return Err(NoteError::BadKey);
    }
    Ok(verifier)
}

/// Reads a signed note and checks it with `verifier_key` (`name+hash+base64`, with or without its line end).
///
/// Exactly one signature, by that key, and the one spelling that signing gives: no byte of the file can differ.
///
/// # Errors
/// [`NoteError`] saying which part does not hold.
pub fn open(note: &[u8], verifier_key: &str) -> Result<Opened, NoteError> {
    let verifier = verifier(verifier_key)?;
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn every_flipped_bit_of_a_note_and_of_its_key_is_found() {
        let key = signer().verifier_key();
        let note = signer().sign("{\"a\":\"ü\"}\n".as_bytes()).unwrap();
        for bit in 0..8 {
            for at in 0..note.len() {
                let mut bad = note.clone();
                bad[at] ^= 1 << bit;
                assert!(open(&bad, &key).is_err(), "note byte {at} bit {bit}");
            }
            for at in 0..=key.len() {
                let mut bad = format!("{key}\n").into_bytes();
                bad[at] ^= 1 << bit;
                assert!(open(&note, &String::from_utf8_lossy(&bad)).is_err(), "key byte {at} bit {bit}");
            }
        }
    }
}
