//! Every topic: name, key, settings (DESIGN section 4). `sunder topics apply` makes them exactly so; drift stops certification.
//!
//! The numbers come from the formula of the deletion bound, `T = max(max.compaction.lag.ms, segment.ms + heartbeat) + cleaner backoff
//! + file.delete.delay.ms`: with the production values about 6 h, with the test values seconds.

use std::fmt;

use crate::class::{Family, Kind, words};
use crate::ids::IdError;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

words!(
    /// Which set of periods the topics get.
    Profile, "retention profile", "production or test", {
        /// Six hours from a tombstone to the bytes being gone; raw 7 days.
        Production = "production",
        /// Seconds; raw 1 hour. Refused when `environment = "production"`.
        Test = "test",
    }
);

/// A topic of the pipeline, without the configured prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// Attributed envelopes with sealed blocks, as the pollers publish them.
    Raw(Family),
    /// Typed non-personal history.
    Events(Kind),
    /// Latest typed non-personal state; a tombstone is a deletion.
    State(Kind),
    /// Latest sealed blocks.
    Pii(Family),
    /// Sealed originals of raw records that could not be split.
    DlqRaw(Family),
    /// Requests to erase.
    PrivacyRequests,
    /// The erased ledger: key ids and fingerprints, published before a key counts as destroyed.
    PrivacyErased,
    /// Certificates and log heads.
    PrivacyCertificates,
    /// Who is polled.
    ControlSellers,
    /// Which cached keys to drop.
    KeysRevoked,
    /// The hash-chained audit log.
    AuditLog,
}

impl Topic {
    /// Every topic.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let mut topics = Vec::new();
        for family in Family::ALL {
            topics.extend([Self::Raw(*family), Self::Pii(*family), Self::DlqRaw(*family)]);
        }
        for kind in Kind::ALL {
            topics.extend([Self::Events(*kind), Self::State(*kind)]);
        }
        topics.extend([
            Self::PrivacyRequests,
            Self::PrivacyErased,
            Self::PrivacyCertificates,
            Self::ControlSellers,
            Self::KeysRevoked,
            Self::AuditLog,
        ]);
        topics
    }

    /// The full name under `prefix`, e.g. `sp.raw.orders.v1`.
    #[must_use]
    pub fn name(self, prefix: &str) -> String {
        format!("{prefix}.{self}.v1")
    }

    /// Whether sealed personal blocks lie in it, so that a scan must read it.
    #[must_use]
    pub const fn holds_sealed(self) -> bool {
        matches!(self, Self::Raw(_) | Self::Pii(_) | Self::DlqRaw(_))
    }

    /// Whether its cleaner removes overwritten keys: such a topic gets heartbeats.
    #[must_use]
    pub const fn is_compacted(self) -> bool {
        !matches!(self, Self::Raw(_) | Self::DlqRaw(_) | Self::KeysRevoked | Self::AuditLog)
    }

    /// How many partitions it has where the config asks for `partitions`: all topics of data have as many, so that an order lies on
    /// one partition number everywhere; the small ones of the pipeline's own have one, `control.sellers` as many as the data.
    #[must_use]
    pub const fn partitions(self, partitions: i32) -> i32 {
        match self {
            Self::Raw(_) | Self::Events(_) | Self::State(_) | Self::Pii(_) | Self::ControlSellers => partitions,
            Self::DlqRaw(_)
            | Self::PrivacyRequests
            | Self::PrivacyErased
            | Self::PrivacyCertificates
            | Self::KeysRevoked
            | Self::AuditLog => 1,
        }
    }

    /// The settings it is declared with: every setting here is checked for drift.
    #[must_use]
    pub fn settings(self, profile: Profile) -> Vec<(&'static str, String)> {
        let times = Times::of(profile);
        let mut settings = vec![
            ("message.timestamp.type", "LogAppendTime".to_owned()),
            ("segment.jitter.ms", "0".to_owned()),
            ("unclean.leader.election.enable", "false".to_owned()),
        ];
        let compact = |settings: &mut Vec<(&'static str, String)>| {
            settings.extend([
                ("segment.ms", times.segment_ms.to_string()),
                ("max.compaction.lag.ms", times.lag_ms.to_string()),
                ("min.compaction.lag.ms", "0".to_owned()),
                ("min.cleanable.dirty.ratio", "0.1".to_owned()),
                ("delete.retention.ms", TOMBSTONE_MS.to_string()),
                ("file.delete.delay.ms", times.file_delay_ms.to_string()),
            ]);
        };
        let delete = |settings: &mut Vec<(&'static str, String)>, retention_ms: i64, segment_ms: i64| {
            settings.extend([
                ("cleanup.policy", "delete".to_owned()),
                ("retention.ms", retention_ms.to_string()),
                ("segment.ms", segment_ms.to_string()),
                ("file.delete.delay.ms", times.file_delay_ms.to_string()),
            ]);
        };
        match self {
            Self::Raw(_) => {
                settings.push(("max.message.bytes", RAW_MESSAGE_BYTES_MAX.to_string()));
                delete(&mut settings, times.raw_ms, times.raw_segment_ms);
            }
            Self::DlqRaw(_) => {
                settings.push(("max.message.bytes", DLQ_MESSAGE_BYTES_MAX.to_string()));
                delete(&mut settings, times.raw_ms, times.raw_segment_ms);
            }
            Self::KeysRevoked => delete(&mut settings, 7 * DAY_MS, DAY_MS),
            Self::AuditLog => delete(&mut settings, 400 * DAY_MS, 7 * DAY_MS),
            Self::Events(_) => {
                settings.extend([("cleanup.policy", "compact,delete".to_owned()), ("retention.ms", EVENTS_MS.to_string())]);
                compact(&mut settings);
            }
            Self::Pii(_) => {
                settings.extend([("cleanup.policy", "compact,delete".to_owned()), ("retention.ms", PII_BACKSTOP_MS.to_string())]);
                compact(&mut settings);
            }
            Self::State(_) | Self::PrivacyRequests | Self::PrivacyErased | Self::PrivacyCertificates | Self::ControlSellers => {
                settings.push(("cleanup.policy", "compact".to_owned()));
                compact(&mut settings);
            }
        }
        settings
    }
}

