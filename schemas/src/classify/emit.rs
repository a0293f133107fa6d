//! Writes the items of an entity as JSON: once for the clear part, sorted and tokenised, and once for each group, as fetched.

use smallvec::SmallVec;

use super::Tokens;
use super::parse::{Item, Kind, Span, decoded, text};
use crate::catalogue::{CLEAR, MEMBERS_MAX, TokenKind, Tree};
use crate::ids::EntityToken;
use crate::key;

/// What is written from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) tree: &'a Tree,
    pub(super) body: &'a [u8],
    pub(super) side: &'a [u8],
    pub(super) items: &'a [Item],
}

/// Tokens of the current entity; most are asked for more than once. Chosen: 16 cover nearly every order, and keep the search short.
#[derive(Default)]
pub(super) struct TokenCache(SmallVec<[(TokenKind, Span, EntityToken); 16]>);

impl TokenCache {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The children of the item at `index`, each with its index.
pub(super) fn children(items: &[Item], index: usize) -> impl Iterator<Item = (usize, &Item)> {
    let end = items.get(index).map_or(0, |item| item.end as usize);
    let mut next = index + 1;
    std::iter::from_fn(move || {
        let at = next;
        let item = items.get(at).filter(|_| at < end)?;
        next = item.end as usize;
        Some((at, item))
    })
}

/// Writes `text` as it stands between quotes in canonical JSON: only quote, backslash and control characters are escaped.
pub(super) fn escape(out: &mut Vec<u8>, text: &[u8]) {
    for byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            0x00..0x20 => {
                out.extend_from_slice(b"\\u00");
                out.push(b'0' + (byte >> 4));
                out.push(b"0123456789abcdef".get(usize::from(byte & 15)).copied().unwrap_or(b'0'));
            }
            _ => out.push(*byte),
        }
    }
}

impl Source<'_> {
    fn text(&self, span: Span) -> &[u8] {
        text(self.body, self.side, span)
    }

    fn quoted(&self, out: &mut Vec<u8>, span: Span) {
        out.push(b'"');
        out.extend_from_slice(self.text(span));
        out.push(b'"');
    }

    fn key(&self, out: &mut Vec<u8>, item: &Item) {
        match self.tree.node(item.node) {
            Some(node) => out.extend_from_slice(node.key.as_bytes()),
            None => {
                self.quoted(out, item.name);
                out.push(b':');
            }
        }
    }
}

/// Writes what of the item at `index` belongs to the group with `bit`, in the order it was fetched in.
pub(super) fn group(out: &mut Vec<u8>, source: Source<'_>, index: usize, bit: u16) {
    let Some(item) = source.items.get(index) else { return };
    match item.kind {
        Kind::Bare => out.extend_from_slice(source.text(item.text)),
        Kind::String => source.quoted(out, item.text),
        Kind::Object => {
            out.push(b'{');
            let mut first = true;
            for (at, child) in children(source.items, index).filter(|(_, child)| child.mask & bit != 0) {
                if !std::mem::take(&mut first) {
                    out.push(b',');
                }
                source.key(out, child);
                group(out, source, at, bit);
            }
            out.push(b'}');
        }
        Kind::Array => {
            out.push(b'[');
            for (nth, (at, child)) in children(source.items, index).enumerate() {
                if nth > 0 {
                    out.push(b',');
                }
                if child.mask & bit == 0 {
                    out.extend_from_slice(b"{}");
                } else {
                    group(out, source, at, bit);
                }
            }
            out.push(b']');
        }
    }
}

struct Clear<'a> {
    source: Source<'a>,
    cache: &'a mut TokenCache,
    tokens: &'a dyn Tokens,
    order: &'a str,
}

/// Writes the clear part of the entity at `index`; `order` is an order's id, the place it was read from, and its token.
pub(super) fn clear(
    out: &mut Vec<u8>,
    source: Source<'_>,
    index: usize,
    mask: u16,
    cache: &mut TokenCache,
    tokens: &dyn Tokens,
    order: Option<(&str, Span, EntityToken)>,
) {
    cache.clear();
    if let Some((_, span, token)) = order {
        cache.0.push((TokenKind::Order, span, token));
    }
    if mask & CLEAR == 0 {
        out.extend_from_slice(b"{}");
        return;
    }
    Clear { source, cache, tokens, order: order.map_or("", |(id, _, _)| id) }.value(out, index);
}

impl Clear<'_> {
    fn value(&mut self, out: &mut Vec<u8>, index: usize) {
        let source = self.source;
        let Some(item) = source.items.get(index) else { return };
        match item.kind {
            Kind::Bare => out.extend_from_slice(source.text(item.text)),
            Kind::String => match item.token {
                None => source.quoted(out, item.text),
                Some(kind) => self.token(out, kind, item.text),
            },
            Kind::Object => self.object(out, index),
            Kind::Array => {
                out.push(b'[');
                for (nth, (at, child)) in children(source.items, index).enumerate() {
                    if nth > 0 {
                        out.push(b',');
                    }
                    if child.mask & CLEAR == 0 {
                        out.extend_from_slice(b"{}");
                    } else {
                        self.value(out, at);
                    }
                }
                out.push(b']');
            }
        }
    }

    /// Members by the bytes of their names: each has a rank among its siblings, so a slot per rank sorts them.
    fn object(&mut self, out: &mut Vec<u8>, index: usize) {
        let source = self.source;
        let mut slots = [0u32; MEMBERS_MAX];
        let mut used = 0u32;
        for (at, child) in children(source.items, index).filter(|(_, child)| child.mask & CLEAR != 0) {
            let Some(node) = source.tree.node(child.node) else { continue };
            if let (Some(slot), Ok(at)) = (slots.get_mut(usize::from(node.rank)), u32::try_from(at)) {
                *slot = at;
                used |= 1 << (node.rank % 32);
            }
        }
        out.push(b'{');
        let mut first = true;
        while used != 0 {
            let rank = used.trailing_zeros() as usize;
            used &= used - 1;
            let Some(at) = slots.get(rank).map(|at| *at as usize) else { continue };
            let Some(child) = source.items.get(at) else { continue };
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            source.key(out, child);
            self.value(out, at);
        }
        out.push(b'}');
    }

    fn token(&mut self, out: &mut Vec<u8>, kind: TokenKind, span: Span) {
        let source = self.source;
        let raw = source.text(span);
        let known = self.cache.0.iter().find(|(own, at, _)| *own == kind && source.text(*at) == raw).map(|(_, _, token)| *token);
        let token = known.unwrap_or_else(|| {
            let id = decoded(source.body, source.side, span).unwrap_or_default();
            let token = match kind {
                TokenKind::Package => self.tokens.token(kind, &key::join([self.order, &id])),
                TokenKind::Order | TokenKind::OrderItem | TokenKind::InventoryLevel => self.tokens.token(kind, &id),
            };
            if self.cache.0.len() < self.cache.0.inline_size() {
                self.cache.0.push((kind, span, token));
            }
            token
        });
        let mut text = [0u8; 32];
        // 16 bytes always fit 32 digits.
        _ = hex::encode_to_slice(token.0, &mut text);
        out.push(b'"');
        out.extend_from_slice(&text);
        out.push(b'"');
    }
}
