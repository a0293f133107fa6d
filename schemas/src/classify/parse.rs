//! The one pass over the body: JSON tokens become a flat list of items, each with where it goes.

mod entity;

use zeroize::Zeroize;

use self::entity::Waiting;
use super::emit::{self, Source, TokenCache};
use super::{BodyCode, BodyError, Limits, Page, Tokens};
use crate::catalogue::{Capture, Catalogue, Names, NodeId, ROOT, Shape, Switch, TokenKind, Tree, Type, UNCLASSIFIED};
use crate::json::{self, Fault, Json, JsonError, Next, Quoted};
use crate::private::Plain;
use crate::time::Timestamp;

/// No node: below here nothing is known.
pub(super) const UNKNOWN: NodeId = NodeId::MAX;

/// Text in the body, or, where it had escapes, in [`Scratch::side`]; in both as it is written between quotes in canonical JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    /// The length, with the highest bit set for the side buffer.
    len: u32,
}

const SIDE: u32 = 1 << 31;

/// Room for one half of an entity, in bytes. Chosen: three times a large order.
const OUT_BYTES: usize = 64 * 1024;
/// Room for an entity's strings with escapes, in bytes. Chosen: most orders have none.
const SIDE_BYTES: usize = 8 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Null, true, false or a number: written as fetched.
    Bare,
    String,
    Array,
    Object,
}

/// A value of the answer. Items stand in the order of the answer, so the children of one follow it up to its `end`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) kind: Kind,
    pub(super) mask: u16,
    /// The node whose name it has; [`UNKNOWN`] for a name no rule knows, which then stands in `name`.
    pub(super) node: NodeId,
    /// The token that stands for it in the clear part.
    pub(super) token: Option<TokenKind>,
    pub(super) end: u32,
    pub(super) name: Span,
    pub(super) text: Span,
}

/// Buffers kept from answer to answer.
#[derive(Default)]
pub(super) struct Scratch {
    items: Vec<Item>,
    side: Vec<u8>,
    tape: Vec<u8>,
    pub(super) out: Vec<u8>,
    counts: Vec<(NodeId, u64)>,
    tokens: TokenCache,
}

impl Scratch {
    /// Wipes every fetched value.
    pub(super) fn wipe(&mut self) {
        self.items.clear();
        self.counts.clear();
        wipe(&mut self.side);
        wipe(&mut self.tape);
        wipe(&mut self.out);
        self.tokens.clear();
    }
}

/// Empties `buffer`. Only its length is wiped, which is short, not its capacity: so each who shortens it wipes what it cuts off.
pub(super) fn wipe(buffer: &mut Vec<u8>) {
    buffer.as_mut_slice().zeroize();
    buffer.clear();
}

/// The text of a span.
#[inline]
pub(super) fn text<'a>(body: &'a [u8], side: &'a [u8], span: Span) -> &'a [u8] {
    let from = if span.len & SIDE == 0 { body } else { side };
    let start = span.start as usize;
    from.get(start..start + (span.len & !SIDE) as usize).unwrap_or_default()
}

/// Keeps a string with escapes: decoded in `tape`, escaped as we write it in `side`. `None` where it is longer than `max` as decoded.
#[cold]
fn keep_escaped(side: &mut Vec<u8>, tape: &mut Vec<u8>, raw: &str, max: usize) -> Option<Span> {
    wipe(tape);
    json::unescape(raw, tape);
    let start = side.len();
    emit::escape(side, tape);
    let span = Span { start: u32::try_from(start).unwrap_or_default(), len: u32::try_from(side.len() - start).unwrap_or_default() | SIDE };
    (tape.len() <= max).then_some(span)
}

struct Parser<'a, 'j> {
    json: Json<'j>,
    body: &'j [u8],
    catalogue: &'a Catalogue,
    tree: &'a Tree,
    limits: &'a Limits,
    tokens: &'a dyn Tokens,
    s: &'a mut Scratch,
    page: Page,
    waiting: Vec<Waiting>,
    captures: [Option<Span>; Capture::SLOTS],
    /// The last known property, for errors.
    at: NodeId,
    /// Where the current entity's items begin; 0 outside.
    base: usize,
    in_entity: bool,
    entities: usize,
    entities_found: bool,
}