impl fmt::Display for Topic {
    /// Kind and name, e.g. `raw.orders`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(family) => write!(f, "raw.{family}"),
            Self::Events(kind) => write!(f, "events.{kind}"),
            Self::State(kind) => write!(f, "state.{kind}"),
            Self::Pii(family) => write!(f, "pii.{family}"),
            Self::DlqRaw(family) => write!(f, "dlq.raw.{family}"),
            Self::PrivacyRequests => f.write_str("privacy.requests"),
            Self::PrivacyErased => f.write_str("privacy.erased"),
            Self::PrivacyCertificates => f.write_str("privacy.certificates"),
            Self::ControlSellers => f.write_str("control.sellers"),
            Self::KeysRevoked => f.write_str("keys.revoked"),
            Self::AuditLog => f.write_str("audit.log"),
        }
    }
}

/// Largest batch of a raw topic, in bytes, as compressed (Kafka's default `max.message.bytes`).
pub const RAW_MESSAGE_BYTES_MAX: u64 = 1_048_588;
/// Largest batch of a dead-letter topic, in bytes: ciphertext does not compress, so a raw record that came compressed needs more room
/// here than where it lay (chosen: 16 times).
pub const DLQ_MESSAGE_BYTES_MAX: u64 = 16 * RAW_MESSAGE_BYTES_MAX;

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;
/// How long a tombstone stays readable: longer than a replica or a consumer is away (kafka-design 1.3: 40 d).
pub const TOMBSTONE_MS: i64 = 40 * DAY_MS;
/// History stays 17 calendar months of 30 days, a margin below the promised 18; the sweep enforces event time before that.
const EVENTS_MS: i64 = 17 * 30 * DAY_MS;
/// Backstop on sealed blocks whose heartbeat or tombstone failed; the deadline is enforced by the sweep (chosen: 90 d).
const PII_BACKSTOP_MS: i64 = 90 * DAY_MS;

