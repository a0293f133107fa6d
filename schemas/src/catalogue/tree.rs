//! The rules of one operation as a tree that a parser walks along with the answer.

use super::file::{self, File, Step};
use super::{CatalogueError, Condition, EntityKind, Place, Rule, TokenKind, Type};
use crate::class::FieldGroup;

/// Where a value goes, as bits: one per field group, then the clear part, then nowhere. A container has those of its content.
pub(crate) type Mask = u16;
/// Goes into the clear part.
pub(crate) const CLEAR: Mask = 1 << 14;
/// Goes nowhere.
pub(crate) const LEFT_OUT: Mask = 1 << 15;
/// Goes into the unclassified group.
pub(crate) const UNCLASSIFIED: Mask = group_bit(FieldGroup::Unclassified);

/// The bit of a field group.
pub(crate) const fn group_bit(group: FieldGroup) -> Mask {
    1 << group as u16
}

const _: () = assert!(FieldGroup::ALL.len() <= 14, "a mask has 14 bits for field groups");

/// Index of a node in [`Tree::nodes`].
pub(crate) type NodeId = u16;
/// The node of the whole answer.
pub(crate) const ROOT: NodeId = 0;
/// Most members of one object in a catalogue: those seen are kept as bits of a `u32`.
pub const MEMBERS_MAX: usize = 32;

/// A value that the classifier remembers while it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capture {
    /// Part of the entity's id: up to three.
    Id(u8),
    /// The source's version, a time.
    Version,
    /// The marketplace, inside the entity.
    Marketplace,
    /// The marketplace, on the page.
    PageMarketplace,
    /// The token of the next page.
    NextToken,
    /// The end of the window the page was asked for.
    WindowEnd,
}

impl Capture {
    /// Number of slots: three of ids, then one of each other.
    pub(crate) const SLOTS: usize = 8;

    /// The slot it is kept in.
    pub(crate) const fn slot(self) -> usize {
        match self {
            Self::Id(part) => part as usize,
            Self::Version => 3,
            Self::Marketplace => 4,
            Self::PageMarketplace => 5,
            Self::NextToken => 6,
            Self::WindowEnd => 7,
        }
    }
}

pub(crate) enum Shape {
    Object(Names),
    Array(NodeId),
    Leaf(Type),
}

/// A conditional rule, compiled.
pub(crate) struct Switch {
    /// The member that decides.
    pub(crate) property: NodeId,
    pub(crate) values: Vec<String>,
    /// The members it is about; empty: all.
    pub(crate) only: Vec<NodeId>,
    pub(crate) otherwise: Mask,
}

pub(crate) struct Node {
    pub(crate) shape: Shape,
    /// Leaf: where it goes. Container: where null or an empty array in its place goes.
    pub(crate) mask: Mask,
    pub(crate) token: Option<TokenKind>,
    pub(crate) capture: Option<Capture>,
    pub(crate) switch: Option<Switch>,
    /// `"name":`, ready to write; empty for elements and the root.
    pub(crate) key: Box<str>,
    /// Place of the name among its siblings, by bytes.
    pub(crate) rank: u8,
    /// Path as reported, e.g. `order.buyer`; never holds a fetched name.
    pub(crate) path: Box<str>,
    /// An element of the answer's list of entities, or the entity itself.
    pub(crate) entity: bool,
    /// Above the entities, or one of the page's own values: what is wrong here is wrong with the whole answer.
    pub(crate) page: bool,
}

pub(crate) struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    #[inline]
    pub(crate) fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(usize::from(id))
    }

    /// The node whose value is remembered as `capture`.
    pub(crate) fn capturing(&self, capture: Capture) -> Option<&Node> {
        self.nodes.iter().find(|node| node.capture == Some(capture))
    }
}

/// The members of an object: found by a hash of length and three letters that is free of collisions for these names.
pub(crate) struct Names {
    members: Box<[(Box<str>, NodeId)]>,
    slots: Box<[u8]>,
    mix: [u32; 4],
}

impl Names {
    fn new(mut members: Vec<(Box<str>, NodeId)>) -> Self {
        members.sort();
        let mut names = Self { members: members.into_boxed_slice(), slots: Box::default(), mix: [0; 4] };
        let count = names.members.len();
        for bits in 3..=8u32 {
            if 1usize << bits < count {
                continue;
            }
            // A fixed sequence of odd multipliers: the same table in every build.
            let mut seed = 0x9E37_79B9u32;
            for _ in 0..400 {
                let mut next = || {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (seed >> 8) | 1
                };
                names.mix = [next(), next(), next(), next()];
                if let Some(slots) = names.fill(1 << bits) {
                    names.slots = slots;
                    return names;
                }
            }
        }
        // No such hash: `find` then compares one by one.
        names
    }