/// Boxed: a result then travels in registers, and errors are rare.
type Parsed<T> = Result<T, Box<BodyError>>;

pub(super) fn page(catalogue: &Catalogue, body: &[u8], tokens: &dyn Tokens, limits: &Limits, s: &mut Scratch) -> Result<Page, BodyError> {
    let root = "page";
    if body.len() > limits.body_bytes_max.min(SIDE as usize / 8) {
        return Err(BodyError::at(BodyCode::TooLarge, &[], body.len(), root));
    }
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        Err(error) => return Err(BodyError::at(BodyCode::NotUtf8, body, error.valid_up_to(), root)),
    };
    // A buffer that grows leaves its old bytes behind, unwiped: begin with room for any usual order.
    s.out.reserve(OUT_BYTES);
    s.side.reserve(SIDE_BYTES);
    s.tape.reserve(SIDE_BYTES);
    let mut parser = Parser {
        json: Json::new(text),
        body,
        catalogue,
        tree: &catalogue.tree,
        limits,
        tokens,
        s,
        page: Page::default(),
        waiting: Vec::new(),
        captures: [None; Capture::SLOTS],
        at: ROOT,
        base: 0,
        in_entity: false,
        entities: 0,
        entities_found: false,
    };
    match parser.whole() {
        Ok(()) => Ok(parser.page),
        Err(error) => Err(*error),
    }
}

impl Parser<'_, '_> {
    #[cold]
    fn error(&self, code: BodyCode) -> Box<BodyError> {
        self.error_at(code, self.json.at())
    }

    #[cold]
    fn error_at(&self, code: BodyCode, offset: usize) -> Box<BodyError> {
        let path = self.tree.node(self.at).map_or("page", |node| &node.path);
        Box::new(BodyError::at(code, self.body, offset, path))
    }

    #[cold]
    fn syntax(&self, error: JsonError) -> Box<BodyError> {
        let code = match error.fault {
            Fault::Truncated => BodyCode::Truncated,
            Fault::Trailing => BodyCode::TrailingBytes,
            Fault::TooDeep => BodyCode::TooDeep,
            Fault::Syntax => BodyCode::NotJson,
        };
        self.error_at(code, error.at as usize)
    }

    fn whole(&mut self) -> Parsed<()> {
        let next = self.json.peek().map_err(|e| self.syntax(e))?;
        let mask = self.value(next, ROOT, UNKNOWN, Span::default(), 1)?;
        self.at = ROOT;
        self.json.end().map_err(|e| self.syntax(e))?;
        if !self.entities_found {
            return Err(self.error(BodyCode::NoEntities));
        }
        self.page.next_token = self.page_text(Capture::NextToken)?;
        if let Some(end) = self.page_text(Capture::WindowEnd)? {
            self.page.window_end = Some(Timestamp::parse(&end).map_err(|_| self.error(BodyCode::BadPage))?);
        }
        self.identify_waiting()?;
        if mask & UNCLASSIFIED != 0 {
            let Scratch { items, side, out, .. } = &mut *self.s;
            emit::group(out, Source { tree: self.tree, body: self.body, side, items }, 0, UNCLASSIFIED);
            self.page.leftover = Some(Plain::new(out.clone()));
            wipe(out);
        }
        self.page.unclassified = self.take_counts();
        Ok(())
    }

    /// One of the page's own strings, as text; an empty one is as wrong as one of another type.
    fn page_text(&self, capture: Capture) -> Parsed<Option<String>> {
        let Some(span) = self.captured(capture) else { return Ok(None) };
        match decoded(self.body, &self.s.side, span) {
            Some(text) if !text.is_empty() => Ok(Some(text)),
            _ => Err(self.error(BodyCode::BadPage)),
        }
    }

    fn captured(&self, capture: Capture) -> Option<Span> {
        self.captures.get(capture.slot()).copied().flatten()
    }

