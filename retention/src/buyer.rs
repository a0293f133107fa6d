//! The authorised search for a buyer: which orders of a seller carry this e-mail address or this name?
//!
//! Invariants: a purpose that covers the searched groups and a role that may claim it; the audit event is committed before anything is
//! opened, a second one says how many orders were read and how many matched; what is sought and what is opened is compared in memory
//! and wiped, never written, logged or part of an error; what comes out are pseudonyms.

use std::collections::BTreeSet;

use async_trait::async_trait;
use serde_json::json;
use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, SellerId};
use sunder_schemas::private::Plain;
use zeroize::{Zeroize, Zeroizing};

use crate::audit::{self, AuditEvent, AuditOutcome};
use crate::keydb::on;
use crate::keys::{Context, KeyError, Keyring};
use crate::ledger::SubjectState;
use crate::open::{ReadError, StoredBlock};
use crate::purpose::{Denial, Register, Wish};
use crate::store::StoreError;

/// Blocks that are asked for at once. Chosen: about 1 MB.
const PAGE: usize = 1_000;

/// A store of sealed blocks that can be gone through.
#[async_trait]
pub trait SealedStore: Send + Sync {
    /// The next blocks of `group` of a seller's orders, in the order of their tokens, behind `after`; at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn page(
        &self,
        seller: &SellerId,
        group: FieldGroup,
        after: Option<EntityToken>,
        limit: usize,
    ) -> Result<Vec<(EntityToken, StoredBlock)>, StoreError>;
}

/// Who is sought. Where both are given, both must match: a name alone has namesakes.
pub struct Sought {
    email: Option<Plain<String>>,
    name: Option<Plain<String>>,
}

impl Sought {
    /// By e-mail address, name, or both, as they were typed; `None` where neither says anything.
    #[must_use]
    pub fn new(email: Option<&str>, name: Option<&str>) -> Option<Self> {
        let given = |text: Option<&str>| text.map(normal).filter(|text| !text.is_empty()).map(Plain::new);
        let sought = Self { email: given(email), name: given(name) };
        (sought.email.is_some() || sought.name.is_some()).then_some(sought)
    }

    /// The groups that are read, each with what is sought there.
    fn groups(&self) -> Vec<(FieldGroup, &str)> {
        let email = self.email.as_ref().map(|email| (FieldGroup::BuyerContact, email.reveal().as_str()));
        let name = self.name.as_ref().map(|name| (FieldGroup::BuyerName, name.reveal().as_str()));
        email.into_iter().chain(name).collect()
    }
}

/// How two spellings of the same are made equal: lower case, and one space between words.
fn normal(text: &str) -> String {
    let mut normal = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !normal.is_empty() {
            normal.push(' ');
        }
        normal.extend(word.chars().flat_map(char::to_lowercase));
    }
    normal
}

/// Whether a text anywhere in the JSON of `plain` is `sought`.
fn has(plain: &[u8], sought: &str) -> bool {
    /// How many texts are; every leaf is gone through, so that each is wiped.
    fn within(value: &mut serde_json::Value, sought: &str) -> usize {
        match value {
            serde_json::Value::String(text) => {
                let is_it = *Zeroizing::new(normal(text)) == sought;
                text.zeroize();
                usize::from(is_it)
            }
            serde_json::Value::Array(items) => items.iter_mut().map(|item| within(item, sought)).sum(),
            serde_json::Value::Object(members) => members.values_mut().map(|item| within(item, sought)).sum(),
            serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => 0,
        }
    }
    serde_json::from_slice(plain).is_ok_and(|mut value| within(&mut value, sought) > 0)
}

/// What a search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The orders of the buyer, and how many were looked into.
    Orders {
        /// Their pseudonyms.
        matches: Vec<EntityToken>,
        /// Orders that were opened.
        read: u64,
    },
    /// The wish is not allowed.
    Denied(Denial),
}