    fn fill(&self, size: usize) -> Option<Box<[u8]>> {
        let mut slots = vec![u8::MAX; size];
        for (rank, (name, _)) in self.members.iter().enumerate() {
            let slot = slots.get_mut(self.slot(name.as_bytes(), size)?)?;
            if *slot != u8::MAX {
                return None;
            }
            *slot = u8::try_from(rank).ok()?;
        }
        Some(slots.into_boxed_slice())
    }

    #[inline]
    fn slot(&self, name: &[u8], size: usize) -> Option<usize> {
        let [a, b, c, d] = self.mix;
        let hash = (name.len() as u64)
            .wrapping_mul(u64::from(a))
            .wrapping_add(u64::from(*name.first()?).wrapping_mul(u64::from(b)))
            .wrapping_add(u64::from(*name.get(name.len() / 2)?).wrapping_mul(u64::from(c)))
            .wrapping_add(u64::from(*name.last()?).wrapping_mul(u64::from(d)));
        usize::try_from((hash >> 12) & (size as u64 - 1)).ok()
    }

    /// The member called `name`.
    #[inline]
    pub(crate) fn find(&self, name: &str) -> Option<NodeId> {
        if self.slots.is_empty() {
            return self.members.iter().find(|(own, _)| **own == *name).map(|(_, id)| *id);
        }
        let rank = *self.slots.get(self.slot(name.as_bytes(), self.slots.len())?)?;
        let (own, id) = self.members.get(usize::from(rank))?;
        same(own.as_bytes(), name.as_bytes()).then_some(*id)
    }

    fn ids(&self) -> impl Iterator<Item = NodeId> {
        self.members.iter().map(|(_, id)| *id)
    }
}

/// Whether two names are equal: eight bytes at a time, without the call that a comparison of slices is.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    match (a.last_chunk::<8>(), b.last_chunk::<8>()) {
        // The last eight overlap those before.
        (Some(a_end), Some(b_end)) => a_end == b_end && a.as_chunks::<8>().0.iter().eq(b.as_chunks::<8>().0),
        _ => a.iter().eq(b),
    }
}

/// A node while rules are being added.
struct Draft {
    name: Option<String>,
    path: String,
    full: String,
    children: Vec<NodeId>,
    leaf: Option<(Type, Place)>,
    capture: Option<Capture>,
    entity: bool,
}

impl Draft {
    const fn new(name: Option<String>, path: String, full: String) -> Self {
        Self { name, path, full, children: Vec::new(), leaf: None, capture: None, entity: false }
    }
}

struct Builder {
    drafts: Vec<Draft>,
}

fn wrong(path: &str, what: &str) -> CatalogueError {
    CatalogueError::new(format!("rule {path}: {what}"))
}

impl Builder {
    fn draft(&mut self, id: NodeId) -> Result<&mut Draft, CatalogueError> {
        self.drafts.get_mut(usize::from(id)).ok_or_else(|| CatalogueError::new("catalogue: node out of range"))
    }

    /// The node at `path` below `from`; made where `make`.
    fn walk(&mut self, from: NodeId, path: &str, make: bool) -> Result<NodeId, CatalogueError> {
        let mut at = from;
        for step in file::steps(path)? {
            let name = match step {
                Step::Member(name) => Some(name),
                Step::Element => None,
            };
            let here = self.draft(at)?;
            let (here_path, here_full) = (here.path.clone(), here.full.clone());
            let children = here.children.clone();
            let is_leaf = here.leaf.is_some();
            let found = children.iter().find(|id| self.drafts.get(usize::from(**id)).is_some_and(|d| d.name.as_deref() == name));
            at = match found {
                Some(id) => *id,
                None if !make => return Err(wrong(path, "is named, but no rule has it")),
                None => {
                    let mixed =
                        children.iter().any(|id| self.drafts.get(usize::from(*id)).is_some_and(|d| d.name.is_some() != name.is_some()));
                    if is_leaf || mixed || (name.is_none() && !children.is_empty()) {
                        return Err(wrong(path, "overlaps another rule"));
                    }
                    let end = name
                        .map_or_else(|| "[*]".to_owned(), |name| if here_full.is_empty() { name.to_owned() } else { format!(".{name}") });
                    let tail = name.map_or_else(|| "[*]".to_owned(), |name| format!(".{name}"));
                    let id = NodeId::try_from(self.drafts.len()).map_err(|_| CatalogueError::new("catalogue: too many rules"))?;
                    self.drafts.push(Draft::new(name.map(str::to_owned), format!("{here_path}{tail}"), format!("{here_full}{end}")));
                    self.draft(at)?.children.push(id);
                    id
                }
            };
        }
        Ok(at)
    }