    fn take_counts(&mut self) -> Vec<(String, u64)> {
        let tree = self.tree;
        self.s
            .counts
            .drain(..)
            .map(|(id, count)| (tree.node(id).map_or_else(String::new, |node| format!("{}.*", node.path)), count))
            .collect()
    }

    /// Counts a value that no rule classifies, under the last known property.
    #[cold]
    fn unclassified(&mut self, at: NodeId) {
        match self.s.counts.iter_mut().find(|(id, _)| *id == at) {
            Some((_, count)) => *count += 1,
            None => self.s.counts.push((at, 1)),
        }
    }

    #[inline]
    fn push(&mut self, item: Item) -> Parsed<usize> {
        let index = self.s.items.len();
        if index - self.base >= self.limits.values_max {
            return Err(self.error(BodyCode::TooManyValues));
        }
        self.s.items.push(item);
        Ok(index)
    }

    #[inline]
    fn close(&mut self, index: usize, mask: u16) {
        let end = u32::try_from(self.s.items.len()).unwrap_or(u32::MAX);
        if let Some(item) = self.s.items.get_mut(index) {
            item.end = end;
            item.mask = mask;
        }
    }

    /// Reads one value by the rules at `rule` ([`UNKNOWN`]: none) and returns where its content goes.
    fn value(&mut self, next: Next, rule: NodeId, named: NodeId, name: Span, depth: usize) -> Parsed<u16> {
        let Some(node) = self.tree.node(rule) else { return self.unknown(next, named, name, depth) };
        if node.entity && !self.in_entity {
            return self.entity(next, rule, named, depth);
        }
        match (&node.shape, next) {
            (_, Next::Null) => self.bare(next, named, name, node.mask),
            (Shape::Leaf(Type::String), Next::String) => {
                let span = self.string()?;
                if let Some(capture) = node.capture
                    && let Some(slot) = self.captures.get_mut(capture.slot())
                {
                    *slot = Some(span);
                }
                let end = self.next();
                self.push(Item { kind: Kind::String, mask: node.mask, node: named, token: node.token, end, name, text: span })?;
                Ok(node.mask)
            }
            (Shape::Leaf(Type::Number), Next::Number) => self.bare(next, named, name, node.mask),
            (Shape::Leaf(Type::Boolean), Next::Bool) => self.bare(next, named, name, node.mask),
            (Shape::Object(_), Next::Object) => self.object(rule, named, name, depth),
            (Shape::Array(element), Next::Array) => self.array(*element, node.mask, named, name, depth),
            // What does not even begin a value is left to `unknown`, which says so.
            _ if node.page && next != Next::Nothing => {
                self.at = rule;
                Err(self.error(BodyCode::BadPage))
            }
            _ => {
                self.unclassified(rule);
                self.unknown(next, named, name, depth)
            }
        }
    }

    #[inline]
    fn string(&mut self) -> Parsed<Span> {
        let quoted = self.json.string().map_err(|e| self.syntax(e))?;
        self.keep(quoted)
    }

    /// Keeps a string: in place where the body has it as it is, else as it is written in canonical JSON.
    #[inline]
    fn keep(&mut self, quoted: Quoted) -> Parsed<Span> {
        let max = self.limits.string_bytes_max;
        let span = if quoted.is_escaped() {
            keep_escaped(&mut self.s.side, &mut self.s.tape, self.json.raw(quoted), max)
        } else {
            // The limit on bodies keeps offsets and lengths below 2^31.
            (quoted.bytes() as usize <= max).then_some(Span { start: quoted.at(), len: quoted.bytes() })
        };
        span.ok_or_else(|| self.error(BodyCode::StringTooLong))
    }

    /// Where the item after the next one will stand: the end of a value without children.
    #[inline]
    fn next(&self) -> u32 {
        u32::try_from(self.s.items.len() + 1).unwrap_or(u32::MAX)
    }

    #[inline]
    fn leaf(&mut self, kind: Kind, node: NodeId, name: Span, text: Span, mask: u16) -> Parsed<u16> {
        let end = self.next();
        self.push(Item { kind, mask, node, token: None, end, name, text })?;
        Ok(mask)
    }

