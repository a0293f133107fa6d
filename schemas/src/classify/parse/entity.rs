//! One entity of the answer: its identity and its two halves, once all of it has been read.

use zeroize::Zeroize;

use super::{Parsed, Parser, Scratch, Span, decoded, wipe};
use crate::catalogue::{CLEAR, Capture, EntityKind, LEFT_OUT, NodeId, TokenKind, group_bit};
use crate::class::FieldGroup;
use crate::classify::emit::{self, Source};
use crate::classify::{BodyCode, Classified, Identity, RejectCode, Rejected};
use crate::ids::{EntityToken, MarketplaceId, OrderId};
use crate::json::Next;
use crate::key;
use crate::private::Plain;
use crate::time::Timestamp;

/// The two halves of an entity before its identity is known.
struct Halves {
    clear: Vec<u8>,
    payload_sha256: String,
    groups: Vec<(FieldGroup, Plain<Vec<u8>>)>,
    unclassified: Vec<(String, u64)>,
}

impl Halves {
    fn of(self, identity: Identity) -> Classified {
        let Self { clear, payload_sha256, groups, unclassified } = self;
        Classified { identity, clear, payload_sha256, groups, unclassified }
    }
}

/// An inventory level whose page has not told its marketplace yet: it may stand behind the list.
pub(super) struct Waiting {
    index: usize,
    id: [String; 3],
    version: Option<Timestamp>,
    halves: Halves,
}

impl Parser<'_, '_> {
    /// Reads one entity, writes its two halves, and forgets its items.
    pub(super) fn entity(&mut self, next: Next, rule: NodeId, named: NodeId, depth: usize) -> Parsed<u16> {
        let index = self.entities;
        self.entities += 1;
        self.entities_found = true;
        self.at = rule;
        if self.entities > self.limits.entities_max {
            return Err(self.error(BodyCode::TooManyEntities));
        }
        let page_counts = std::mem::take(&mut self.s.counts);
        let (items, side) = (self.s.items.len(), self.s.side.len());
        for capture in [Capture::Id(0), Capture::Id(1), Capture::Id(2), Capture::Version, Capture::Marketplace] {
            if let Some(slot) = self.captures.get_mut(capture.slot()) {
                *slot = None;
            }
        }
        (self.base, self.in_entity) = (items, true);
        let mask = if next == Next::Object {
            self.object(rule, named, Span::default(), depth)?
        } else {
            self.unknown(next, named, Span::default(), depth)?
        };
        let outcome = if next == Next::Object { self.finish_entity(index, items, mask) } else { Err((RejectCode::NotAnObject, None)) };
        if let Err((code, capture)) = outcome {
            let path = self.path_of(rule, capture);
            self.page.rejected.push(Rejected { index, code, path });
        }
        (self.base, self.in_entity) = (0, false);
        self.s.items.truncate(items);
        if let Some(rest) = self.s.side.get_mut(side..) {
            rest.zeroize();
        }
        self.s.side.truncate(side);
        self.s.counts = page_counts;
        self.at = rule;
        Ok(0)
    }

    /// The path of a captured property below the entity at `rule`.
    fn path_of(&self, rule: NodeId, capture: Option<Capture>) -> String {
        let node = capture.map_or_else(|| self.tree.node(rule), |capture| self.tree.capturing(capture));
        node.map_or_else(String::new, |node| node.path.to_string())
    }