    fn leaf(&mut self, from: NodeId, path: &str, expects: Type, place: Place) -> Result<NodeId, CatalogueError> {
        let id = self.walk(from, path, true)?;
        let draft = self.draft(id)?;
        if draft.leaf.is_some() || !draft.children.is_empty() || draft.entity {
            return Err(wrong(path, "overlaps another rule"));
        }
        draft.leaf = Some((expects, place));
        Ok(id)
    }

    fn capture(&mut self, from: NodeId, path: &str, capture: Capture) -> Result<Option<(Type, Place)>, CatalogueError> {
        let id = self.walk(from, path, false)?;
        let draft = self.draft(id)?;
        if draft.capture.is_some() {
            return Err(wrong(path, "is named twice"));
        }
        draft.capture = Some(capture);
        let leaf = draft.leaf.clone();
        if !matches!(leaf, Some((Type::String, _))) {
            return Err(wrong(path, "must be a string to be part of an identity or of the page's own values"));
        }
        Ok(leaf)
    }
}

/// Builds the tree for `operation`, with the list of its rules and conditions.
pub(super) fn build(file: &File, operation: &str) -> Result<(Tree, Vec<Rule>, Vec<Condition>), CatalogueError> {
    let page = file.operations.get(operation).ok_or_else(|| CatalogueError::new(format!("no operation {operation}")))?;
    let mut builder = Builder { drafts: vec![Draft::new(None, "page".to_owned(), String::new())] };
    let entity = builder.walk(ROOT, &page.entities, true)?;
    let draft = builder.draft(entity)?;
    draft.entity = true;
    draft.path.clone_from(&file.entity.name);
    for (path, reason) in &page.left_out {
        for path in file::expand(path)? {
            builder.leaf(ROOT, &path, Type::String, Place::LeftOut(reason.clone()))?;
        }
    }
    let own =
        [(&page.next_token, Capture::NextToken), (&page.window_end, Capture::WindowEnd), (&page.marketplace, Capture::PageMarketplace)];
    for (path, capture) in own {
        if let Some(path) = path {
            builder.leaf(ROOT, path, Type::String, Place::Page)?;
            builder.capture(ROOT, path, capture)?;
        }
    }
    for (written, rule) in &file.rules {
        let (expects, place) = rule.place(written)?;
        for path in file::expand(written)? {
            builder.leaf(entity, &path, expects, place.clone())?;
        }
    }
    identity(&mut builder, file, entity)?;
    let mut switches = Vec::new();
    let mut conditions = Vec::new();
    for table in &file.switches {
        let (at, switch, condition) = switch(&mut builder, entity, table)?;
        switches.push((at, switch));
        conditions.push(condition);
    }
    let mut rules: Vec<Rule> = builder
        .drafts
        .iter()
        .filter_map(|draft| draft.leaf.clone().map(|(expects, place)| Rule { path: draft.full.clone(), expects, place }))
        .collect();
    rules.sort_by(|a, b| a.path.cmp(&b.path));
    Ok((compile(&builder, switches)?, rules, conditions))
}

/// Marks the parts of the entity's identity.
fn identity(builder: &mut Builder, file: &File, entity: NodeId) -> Result<(), CatalogueError> {
    if file.entity.id.len() > 3 {
        return Err(CatalogueError::new("catalogue: an identity has at most three parts"));
    }
    for (part, path) in file.entity.id.iter().enumerate() {
        let leaf = builder.capture(entity, path, Capture::Id(u8::try_from(part).unwrap_or(u8::MAX)))?;
        let tokenised = matches!(leaf, Some((_, Place::Token(TokenKind::Order, Some(FieldGroup::Identifiers)))));
        let clear = matches!(leaf, Some((_, Place::Clear)));
        let right = match file.entity.kind {
            EntityKind::Order => tokenised && file.entity.id.len() == 1,
            EntityKind::InventoryLevel => clear,
        };
        if !right {
            return Err(wrong(path, "an order's id must be its one token, sealed in identifiers; an inventory level's id must be clear"));
        }
    }
    builder.capture(entity, &file.entity.source_version, Capture::Version)?;
    if let Some(path) = &file.entity.marketplace {
        builder.capture(entity, path, Capture::Marketplace)?;
    }
    Ok(())
}