    /// Null, true, false or a number.
    #[inline]
    fn bare(&mut self, next: Next, node: NodeId, name: Span, mask: u16) -> Parsed<u16> {
        let start = self.json.at();
        let read = match next {
            Next::Null | Next::Bool => self.json.word(),
            // What begins no value is not one either as a number.
            _ => self.json.number().map(|_| ()),
        };
        read.map_err(|e| self.syntax(e))?;
        let len = self.json.at() - start;
        let span = Span { start: u32::try_from(start).unwrap_or_default(), len: u32::try_from(len).unwrap_or_default() };
        self.leaf(Kind::Bare, node, name, span, mask)
    }

    fn object(&mut self, rule: NodeId, named: NodeId, name: Span, depth: usize) -> Parsed<u16> {
        self.at = rule;
        if depth > self.limits.depth_max {
            return Err(self.error(BodyCode::TooDeep));
        }
        let tree = self.tree;
        let Some(node) = tree.node(rule) else { return Ok(0) };
        let Shape::Object(names) = &node.shape else { return Ok(0) };
        let index = self.push(Item { kind: Kind::Object, mask: 0, node: named, token: None, end: 0, name, text: Span::default() })?;
        let mut mask = 0;
        let mut seen = 0u32;
        let mut key = self.json.object().map_err(|e| self.syntax(e))?;
        while let Some(quoted) = key {
            let (child, unknown) = match names.find(self.json.raw(quoted)) {
                Some(child) => (child, Span::default()),
                None => self.other_name(names, quoted)?,
            };
            let rank = tree.node(child).map(|child| 1u32 << (child.rank % 32));
            let again = rank.is_some_and(|bit| seen & bit != 0);
            seen |= rank.unwrap_or_default();
            let next = self.json.peek().map_err(|e| self.syntax(e))?;
            if rank.is_none() || again {
                mask |= self.outside(next, if again { child } else { rule }, child, unknown, depth + 1)?;
            } else {
                mask |= self.value(next, child, child, unknown, depth + 1)?;
            }
            self.at = rule;
            key = self.json.member().map_err(|e| self.syntax(e))?;
        }
        self.close(index, mask);
        if let Some(switch) = &node.switch
            && !self.holds(index, switch)
        {
            mask = self.turn(index, switch);
        }
        Ok(mask)
    }

    /// A name that is not there as it is written: one we know with needless escapes, or one we do not know.
    #[cold]
    fn other_name(&mut self, names: &Names, quoted: Quoted) -> Parsed<(NodeId, Span)> {
        let span = self.keep(quoted)?;
        let known = std::str::from_utf8(&self.s.tape).ok().filter(|_| quoted.is_escaped()).and_then(|name| names.find(name));
        Ok(known.map_or((UNKNOWN, span), |child| (child, Span::default())))
    }

    /// A member without a rule, or one that was there before.
    #[cold]
    fn outside(&mut self, next: Next, known: NodeId, named: NodeId, name: Span, depth: usize) -> Parsed<u16> {
        if named != UNKNOWN && self.tree.node(named).is_some_and(|node| node.page || node.entity) {
            self.at = named;
            return Err(self.error(BodyCode::DuplicatePage));
        }
        self.unclassified(known);
        self.unknown(next, named, name, depth)
    }

    fn array(&mut self, element: NodeId, home: u16, named: NodeId, name: Span, depth: usize) -> Parsed<u16> {
        if depth > self.limits.depth_max {
            return Err(self.error(BodyCode::TooDeep));
        }
        if !self.in_entity && self.tree.node(element).is_some_and(|node| node.entity) {
            self.entities_found = true;
        }
        let index = self.push(Item { kind: Kind::Array, mask: 0, node: named, token: None, end: 0, name, text: Span::default() })?;
        let mut mask = 0;
        let mut next = self.json.array().map_err(|e| self.syntax(e))?;
        if next.is_none() {
            mask = home;
        }
        while let Some(found) = next {
            mask |= self.value(found, element, UNKNOWN, Span::default(), depth + 1)?;
            next = self.json.element().map_err(|e| self.syntax(e))?;
        }
        self.close(index, mask);
        Ok(mask)
    }