/// The periods of a profile.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Longest life of an active segment.
    pub segment_ms: i64,
    /// `max.compaction.lag.ms`.
    pub lag_ms: i64,
    /// `file.delete.delay.ms`; never 0: a broker that flushes a rolled segment in the moment in which the cleaner unlinks it gives its
    /// whole log directory up, and stops (KAFKA-19571; seen on 4.3.1 under load).
    pub file_delay_ms: i64,
    /// How long raw and dead letters stay.
    pub raw_ms: i64,
    /// Segment length of raw and dead letters, so that they go on time.
    pub raw_segment_ms: i64,
    /// How often each partition of a compacted topic gets a heartbeat while a case moves.
    pub heartbeat_ms: i64,
    /// How often it gets one otherwise.
    pub idle_heartbeat_ms: i64,
    /// The producers' `message.timeout.ms`: nothing is in flight for longer.
    pub message_timeout_ms: i64,
}

impl Times {
    /// The periods of `profile` (kafka-design 1.1, measured in kafka-confirmed section 3).
    #[must_use]
    pub const fn of(profile: Profile) -> Self {
        match profile {
            Profile::Production => Self {
                segment_ms: 19_800_000,
                lag_ms: 21_600_000,
                file_delay_ms: 60_000,
                raw_ms: 7 * DAY_MS,
                raw_segment_ms: DAY_MS,
                heartbeat_ms: 600_000,
                idle_heartbeat_ms: 600_000,
                message_timeout_ms: 30_000,
            },
            Profile::Test => Self {
                segment_ms: 1_000,
                lag_ms: 1_000,
                file_delay_ms: 250,
                raw_ms: 3_600_000,
                raw_segment_ms: 600_000,
                heartbeat_ms: 500,
                // Each heartbeat of this profile rolls a segment and makes work for the broker's cleaner, which takes the dirtiest
                // partition first: heartbeats for their own sake would keep it from the partitions where something has to go.
                idle_heartbeat_ms: 10_000,
                message_timeout_ms: 2_000,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_lower_case_with_dots_and_unique() {
        let names: Vec<String> = Topic::all().iter().map(|t| t.name("sp")).collect();
        assert!(names.contains(&"sp.raw.orders.v1".to_owned()) && names.contains(&"sp.dlq.raw.orders.v1".to_owned()));
        assert!(names.contains(&"sp.privacy.erased.v1".to_owned()));
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
    }

    #[test]
    fn a_dead_letter_has_room_for_any_raw_record_and_its_wrapping() {
        for profile in [Profile::Production, Profile::Test] {
            for family in Family::ALL {
                let bytes_max = |topic: Topic| -> u64 {
                    let settings = topic.settings(profile);
                    settings.iter().find(|(name, _)| *name == "max.message.bytes").and_then(|(_, v)| v.parse().ok()).unwrap()
                };
                assert!(bytes_max(Topic::DlqRaw(*family)) >= 2 * bytes_max(Topic::Raw(*family)), "{family}");
            }
        }
    }

    #[test]
    fn every_compacted_topic_bounds_its_lag() {
        for topic in Topic::all() {
            let settings = topic.settings(Profile::Production);
            let get = |name: &str| settings.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
            assert_eq!(get("message.timestamp.type"), Some("LogAppendTime"), "{topic}");
            assert!(get("cleanup.policy").is_some_and(|p| !p.is_empty()), "{topic}");
            if topic.is_compacted() {
                assert_eq!(get("max.compaction.lag.ms"), Some("21600000"), "{topic}");
                assert_eq!(get("delete.retention.ms"), Some("3456000000"), "{topic}");
            }
        }
    }
}