fn switch(builder: &mut Builder, entity: NodeId, table: &file::SwitchTable) -> Result<(NodeId, Switch, Condition), CatalogueError> {
    if table.otherwise == FieldGroup::Unclassified || table.values.is_empty() {
        return Err(wrong(&table.path, "a switch needs values and a group other than unclassified"));
    }
    let at = builder.walk(entity, &table.path, false)?;
    let property = builder.walk(at, &table.property, false)?;
    if !matches!(builder.draft(property)?.leaf, Some((Type::String, _))) {
        return Err(wrong(&table.path, "the property that decides must be a string"));
    }
    let mut only = Vec::new();
    for name in &table.only {
        only.push(builder.walk(at, name, false)?);
    }
    let condition = Condition {
        path: builder.draft(at)?.full.clone(),
        property: table.property.clone(),
        values: table.values.clone(),
        only: table.only.clone(),
        otherwise: table.otherwise,
    };
    Ok((at, Switch { property, values: table.values.clone(), only, otherwise: group_bit(table.otherwise) }, condition))
}

fn compile(builder: &Builder, switches: Vec<(NodeId, Switch)>) -> Result<Tree, CatalogueError> {
    let mut nodes = Vec::with_capacity(builder.drafts.len());
    for draft in &builder.drafts {
        nodes.push(node(builder, draft)?);
    }
    for (at, switch) in switches {
        if subtree(builder, at).iter().any(|id| nodes.get(usize::from(*id)).is_some_and(|n| n.token.is_some() || n.capture.is_some())) {
            return Err(CatalogueError::new("catalogue: tokens and parts of an identity cannot lie below a switch"));
        }
        let target = nodes.get_mut(usize::from(at)).filter(|n| matches!(n.shape, Shape::Object(_)) && n.switch.is_none());
        target.ok_or_else(|| CatalogueError::new("catalogue: a switch belongs to one object"))?.switch = Some(switch);
    }
    // Children come after their parents, so masks, going up, are complete when a parent is reached from behind.
    for index in (0..nodes.len()).rev() {
        let below: Vec<NodeId> = match nodes.get(index).map(|n| &n.shape) {
            Some(Shape::Object(names)) => names.ids().collect(),
            Some(Shape::Array(element)) => vec![*element],
            Some(Shape::Leaf(_)) | None => continue,
        };
        let masks: Mask = below.iter().filter_map(|id| nodes.get(usize::from(*id))).fold(0, |all, child| all | child.mask);
        let page = below.iter().filter_map(|id| nodes.get(usize::from(*id))).any(|child| child.page || child.entity);
        for (rank, id) in below.iter().enumerate() {
            if let Some(child) = nodes.get_mut(usize::from(*id)) {
                child.rank = u8::try_from(rank).unwrap_or(u8::MAX);
            }
        }
        if let Some(node) = nodes.get_mut(index) {
            node.page = page;
            // One home for all that lies below: null or nothing in its place goes there too. Else it says nothing of a person.
            node.mask = if masks.count_ones() == 1 {
                masks
            } else if page {
                LEFT_OUT
            } else {
                CLEAR
            };
        }
    }
    Ok(Tree { nodes })
}

/// The node `at` and all below it.
fn subtree(builder: &Builder, at: NodeId) -> Vec<NodeId> {
    let mut all = vec![at];
    let mut next = 0;
    while let Some(id) = all.get(next).copied() {
        if let Some(draft) = builder.drafts.get(usize::from(id)) {
            all.extend(&draft.children);
        }
        next += 1;
    }
    all
}

fn node(builder: &Builder, draft: &Draft) -> Result<Node, CatalogueError> {
    if draft.children.len() > MEMBERS_MAX {
        return Err(wrong(&draft.full, "has more members than a catalogue can hold"));
    }
    let child = |id: &NodeId| builder.drafts.get(usize::from(*id));
    let shape = match (&draft.leaf, draft.children.as_slice()) {
        (Some((expects, _)), _) => Shape::Leaf(*expects),
        (None, [element]) if child(element).is_some_and(|d| d.name.is_none()) => Shape::Array(*element),
        (None, children) => {
            let named = children.iter().filter_map(|id| child(id).and_then(|d| d.name.as_deref()).map(|name| (Box::from(name), *id)));
            Shape::Object(Names::new(named.collect()))
        }
    };
    let (mask, token) = match draft.leaf.as_ref().map(|(_, place)| place) {
        Some(Place::Clear) => (CLEAR, None),
        Some(Place::Token(kind, sealed)) => (CLEAR | sealed.map_or(0, group_bit), Some(*kind)),
        Some(Place::Sealed(group)) => (group_bit(*group), None),
        Some(Place::LeftOut(_) | Place::Page) => (LEFT_OUT, None),
        None => (0, None),
    };
    Ok(Node {
        shape,
        mask,
        token,
        capture: draft.capture,
        switch: None,
        key: draft.name.as_ref().map_or_else(Box::default, |name| format!("\"{name}\":").into_boxed_str()),
        rank: 0,
        path: Box::from(draft.path.as_str()),
        entity: draft.entity,
        page: matches!(draft.leaf, Some((_, Place::Page))),
    })
}