/// Searches what `store` has of `seller`'s orders. `wish.fields` is ignored: the groups follow from what is sought.
///
/// # Errors
/// [`SearchError`]; without a committed audit event nothing is opened.
pub async fn search(
    keyring: &Keyring,
    register: &Register,
    wish: &Wish<'_>,
    seller: &SellerId,
    sought: &Sought,
    store: &dyn SealedStore,
) -> Result<Found, SearchError> {
    let wanted = sought.groups();
    let groups: Vec<FieldGroup> = wanted.iter().map(|(group, _)| *group).collect();
    let log = Log { keyring, wish, seller, groups: &groups };
    if let Err(denial) = register.decide(&Wish { fields: Some(&groups), ..wish.clone() }) {
        log.record("search", AuditOutcome::Denied, json!({ "result": denial.as_str() })).await?;
        return Ok(Found::Denied(denial));
    }
    log.record("search", AuditOutcome::Success, json!({ "result": "begun" })).await?;
    let mut matches: Option<BTreeSet<EntityToken>> = None;
    let mut read = 0;
    for (group, text) in wanted {
        let (of_group, looked) = search_group(keyring, seller, group, text, store).await?;
        read += looked;
        matches = Some(match matches {
            None => of_group,
            Some(before) => before.intersection(&of_group).copied().collect(),
        });
    }
    let matches: Vec<EntityToken> = matches.unwrap_or_default().into_iter().collect();
    log.record("search.ended", AuditOutcome::Success, json!({ "read": read, "matches": matches.len() })).await?;
    Ok(Found::Orders { matches, read })
}

async fn search_group(
    keyring: &Keyring,
    seller: &SellerId,
    group: FieldGroup,
    sought: &str,
    store: &dyn SealedStore,
) -> Result<(BTreeSet<EntityToken>, u64), SearchError> {
    let (mut matches, mut read, mut after) = (BTreeSet::new(), 0, None);
    loop {
        let page = store.page(seller, group, after, PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok((matches, read)) };
        after = Some(*last);
        for (token, stored) in page {
            // What was erased meanwhile has no key and no match.
            let SubjectState::Live(key) = keyring.subject(seller, token).await.map_err(ReadError::from)? else { continue };
            let context = Context { seller, entity: token, group, classification: &stored.classification };
            let plain = key.open(&context, stored.block.as_bytes()).map_err(|source| ReadError::Block { group, source })?;
            read += 1;
            if has(plain.reveal(), sought) {
                matches.insert(token);
            }
        }
    }
}

/// Why a search failed.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// A key or a block.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store of blocks.
    #[error(transparent)]
    Store(#[from] StoreError),
}

struct Log<'a> {
    keyring: &'a Keyring,
    wish: &'a Wish<'a>,
    seller: &'a SellerId,
    groups: &'a [FieldGroup],
}

impl Log<'_> {
    async fn record(&self, action: &'static str, outcome: AuditOutcome, mut detail: serde_json::Value) -> Result<(), SearchError> {
        if let Some(detail) = detail.as_object_mut() {
            detail.insert("purpose".to_owned(), json!(crate::open::name_or_mark(self.wish.purpose)));
            detail.insert("role".to_owned(), json!(self.wish.role.map(crate::open::name_or_mark)));
            detail.insert("groups".to_owned(), json!(self.groups));
        }
        let event = AuditEvent { actor: self.wish.os_user.to_owned(), action, object: self.seller.to_string(), outcome, detail };
        let written = async {
            let mut tx = self.keyring.db().begin_write().await?;
            audit::append(&mut tx, self.keyring.now(), &event).await?;
            tx.commit().await.map_err(on("write the audit log"))?;
            Ok::<(), KeyError>(())
        };
        Ok(written.await.map_err(ReadError::from)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_the_same_match_and_parts_of_it_do_not() {
        let sought = Sought::new(Some(" Ada@Example.COM\n"), None).unwrap();
        assert_eq!(sought.groups(), [(FieldGroup::BuyerContact, "ada@example.com")]);
        let json = br#"{"buyer":{"buyerEmail":"ADA@example.com","list":["x"]}}"#;
        assert!(has(json, "ada@example.com"));
        assert!(!has(json, "ada@example") && !has(b"not json", "not json"));
        assert!(has("{\"a\":\"\u{c5}sa  \u{d6}berg\"}".as_bytes(), "\u{e5}sa \u{f6}berg"));
        assert!(Sought::new(Some("  "), None).is_none());
    }
}