    fn finish_entity(&mut self, index: usize, items: usize, mask: u16) -> Result<(), (RejectCode, Option<Capture>)> {
        let id = self.entity_text(Capture::Id(0)).ok_or((RejectCode::NoId, Some(Capture::Id(0))))?;
        let version = self.entity_text(Capture::Version).filter(|text| !text.is_empty()).map(|text| Timestamp::parse(&text)).transpose();
        let version = version.map_err(|_| (RejectCode::BadVersion, Some(Capture::Version)))?;
        match self.catalogue.kind() {
            EntityKind::Order => {
                let parsed = OrderId::parse(&id);
                let mut id = id;
                id.zeroize();
                let id = parsed.map_err(|_| (RejectCode::BadId, Some(Capture::Id(0))))?;
                let source_version = version.ok_or((RejectCode::NoVersion, Some(Capture::Version)))?;
                let marketplace_id = self.entity_text(Capture::Marketplace).map(|text| MarketplaceId::parse(&text)).transpose();
                let marketplace_id = marketplace_id.map_err(|_| (RejectCode::BadMarketplace, Some(Capture::Marketplace)))?;
                let token = self.tokens.token(TokenKind::Order, id.reveal());
                let span = self.captured(Capture::Id(0)).unwrap_or_default();
                let halves = self.halves(items, mask, Some((id.reveal(), span, token)));
                self.page.entities.push(halves.of(Identity::Order { id, token, marketplace_id, source_version }));
            }
            EntityKind::InventoryLevel => {
                let part = |part| self.entity_text(Capture::Id(part)).unwrap_or_default();
                let id = [id, part(1), part(2)];
                let halves = self.halves(items, mask, None);
                self.waiting.push(Waiting { index, id, version, halves });
            }
        }
        Ok(())
    }

    fn entity_text(&self, capture: Capture) -> Option<String> {
        decoded(self.body, &self.s.side, self.captured(capture)?)
    }

    /// Writes both halves of the entity whose items begin at `from`.
    fn halves(&mut self, from: usize, mask: u16, order: Option<(&str, Span, EntityToken)>) -> Halves {
        let Scratch { items, side, out, tokens, .. } = &mut *self.s;
        let source = Source { tree: self.tree, body: self.body, side, items };
        emit::clear(out, source, from, mask, tokens, self.tokens, order);
        let clear = out.clone();
        // It holds nothing personal.
        out.clear();
        let payload_sha256 = hex_digest(&clear);
        let mut groups = Vec::with_capacity((mask & !(CLEAR | LEFT_OUT)).count_ones() as usize);
        for group in FieldGroup::ALL {
            let bit = group_bit(*group);
            if mask & bit != 0 {
                emit::group(out, source, from, bit);
                groups.push((*group, Plain::new(out.clone())));
                wipe(out);
            }
        }
        Halves { clear, payload_sha256, groups, unclassified: self.take_counts() }
    }

    /// Gives the inventory levels their identity, now that the page has been read to its end.
    pub(super) fn identify_waiting(&mut self) -> Parsed<()> {
        let marketplace = self.page_text(Capture::PageMarketplace)?;
        let marketplace = marketplace.map(|text| MarketplaceId::parse(&text)).transpose().map_err(|_| self.error(BodyCode::BadPage))?;
        for Waiting { index, id: [sku, fnsku, condition], version, halves } in std::mem::take(&mut self.waiting) {
            let Some(marketplace_id) = marketplace.clone() else {
                let path = self.tree.capturing(Capture::PageMarketplace).map_or_else(String::new, |node| node.path.to_string());
                self.page.rejected.push(Rejected { index, code: RejectCode::NoMarketplace, path });
                continue;
            };
            let joined = key::join([marketplace_id.as_str(), &sku, &fnsku, &condition]);
            let token = self.tokens.token(TokenKind::InventoryLevel, &joined);
            self.page.entities.push(halves.of(Identity::InventoryLevel { token, marketplace_id, source_version: version }));
        }
        self.page.rejected.sort_by_key(|rejected| rejected.index);
        Ok(())
    }
}

/// SHA-256 as lower-case hex; written at once, where `hex::encode` collects digit by digit.
fn hex_digest(clear: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, clear);
    let mut text = [0u8; 64];
    // 32 bytes always fit 64 digits.
    _ = hex::encode_to_slice(digest.as_ref(), &mut text);
    String::from_utf8_lossy(&text).into_owned()
}
