//! Identifiers, each parsed once at the edge and never a bare `String` after that.
//!
//! Invariants: a value of these types is well formed; clear order ids do not print; a token is what an order is called in every
//! topic, table, log line and metric.

use std::fmt;
use std::str::FromStr;

use compact_str::CompactString;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroize;

/// An identifier that is not of the form its type asks for. Never quotes the value: it may be personal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {what}: {rule}")]
pub struct IdError {
    /// Which identifier was expected.
    pub what: &'static str,
    /// The rule it breaks.
    pub rule: &'static str,
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal, $rule:literal, $ok:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(CompactString);

        impl $name {
            /// Takes `text` if it has the form of this identifier.
            ///
            /// # Errors
            /// [`IdError`] with the rule that is broken, without the value.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                let ok: fn(u8) -> bool = $ok;
                if text.is_empty() || text.len() > $max || !text.bytes().all(ok) {
                    return Err(IdError { what: $what, rule: $rule });
                }
                Ok(Self(CompactString::from(text)))
            }

            /// The identifier as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// The `selling_partner_id` of a seller: Amazon's merchant id, letters and digits.
    SellerId, "seller id", 64, "1 to 64 letters and digits", |b| b.is_ascii_alphanumeric()
);
text_id!(
    /// Amazon's id of a marketplace, e.g. `A1PA6795UKMFR9` (Germany).
    MarketplaceId, "marketplace id", 64, "1 to 64 letters and digits", |b| b.is_ascii_alphanumeric()
);
text_id!(
    /// Names one erasure case, e.g. `case-20261121-3f9a0c52d1e84b07`.
    CaseId, "case id", 64, "1 to 64 of a-z, 0-9 and -", |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'
);

/// Amazon's clear order id (`3-7-7` digits for retail orders). It identifies a purchase and so a person: it never prints,
/// never serialises and is wiped on drop; everything outside memory carries its [`EntityToken`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OrderId(String);

impl OrderId {
    /// Takes `text` if it can be an order id: 1 to 64 visible ASCII characters.
    ///
    /// # Errors
    /// [`IdError`] without the value.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        if text.is_empty() || text.len() > 64 || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(IdError { what: "order id", rule: "1 to 64 visible ASCII characters" });
        }
        Ok(Self(text.to_owned()))
    }

    /// The clear id; only the client's request, tokenising and sealing may look at it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OrderId(..)")
    }
}

impl Drop for OrderId {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// The value of each lower-case hex digit; 0xff for other bytes.
const DIGITS: [u8; 256] = {
    let mut values = [0xff; 256];
    let mut value = 0;
    while value < 16 {
        #[expect(clippy::indexing_slicing, reason = "a constant: checked while compiling")]
        {
            values[b"0123456789abcdef"[value as usize] as usize] = value;
        }
        value += 1;
    }
    values
};

/// Reads as many bytes as there are from lower-case hex; whether it was that, and as long.
fn read_hex(text: &[u8], bytes: &mut [u8]) -> bool {
    let digit = |at: u8| DIGITS.get(usize::from(at)).copied().unwrap_or(0xff);
    let mut bad = 0;
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = *pair else { return false };
        let (high, low) = (digit(high), digit(low));
        bad |= high | low;
        *byte = high << 4 | (low & 15);
    }
    bad < 16 && text.len() == bytes.len() * 2
}

/// The lower-case hex form of `bytes`, in `text`, which is twice as long.
fn hex_text<'t>(bytes: &[u8], text: &'t mut [u8]) -> &'t str {
    // The lengths fit, the one thing that can fail here, and digits are text.
    _ = hex::encode_to_slice(bytes, text);
    std::str::from_utf8(text).unwrap_or_default()
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $what:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Reads the lower-case hex form.
            ///
            /// # Errors
            /// [`IdError`] where `text` is not that many lower-case hex digits.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0u8; $len];
                if read_hex(text.as_bytes(), &mut bytes) { Ok(Self(bytes)) } else { Err(IdError { what: $what, rule: $rule }) }
            }

            /// Appends the lower-case hex form.
            pub fn push_hex(&self, out: &mut String) {
                out.push_str(hex_text(&self.0, &mut [0; $len * 2]));
            }

            /// Lower-case hex.
            #[must_use]
            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(hex_text(&self.0, &mut [0; $len * 2]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::parse(text)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// The pseudonym of an order, an order item, a package or an inventory level: the first 128 bits of an HMAC-SHA256 under the
    /// seller's token key. Until the seller leaves it is a pseudonym, not anonymous.
    EntityToken, 16, "token", "32 lower-case hex digits"
);
hex_id!(
    /// Names a data key; random, so it says nothing of whom the key is for.
    KeyId, 16, "key id", "32 lower-case hex digits"
);
hex_id!(
    /// What the erased ledger keeps of a subject: HMAC-SHA256 of seller and clear id under the seller's ledger key.
    Fingerprint, 32, "fingerprint", "64 lower-case hex digits"
);

/// Names one version of one entity: a UUIDv8 made from an HMAC, so the same version gets the same id whichever crash or
/// operation brought it (DESIGN section 2, rule 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub uuid::Uuid);

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl FromStr for EventId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        uuid::Uuid::parse_str(text).map(Self).map_err(|_| IdError { what: "event id", rule: "a hyphenated UUID" })
    }
}

/// A partition number, from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub i32);

/// An offset: always the *next* to read or write where one is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Offset(pub i64);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_id_never_prints() {
        let id = OrderId::parse("111-2222222-3333333").unwrap();
        assert_eq!(format!("{id:?}"), "OrderId(..)");
    }

    #[test]
    fn a_bad_id_is_named_without_its_value() {
        let error = SellerId::parse("Jane Doe").unwrap_err().to_string();
        assert!(error.contains("seller id") && !error.contains("Jane"), "{error}");
    }

    #[test]
    fn hex_ids_round_trip_and_refuse_upper_case() {
        let token = EntityToken([0xab; 16]);
        assert_eq!(EntityToken::parse(&token.to_string()).unwrap(), token);
        assert!(EntityToken::parse(&token.to_string().to_uppercase()).is_err());
        let mut text = "x".to_owned();
        token.push_hex(&mut text);
        assert_eq!(text, format!("x{}", token.to_hex()));
        for bad in ["", "ab", &"ab".repeat(15), &"ab".repeat(17), &"a".repeat(31), &"g0".repeat(16), &"0g".repeat(16), &"ä".repeat(16)] {
            assert!(EntityToken::parse(bad).is_err(), "{bad}");
        }
    }
}
