//! What a certificate of erasure says, and its one canonical spelling. The check that a stranger runs is in [`check_with`].
//!
//! The statement carries the fields that NIST SP 800-88 asks of a certificate of sanitisation (Rev. 1 section 4.8), mapped to a log and
//! its stores: maker and model become the store, the serial number becomes topic, partition and offset, the technique becomes
//! cryptographic erase followed by removal. Subjects appear as counts and digests alone: a certificate holds no personal data, no
//! order id and no list by which a known order could be looked up.
//!
//! Invariants: equal statements have equal bytes ([`Statement::to_text`]); the signed note's text is exactly those bytes, so
//! `certificate.json` and the note's text are one and the same.

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod canonical;
mod check;

pub use canonical::{canonical, digest, key_digest, key_file};
pub use check::{CertificateError, Checked, Evidence, check, check_with};

use crate::ids::{CaseId, SellerId};
use crate::note;
use crate::time::Timestamp;

/// The version of the statement's form.
pub const FORM: &str = "sunder-certificate/1";
/// What every version of the form begins with.
const FORM_FAMILY: &str = "sunder-certificate/";

/// One instant by both clocks. They differ only where a test or a demo moves the policy clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instant {
    /// The policy clock: deadlines, sweeps and case dates.
    pub policy_clock: Iso,
    /// The system's clock: leases and waits.
    pub system_clock: Iso,
}

/// A time that is written as ISO 8601 in UTC with milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Iso(pub Timestamp);

impl Serialize for Iso {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_iso())
    }
}

impl<'de> Deserialize<'de> for Iso {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Timestamp::parse(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Who did or judged something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// A name, e.g. `retain@host-1` or the operating system's user.
    pub name: String,
    /// What it did in this case, e.g. `operator` or `validator`.
    pub role: String,
}

/// Whom the case is about, without naming anyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subjects {
    /// Subjects of the case.
    pub count: u64,
    /// Of these, how many had a key, so that something was held.
    pub with_keys: u64,
    /// Data keys destroyed, over all subjects.
    pub keys: u64,
    /// SHA-256 over the sorted key ids (16 bytes each), lower-case hex.
    pub key_ids_sha256: String,
    /// SHA-256 over the sorted tokens (32 hex digits and a zero byte each), lower-case hex.
    pub subjects_sha256: String,
}

/// The fields of a certificate of sanitisation that are words, by NIST SP 800-88.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sanitisation {
    /// Standard and what of it is claimed.
    pub standard: String,
    /// `Purge`.
    pub method: String,
    /// `cryptographic erase, then removal by compaction and deletion`.
    pub technique: String,
    /// Cipher and where the keys came from: the conditions under which cryptographic erase counts.
    pub keys: String,
    /// Class of the data before.
    pub class_before: String,
    /// Class of what is left in these places.
    pub class_after: String,
    /// How it was verified.
    pub verification: String,
    /// Whether removal of the bytes is claimed too; `false` on the embedded broker.
    pub physical: bool,
}

/// When each layer happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Times {
    /// The case was opened.
    pub requested: Instant,
    /// First layer: the keys were destroyed and the ledger written.
    pub keys_destroyed: Instant,
    /// No process could use a cached key any more.
    pub caches_revoked: Instant,
    /// The first tombstones were acknowledged.
    pub tombstoned: Instant,
    /// Nothing of the subjects was in flight any more; the second tombstones were acknowledged.
    pub drained: Instant,
    /// Every store had applied the tombstones and deleted what was left.
    pub sinks_clean: Instant,
    /// Second layer: every place was read again and nothing was found.
    pub verified: Instant,
    /// This statement was made.
    pub certified: Instant,
}

/// A point in the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogMark {
    /// Full topic name.
    pub topic: String,
    /// Which incarnation of the topic (topic id).
    pub incarnation: String,
    /// Partition.
    pub partition: i32,
    /// Offset of the record.
    pub offset: i64,
}

