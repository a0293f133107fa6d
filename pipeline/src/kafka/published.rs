//! What was published of the audit chain and of the certificate log, read again from the log to judge the database by.
//!
//! Invariant: nothing is taken from a record whose own hash or signature does not hold; such a record is an error, with its place.

use serde::Deserialize;
use sunder_retention::audit::{self, HEAD_KEY};
use sunder_retention::case::KnownLog;
use sunder_schemas::chain::ChainHead;
use sunder_schemas::ids::{CaseId, Partition};
use sunder_schemas::topic::Topic;
use sunder_schemas::{note, tlog};

use crate::kafka::{Kafka, KafkaError, Record, blocking};

/// What was published before.
#[derive(Debug, Default)]
pub struct Published {
    /// Rows and signed heads of the audit chain.
    pub audit: audit::Known,
    /// Heads and certificates of the certificate log.
    pub certificates: KnownLog,
    /// Records that are not as they were published, by place.
    pub changed: Vec<String>,
    /// Records of `audit.log`.
    pub audit_records: u64,
    /// Records of `privacy.certificates`.
    pub certificate_records: u64,
}

/// A certificate as it was published (`privacy.certificates`).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishedCertificate {
    leaf: u64,
    note: String,
    head: String,
}

/// What a statement says of whose it is.
#[derive(Deserialize)]
struct OfCase {
    case: CaseId,
}

/// The newest signed head of the audit chain as it was published.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PublishedHead {
    audit_head: String,
}

impl Published {
    fn certificate(&mut self, key: &str, value: &[u8], verifier_key: &str) -> Option<()> {
        if key == HEAD_KEY {
            let published: PublishedHead = serde_json::from_slice(value).ok()?;
            self.audit.head(&ChainHead::open(published.audit_head.as_bytes(), verifier_key).ok()?);
            return Some(());
        }
        let published: PublishedCertificate = serde_json::from_slice(value).ok()?;
        let head = tlog::open_head(published.head.as_bytes(), verifier_key).ok()?;
        // The head was signed over this leaf as its newest.
        if published.leaf.checked_add(1) != Some(head.size) {
            return None;
        }
        let case = CaseId::parse(key).ok()?;
        let signed: OfCase = serde_json::from_slice(&note::open(published.note.as_bytes(), verifier_key).ok()?.text).ok()?;
        if signed.case != case {
            return None;
        }
        self.certificates.heads.push(head);
        self.certificates.notes.insert(case, published.note.into_bytes());
        Some(())
    }

    fn take(&mut self, topic: Topic, record: &Record<'_>, verifier_key: &str) {
        let (Some(key), Some(value)) = (record.key, record.value) else { return };
        let key = String::from_utf8_lossy(key);
        // Heartbeats, incarnations and the like.
        if key.starts_with('~') && key != HEAD_KEY {
            return;
        }
        let taken = match topic {
            Topic::AuditLog => {
                self.audit_records += 1;
                audit::MirroredRow::read(value).map(|row| self.audit.row(&row))
            }
            _ => {
                self.certificate_records += 1;
                self.certificate(&key, value, verifier_key)
            }
        };
        if taken.is_none() {
            self.changed.push(format!("{}[{}]@{}", record.topic, record.partition, record.offset));
        }
    }
}

impl Kafka {
    /// Reads `audit.log` and `privacy.certificates` from end to end.
    ///
    /// # Errors
    /// [`KafkaError`]: nothing is known then.
    pub async fn read_published(&self, verifier_key: &str) -> Result<Published, KafkaError> {
        let (kafka, verifier_key) = (self.clone(), verifier_key.to_owned());
        blocking(move || {
            let mut published = Published::default();
            for topic in [Topic::AuditLog, Topic::PrivacyCertificates] {
                let name = kafka.topic(topic);
                let partitions = (0..kafka.partitions(topic)).map(Partition);
                let ranges = partitions.map(|partition| kafka.whole_blocking(&name, partition)).collect::<Result<Vec<_>, _>>()?;
                kafka.read_blocking(&ranges, |record| {
                    published.take(topic, record, &verifier_key);
                    Ok(())
                })?;
            }
            Ok(published)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use sunder_schemas::note::NoteSigner;
    use sunder_schemas::tlog::{Hash, Head};

    use super::*;

    #[test]
    fn any_flipped_bit_of_a_published_certificate_is_found() {
        let signer = NoteSigner::from_seed("example.com/sunder", &[7; 32]).unwrap();
        let case = "case-20270101-0011223344556677";
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let note = text(signer.sign(format!("{{\"case\":\"{case}\"}}\n").as_bytes()).unwrap());
        let head = text(tlog::sign_head(&signer, &Head { size: 4, root: Hash([7; 32]) }).unwrap());
        let value = serde_json::json!({ "leaf": 3, "note": note, "head": head }).to_string().into_bytes();
        let is_taken = |key: &[u8], value: &[u8]| {
            let key = String::from_utf8_lossy(key).into_owned();
            Published::default().certificate(&key, value, &signer.verifier_key()).is_some()
        };
        assert!(is_taken(case.as_bytes(), &value), "the control");
        let flipped = |bytes: &[u8], bit: usize| {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        };
        for bit in 0..value.len() * 8 {
            assert!(!is_taken(case.as_bytes(), &flipped(&value, bit)), "bit {} of byte {} of the value", bit % 8, bit / 8);
        }
        for bit in 0..case.len() * 8 {
            assert!(!is_taken(&flipped(case.as_bytes(), bit), &value), "bit {} of byte {} of the key", bit % 8, bit / 8);
        }
    }
}
