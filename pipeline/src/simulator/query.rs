//! Query parameters and page tokens.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use sunder_schemas::time::Timestamp;

use super::answer::ApiError;

/// The parameters of one call, lists split at commas.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes the text after the question mark, once.
    pub(super) fn parse(text: Option<&str>) -> Self {
        let url = reqwest::Url::parse(&format!("http://query/?{}", text.unwrap_or_default()));
        Self(url.map(|url| url.query_pairs().into_owned().collect()).unwrap_or_default())
    }

    /// The one value of a parameter; an empty one counts as left out.
    pub(super) fn one(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut values = self.0.iter().filter(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str());
        let first = values.next();
        if values.next().is_some() { Err(ApiError::input("A parameter was given twice.")) } else { Ok(first) }
    }

    /// The values of a list, given comma-separated, repeated, or both.
    pub(super) fn list(&self, name: &str) -> Vec<&str> {
        let given = self.0.iter().filter(|(key, _)| key == name);
        given.flat_map(|(_, value)| value.split(',')).map(str::trim).filter(|value| !value.is_empty()).collect()
    }

    /// A time in ISO 8601, in milliseconds.
    pub(super) fn time(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let time = Timestamp::parse(text).map_err(|_| ApiError::input("A date is not in ISO 8601 format."))?;
        Ok(Some(time.0))
    }
}

/// Where a listing goes on, and for which request it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageToken {
    /// The seller it was given to.
    pub(super) seller: u32,
    /// Fingerprint of the filters.
    pub(super) filters: u64,
    /// When this token was given.
    pub(super) issued: i64,
    /// The instant whose state the listing shows.
    pub(super) as_of: i64,
    /// The listing's upper bound.
    pub(super) until: i64,
    /// The last entry already given.
    pub(super) after: (i64, u32),
    /// The entry before it, to give one again.
    pub(super) before: (i64, u32),
}

/// Digest bytes in a token (chosen: nobody attacks a simulator, but a spoiled token must be refused).
const MAC_LEN: usize = 8;
/// Numbers in a token.
const NUMBERS: usize = 9;

impl PageToken {
    /// Opaque text under `key`.
    pub(super) fn seal(&self, key: &hmac::Key) -> String {
        let numbers: [i64; NUMBERS] = [
            i64::from(self.seller),
            self.filters.cast_signed(),
            self.issued,
            self.as_of,
            self.until,
            self.after.0,
            i64::from(self.after.1),
            self.before.0,
            i64::from(self.before.1),
        ];
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
        let mac = hmac::sign(key, &bytes);
        bytes.extend(mac.as_ref().iter().take(MAC_LEN));
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a token made with `key`.
    pub(super) fn open(text: &str, key: &hmac::Key) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (numbers, mac) = bytes.split_at_checked(NUMBERS * 8)?;
        if hmac::sign(key, numbers).as_ref().get(..MAC_LEN)? != mac {
            return None;
        }
        let read: Vec<i64> = numbers.chunks_exact(8).filter_map(|b| b.try_into().ok().map(i64::from_be_bytes)).collect();
        let [seller, filters, issued, as_of, until, after_at, after_order, before_at, before_order] = read.try_into().ok()?;
        Some(Self {
            seller: u32::try_from(seller).ok()?,
            filters: filters.cast_unsigned(),
            issued,
            as_of,
            until,
            after: (after_at, u32::try_from(after_order).ok()?),
            before: (before_at, u32::try_from(before_order).ok()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tokens_round_trip_and_spoiled_ones_are_refused() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"seed");
        let token = PageToken { seller: 3, filters: u64::MAX, issued: -1, as_of: 5, until: 9, after: (7, 8), before: (6, 7) };
        let text = token.seal(&key);
        assert_eq!(PageToken::open(&text, &key), Some(token));
        assert_eq!(PageToken::open(&text, &hmac::Key::new(hmac::HMAC_SHA256, b"other")), None);
        for at in 0..text.len() {
            let mut spoiled = text.clone().into_bytes();
            spoiled[at] = if spoiled[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(PageToken::open(&String::from_utf8(spoiled).unwrap(), &key), None);
        }
    }

    #[test]
    fn parameters_are_decoded_once_and_lists_split() {
        let query = Query::parse(Some("marketplaceIds=A,B&marketplaceIds=C&sku=A%2FB%2BC%2525&t=2026-01-01T00%3A00%3A00Z&t2=x&e="));
        assert_eq!(query.list("marketplaceIds"), ["A", "B", "C"]);
        assert_eq!(query.one("sku").unwrap(), Some("A/B+C%25"));
        assert!(query.one("marketplaceIds").is_err());
        assert!(query.time("t").unwrap().is_some());
        assert!(query.time("t2").is_err());
        assert_eq!(query.one("e").unwrap(), None);
    }
}