/// What is said of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogEvidence {
    /// Topics, partitions and replicas as the log describes itself.
    pub description: Value,
    /// SHA-256 over the description in canonical form, lower-case hex: it changes with any setting.
    pub description_sha256: String,
    /// Highest first tombstone per partition.
    pub tombstones: Vec<LogMark>,
    /// The end of the raw topics that the splitter was past before the second tombstones.
    pub drained_past: Vec<LogMark>,
    /// Highest second tombstone per partition.
    pub second_tombstones: Vec<LogMark>,
    /// The barrier: each partition was read from its start up to here.
    pub barrier: Vec<LogMark>,
    /// How often a value was found after the tombstones and tombstoned again before the case held.
    pub repeated: u64,
}

/// One place that was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceRead {
    /// Topic-partition, table or file.
    pub name: String,
    /// How much of it was read, with the unit.
    pub read: String,
}

/// One store that was read again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreEvidence {
    /// Which store.
    pub store: String,
    /// How absence is shown there.
    pub method: String,
    /// What was read.
    pub places: Vec<PlaceRead>,
    /// Blocks and keys of the subjects that were found; 0 on a certificate.
    pub found: u64,
    /// Controls planted.
    pub controls_planted: u64,
    /// Controls found again: as many as planted.
    pub controls_found: u64,
}

/// The counts of reading every store again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scan {
    /// Blocks and keys of the subjects that were found.
    pub found: u64,
    /// Controls found again.
    pub controls_found: u64,
    /// Controls planted.
    pub controls_planted: u64,
}

/// The counts of trying to open what is left with every key that still exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recover {
    /// How many of the tried opened; 0 on a certificate.
    pub opened: u64,
    /// Witnesses and blocks of the subjects that were tried.
    pub tried: u64,
    /// Controls that opened with their key, as they must.
    pub controls_opened: u64,
    /// Controls planted.
    pub controls_planted: u64,
}

/// Something that is left for now, or lies outside what was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remains {
    /// What and where.
    pub what: String,
    /// The last instant it can still be there, by the clock of its place; absent where the operator decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Iso>,
}

/// Fields of subjects that a legal hold keeps, sealed under a key of the hold's own in the cold store.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Held {
    /// The law that asks for it.
    pub statute: String,
    /// The class of document.
    pub document: String,
    /// The field groups that are kept.
    pub fields: Vec<String>,
    /// When the hold ends, by the policy clock.
    pub until: Iso,
    /// Of how many subjects.
    pub subjects: u64,
}

/// The rules that applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its name and version.
    pub version: String,
    /// SHA-256 of its canonical form, lower-case hex.
    pub sha256: String,
}

/// How far the audit chain and the erased ledger were: what ties the certificate to them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledgers {
    /// Number of the newest audit event.
    pub audit_events: u64,
    /// Its hash, lower-case hex: nothing before it can be rewritten without contradicting this certificate.
    pub audit_head: String,
    /// Epoch of the erased ledger.
    pub erased_epoch: u64,
}

/// The whole statement of one certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// [`FORM`].
    pub form: String,
    /// The case.
    pub case: CaseId,
    /// The seller whose customers the subjects are.
    pub seller: SellerId,
    /// Why, e.g. `expiry` or `buyer-request`.
    pub reason: String,
    /// `personal` or `with_business_data`.
    pub extent: String,
    /// What is certified, in one sentence.
    pub summary: String,
    /// Whom it is about.
    pub subjects: Subjects,
    /// Method and technique.
    pub sanitisation: Sanitisation,
    /// Program and version that did it.
    pub tool: String,
    /// Who answers for it: company, place, contact; left out where the config names nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Who asked, who did it, who judged it.
    pub actors: Vec<Actor>,
    /// When, by both clocks.
    pub times: Times,
    /// Evidence of the log.
    pub log: LogEvidence,
    /// Evidence of each store.
    pub stores: Vec<StoreEvidence>,
    /// Totals of the scan.
    pub scan: Scan,
    /// Totals of the recover test.
    pub recover: Recover,
    /// What remains, and until when.
    pub residual: Vec<Remains>,
    /// Fields that the law keeps longer; left out where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Held>,
    /// The rules that applied.
    pub policy: Policy,
    /// How far the audit chain and the erased ledger were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ledgers: Option<Ledgers>,
    /// What this statement does not claim.
    pub not_claimed: Vec<String>,
}