    /// Reads any value whole into the unclassified group.
    fn unknown(&mut self, next: Next, named: NodeId, name: Span, depth: usize) -> Parsed<u16> {
        match next {
            Next::String => {
                let span = self.string()?;
                self.leaf(Kind::String, named, name, span, UNCLASSIFIED)
            }
            Next::Array | Next::Object => {
                if depth > self.limits.depth_max {
                    return Err(self.error(BodyCode::TooDeep));
                }
                let kind = if next == Next::Array { Kind::Array } else { Kind::Object };
                let index = self.push(Item { kind, mask: 0, node: named, token: None, end: 0, name, text: Span::default() })?;
                if kind == Kind::Array {
                    self.unknown_elements(depth)?
                } else {
                    self.unknown_members(depth)?
                }
                self.close(index, UNCLASSIFIED);
                Ok(UNCLASSIFIED)
            }
            _ => self.bare(next, named, name, UNCLASSIFIED),
        }
    }

    fn unknown_elements(&mut self, depth: usize) -> Parsed<()> {
        let mut next = self.json.array().map_err(|e| self.syntax(e))?;
        while let Some(found) = next {
            self.unknown(found, UNKNOWN, Span::default(), depth + 1)?;
            next = self.json.element().map_err(|e| self.syntax(e))?;
        }
        Ok(())
    }

    fn unknown_members(&mut self, depth: usize) -> Parsed<()> {
        let mut key = self.json.object().map_err(|e| self.syntax(e))?;
        while let Some(quoted) = key {
            let name = self.keep(quoted)?;
            let next = self.json.peek().map_err(|e| self.syntax(e))?;
            self.unknown(next, UNKNOWN, name, depth + 1)?;
            key = self.json.member().map_err(|e| self.syntax(e))?;
        }
        Ok(())
    }

    /// Whether the deciding property of the object at `index` is given once, as a string, with one of the switch's values.
    fn holds(&self, index: usize, switch: &Switch) -> bool {
        let mut held = 0;
        for (_, child) in emit::children(&self.s.items, index).filter(|(_, child)| child.node == switch.property) {
            let value = text(self.body, &self.s.side, child.text);
            if child.kind != Kind::String || child.mask & UNCLASSIFIED != 0 || !switch.values.iter().any(|v| v.as_bytes() == value) {
                return false;
            }
            held += 1;
        }
        held == 1
    }

    /// Sends what the switch is about to its group, save what is unclassified, and returns where the object's content then goes.
    fn turn(&mut self, index: usize, switch: &Switch) -> u16 {
        let mut mask = 0;
        let members: smallvec::SmallVec<[(usize, usize, NodeId); 16]> =
            emit::children(&self.s.items, index).map(|(at, child)| (at, child.end as usize, child.node)).collect();
        for (from, to, node) in members {
            let concerned = switch.only.is_empty() || switch.only.contains(&node);
            for item in self.s.items.get_mut(from..to).unwrap_or_default() {
                if concerned && item.mask & !UNCLASSIFIED != 0 {
                    item.mask = (item.mask & UNCLASSIFIED) | switch.otherwise;
                }
            }
            mask |= self.s.items.get(from).map_or(0, |item| item.mask);
        }
        self.close(index, mask);
        mask
    }
}

/// The decoded text of a span: canonical escapes undone.
pub(super) fn decoded(body: &[u8], side: &[u8], span: Span) -> Option<String> {
    let raw = std::str::from_utf8(text(body, side, span)).ok()?;
    if span.len & SIDE == 0 {
        return Some(raw.to_owned());
    }
    // Escapes only make a text longer: the buffer does not grow, and leaves nothing behind.
    let mut decoded = Vec::with_capacity(raw.len());
    json::unescape(raw, &mut decoded);
    String::from_utf8(decoded).ok()
}
