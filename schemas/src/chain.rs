//! Signed heads of the audit chain: what is published of it, and what it is checked against later.
//!
//! Invariant: a head that [`ChainHead::open`] accepts is byte for byte the one that was signed, and no other kind of note reads as one:
//! its first line holds a space, which the first line of a certificate or of a log's checkpoint cannot have.

use crate::note::{self, NoteError, NoteSigner};
use crate::time::Timestamp;

/// First word of the text.
const FORM: &str = "sunder-audit/1";

/// What a head says of the rows up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HeadKind {
    /// The chain had come so far.
    Head,
    /// The rows up to here were removed by age: checking starts after it.
    Expiry,
}

impl HeadKind {
    /// The word in the text and in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Expiry => "expiry",
        }
    }
}

/// A head of the audit chain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChainHead {
    /// What it says.
    pub kind: HeadKind,
    /// Number of the row, from 1.
    pub seq: i64,
    /// Hash of the row.
    pub hash: [u8; 32],
    /// When it was signed, policy clock.
    pub at: Timestamp,
}

impl ChainHead {
    fn text(&self, name: &str) -> String {
        format!("{FORM} {name}\n{}\n{}\n{}\n{}\n", self.kind.as_str(), self.seq, hex::encode(self.hash), self.at.to_iso())
    }

    /// Signs the head.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn sign(&self, signer: &NoteSigner) -> Result<Vec<u8>, NoteError> {
        signer.sign(self.text(signer.name()).as_bytes())
    }

    /// Reads and checks a signed head.
    ///
    /// # Errors
    /// [`NoteError`]; `Malformed` where another kind of note was signed.
    pub fn open(signed: &[u8], verifier_key: &str) -> Result<Self, NoteError> {
        let opened = note::open(signed, verifier_key)?;
        let text = std::str::from_utf8(&opened.text).map_err(|_| NoteError::Malformed)?;
        let head = Self::parse(text).ok_or(NoteError::Malformed)?;
        if head.text(&opened.signer) != text { Err(NoteError::Malformed) } else { Ok(head) }
    }

    /// Reads the lines; what is beside them is found by writing them again.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().skip(1);
        let kind = match lines.next()? {
            "head" => HeadKind::Head,
            "expiry" => HeadKind::Expiry,
            _ => return None,
        };
        let seq = lines.next()?.parse().ok()?;
        let hash = hex::decode(lines.next()?).ok()?.try_into().ok()?;
        let at = Timestamp::parse(lines.next()?).ok()?;
        Some(Self { kind, seq, hash, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_reads_back_and_every_flipped_bit_is_found() {
        let signer = NoteSigner::from_seed("example.com/sunder", &[7; 32]).unwrap();
        let head = ChainHead { kind: HeadKind::Expiry, seq: 41, hash: [0xab; 32], at: Timestamp(1_764_000_000_000) };
        let signed = head.sign(&signer).unwrap();
        assert_eq!(ChainHead::open(&signed, &signer.verifier_key()).unwrap(), head);
        for at in 0..signed.len() {
            for bit in 0..8 {
                let mut bad = signed.clone();
                bad[at] ^= 1 << bit;
                assert!(ChainHead::open(&bad, &signer.verifier_key()).is_err(), "byte {at} bit {bit}");
            }
        }
        // What was signed for another use is no head, and in one spelling only.
        for text in ["example.com/sunder\n41\nAAAA\n", "{}\n", "sunder-audit/1 example.com/sunder\nexpiry\n041\nab\n2026\n"] {
            let other = signer.sign(text.as_bytes()).unwrap();
            assert_eq!(ChainHead::open(&other, &signer.verifier_key()).unwrap_err(), NoteError::Malformed, "{text}");
        }
    }
}