impl Statement {
    /// The canonical text: JSON with sorted keys and no white space, and one line feed.
    ///
    /// # Errors
    /// [`CertificateError::NotAStatement`] where a value has no JSON form; none of these types has such values.
    pub fn to_text(&self) -> Result<Vec<u8>, CertificateError> {
        let value = serde_json::to_value(self).map_err(|_| CertificateError::NotAStatement)?;
        let mut text = canonical(&value);
        text.push(b'\n');
        Ok(text)
    }

    /// Reads a statement from its canonical text.
    ///
    /// # Errors
    /// [`CertificateError`].
    pub fn from_text(text: &[u8]) -> Result<Self, CertificateError> {
        #[derive(Deserialize)]
        struct Form {
            form: String,
        }
        let form = serde_json::from_slice::<Form>(text).map_err(|_| CertificateError::NotAStatement)?.form;
        if form != FORM {
            let is_ours = form.starts_with(FORM_FAMILY);
            return Err(if is_ours { CertificateError::UnknownForm } else { CertificateError::NotAStatement });
        }
        let statement: Self = serde_json::from_slice(text).map_err(|_| CertificateError::NotAStatement)?;
        if statement.to_text()? != text {
            return Err(CertificateError::NotCanonical);
        }
        Ok(statement)
    }

    /// Whether its own counts bear out what it certifies; a certificate that does not hold is neither made nor accepted.
    ///
    /// # Errors
    /// [`CertificateError::DoesNotHold`] naming the rule.
    pub fn holds(&self) -> Result<(), CertificateError> {
        let fail = |rule| Err(CertificateError::DoesNotHold(rule));
        self.is_whole()?;
        if self.scan.found != 0 || self.stores.iter().any(|store| store.found != 0) {
            return fail("something was found");
        }
        if self.scan.controls_planted == 0 || self.scan.controls_found != self.scan.controls_planted {
            return fail("controls of the scan are missing");
        }
        if self.stores.iter().any(|store| store.controls_planted == 0 || store.controls_found != store.controls_planted) {
            return fail("a store's controls are missing");
        }
        let sum = |pick: fn(&StoreEvidence) -> u64| self.stores.iter().map(pick).fold(0u64, u64::saturating_add);
        if sum(|s| s.controls_planted) != self.scan.controls_planted || sum(|s| s.controls_found) != self.scan.controls_found {
            return fail("the stores' controls do not add up");
        }
        if self.recover.opened != 0 {
            return fail("something could be opened");
        }
        if self.recover.tried == 0 && self.subjects.with_keys > 0 {
            return fail("nothing was tried");
        }
        if self.recover.controls_planted == 0 || self.recover.controls_opened != self.recover.controls_planted {
            return fail("controls of the recover test are missing");
        }
        Ok(())
    }

    /// Whether every field that NIST SP 800-88 asks for is there, operator and validator are two, the log's description is the one that
    /// its digest names, and each partition was read past its last tombstone.
    fn is_whole(&self) -> Result<(), CertificateError> {
        let fail = |rule| Err(CertificateError::DoesNotHold(rule));
        let s = &self.sanitisation;
        let words = [&self.reason, &self.extent, &self.summary, &self.tool, &self.policy.version];
        let method = [&s.standard, &s.method, &s.technique, &s.keys, &s.class_before, &s.class_after, &s.verification];
        if words.into_iter().chain(method).any(|word| word.trim().is_empty()) {
            return fail("a field is empty");
        }
        let of = |role| self.actors.iter().find(|actor| actor.role == role).map(|actor| actor.name.as_str());
        match (of("operator"), of("validator")) {
            (Some(operator), Some(validator)) if !operator.is_empty() && !validator.is_empty() && operator != validator => {}
            _ => return fail("operator and validator are not two"),
        }
        let digests = [&self.subjects.key_ids_sha256, &self.subjects.subjects_sha256, &self.policy.sha256];
        if digests.into_iter().any(|digest| digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit())) {
            return fail("a digest is none");
        }
        if self.log.description_sha256 != digest(&self.log.description) {
            return fail("the log's description is not the one of its digest");
        }
        if self.subjects.with_keys > self.subjects.count || self.subjects.keys < self.subjects.with_keys {
            return fail("subjects and keys do not go together");
        }
        let is_read = |mark: &LogMark| {
            let of_partition =
                |other: &&LogMark| (&other.topic, &other.incarnation, other.partition) == (&mark.topic, &mark.incarnation, mark.partition);
            self.log.barrier.iter().find(of_partition).is_some_and(|barrier| barrier.offset >= mark.offset)
        };
        if !self.log.tombstones.iter().chain(&self.log.second_tombstones).all(is_read) {
            return fail("a tombstone lies beyond what was read");
        }
        Ok(())
    }

    /// Signs the statement.
    ///
    /// # Errors
    /// [`CertificateError`]: a statement that does not hold is not signed.
    pub fn sign(&self, signer: &note::NoteSigner) -> Result<Vec<u8>, CertificateError> {
        self.holds()?;
        Ok(signer.sign(&self.to_text()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::NoteSigner;
    use proptest::prelude::*;

    fn instant(ms: i64) -> Instant {
        Instant { policy_clock: Iso(Timestamp(ms + 2_592_000_000)), system_clock: Iso(Timestamp(ms)) }
    }

    fn statement() -> Statement {
        let mark = |topic: &str, offset| LogMark { topic: topic.into(), incarnation: "id-1".into(), partition: 0, offset };
        let description = serde_json::json!({"durable": true, "topics": [{"name": "sp.pii.orders.v1", "partitions": 1}]});
        let t = 1_764_000_000_000;
        Statement {
            form: FORM.into(),
            case: CaseId::parse("case-20261122-00ff").unwrap(),
            seller: SellerId::parse("A1EXAMPLE").unwrap(),
            reason: "expiry".into(),
            extent: "personal".into(),
            summary: "2 subjects: keys destroyed, blocks removed.".into(),
            subjects: Subjects { count: 2, with_keys: 2, keys: 2, key_ids_sha256: "00".repeat(32), subjects_sha256: "11".repeat(32) },
            sanitisation: Sanitisation {
                standard: "NIST SP 800-88".into(),
                method: "Purge".into(),
                technique: "cryptographic erase, then removal by compaction and deletion".into(),
                keys: "AES-256-GCM".into(),
                class_before: "personal data, sealed".into(),
                class_after: "no data of these subjects".into(),
                verification: "scan and recover".into(),
                physical: true,
            },
            tool: "sunder 0.1.0".into(),
            issuer: Some("Example GmbH, Berlin, privacy@example.com".into()),
            actors: [("sweep", "requested"), ("retain", "operator"), ("verify", "validator")]
                .map(|(name, role)| Actor { name: name.into(), role: role.into() })
                .into(),
            times: Times {
                requested: instant(t),
                keys_destroyed: instant(t + 1),
                caches_revoked: instant(t + 2),
                tombstoned: instant(t + 3),
                drained: instant(t + 4),
                sinks_clean: instant(t + 5),
                verified: instant(t + 6),
                certified: instant(t + 7),
            },
            log: LogEvidence {
                description_sha256: digest(&description),
                description,
                tombstones: vec![mark("sp.pii.orders.v1", 10)],
                drained_past: vec![mark("sp.raw.orders.v1", 4)],
                second_tombstones: vec![mark("sp.pii.orders.v1", 12)],
                barrier: vec![mark("sp.pii.orders.v1", 13)],
                repeated: 0,
            },
            stores: vec![StoreEvidence {
                store: "vault".into(),
                method: "every row and every page".into(),
                places: vec![PlaceRead { name: "sealed_block".into(), read: "3 rows".into() }],
                found: 0,
                controls_planted: 1,
                controls_found: 1,
            }],
            scan: Scan { found: 0, controls_found: 1, controls_planted: 1 },
            recover: Recover { opened: 0, tried: 2, controls_opened: 1, controls_planted: 1 },
            residual: vec![Remains { what: "sp.raw.orders.v1: sealed events".into(), until: Some(Iso(Timestamp(t + 604_800_000))) }],
            held: Vec::new(),
            policy: Policy { version: "1".into(), sha256: "22".repeat(32) },
            ledgers: Some(Ledgers { audit_events: 41, audit_head: "33".repeat(32), erased_epoch: 3 }),
            not_claimed: vec!["copies outside the listed places".into()],
        }
    }

    #[test]
    fn the_form_of_a_certificate() {
        insta::assert_json_snapshot!(statement());
    }

    #[test]
    fn the_text_reads_back_and_has_one_spelling() {
        let text = statement().to_text().unwrap();
        assert_eq!(Statement::from_text(&text).unwrap(), statement());
        let spaced = String::from_utf8(text).unwrap().replacen("{\"", "{ \"", 1);
        assert_eq!(Statement::from_text(spaced.as_bytes()).unwrap_err(), CertificateError::NotCanonical);
        assert_eq!(Statement::from_text(b"{}\n").unwrap_err(), CertificateError::NotAStatement);
        for (form, error) in [
            ("sunder-certificate/2", CertificateError::UnknownForm),
            ("sunder-certificate/1.1", CertificateError::UnknownForm),
            ("another-certificate/1", CertificateError::NotAStatement),
        ] {
            let later = serde_json::json!({"form": form, "and": "what nobody knows yet"});
            assert_eq!(Statement::from_text(&canonical(&later)).unwrap_err(), error, "{form}");
        }
    }

    #[test]
    fn a_statement_that_contradicts_itself_is_neither_signed_nor_accepted() {
        let signer = NoteSigner::from_seed("example.com/sunder", &[3; 32]).unwrap();
        let broken: [fn(&mut Statement); 17] = [
            |s| s.sanitisation.technique = " ".into(),
            |s| s.tool.clear(),
            |s| s.actors.truncate(2),
            |s| s.actors[2].name = "retain".into(),
            |s| s.policy.sha256 = "22".into(),
            |s| s.log.description = serde_json::json!({"durable": false}),
            |s| s.log.barrier.clear(),
            |s| s.log.second_tombstones[0].offset = 14,
            |s| s.subjects.keys = 1,
            |s| s.scan.found = 1,
            |s| s.stores[0].found = 1,
            |s| s.scan.controls_found = 0,
            |s| s.scan.controls_planted = 2,
            |s| (s.scan, s.stores) = (Scan::default(), Vec::new()),
            |s| s.recover.opened = 1,
            |s| s.recover.tried = 0,
            |s| s.recover.controls_opened = 0,
        ];
        for (rule, change) in broken.iter().enumerate() {
            let mut bad = statement();
            change(&mut bad);
            assert!(matches!(bad.sign(&signer), Err(CertificateError::DoesNotHold(_))), "rule {rule}");
            let forced = signer.sign(&bad.to_text().unwrap()).unwrap();
            assert!(check(&forced, &signer.verifier_key(), None, None).is_err(), "rule {rule}");
        }
        // Nothing held: nothing to try, and that is what it says.
        let mut empty = statement();
        empty.subjects.with_keys = 0;
        empty.recover.tried = 0;
        assert!(empty.sign(&signer).is_ok());
    }

    proptest! {
        #[test]
        fn every_flipped_byte_is_found(at in any::<prop::sample::Index>(), mask in 1u8..) {
            let signer = NoteSigner::from_seed("example.com/sunder", &[3; 32]).unwrap();
            let note = statement().sign(&signer).unwrap();
            let mut bad = note.clone();
            let at = at.index(bad.len());
            bad[at] ^= mask;
            prop_assert!(check(&bad, &signer.verifier_key(), None, None).is_err());
        }
    }

    #[test]
    fn a_certificate_checks_with_its_key_and_its_statement() {
        let signer = NoteSigner::from_seed("example.com/sunder", &[3; 32]).unwrap();
        let text = statement().to_text().unwrap();
        let note = statement().sign(&signer).unwrap();
        let checked = check(&note, &signer.verifier_key(), None, Some(&text)).unwrap();
        assert_eq!((checked.statement.case.as_str(), checked.signer.as_str()), ("case-20261122-00ff", "example.com/sunder"));
        assert_eq!(check(&note, &signer.verifier_key(), None, Some(b"{}\n")).unwrap_err(), CertificateError::OtherStatement);
        for at in 0..note.len() {
            let mut bad = note.clone();
            bad[at] ^= 1;
            assert!(check(&bad, &signer.verifier_key(), None, None).is_err(), "byte {at}");
        }
    }
}
