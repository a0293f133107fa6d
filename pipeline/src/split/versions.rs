//! What is known of each entity of a partition, so that an older version never replaces a newer one and vanished children are noticed.
//!
//! One [`Versions`] per partition, rebuilt from `state.*` when the partition is assigned: the topics are the truth, this is a copy in
//! memory of about 80 bytes an entity and 16 a child. An entity whose state is a tombstone was erased with its business data: it stays
//! known as gone, and nothing brings it back.

use std::collections::HashMap;

use sunder_schemas::class::Kind;
use sunder_schemas::ids::{EntityToken, EventId, SellerId};
use sunder_schemas::records::StateRecord;
use sunder_schemas::time::Timestamp;

/// One version of an entity, in the order that decides which is later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    /// The source's version.
    pub source_version: i64,
    /// When it was fetched: of two fetches of one source version the later counts.
    pub collected_at: Timestamp,
    /// Its event.
    pub event_id: EventId,
}

#[derive(Debug, Clone)]
enum Known {
    /// The latest version and its children: so many items, then the packages.
    Live { version: Version, children: Box<[EntityToken]>, items: u32 },
    /// Erased with its business data.
    Gone,
}

/// Where a version stands against what is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is the latest, or the latest once more; these children of the version before are not among its own.
    Latest {
        /// Kind and token of each.
        vanished: Vec<(Kind, EntityToken)>,
    },
    /// A later version is known.
    Stale,
    /// The entity was erased with its business data.
    Gone,
}

/// What is known of the entities of one partition.
#[derive(Debug, Default)]
pub struct Versions {
    sellers: HashMap<SellerId, u32>,
    known: HashMap<(u32, EntityToken), Known>,
}

impl Versions {
    /// How many entities are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    fn slot(&mut self, seller: &SellerId, entity: EntityToken) -> (u32, EntityToken) {
        if let Some(index) = self.sellers.get(seller) {
            return (*index, entity);
        }
        let index = u32::try_from(self.sellers.len()).unwrap_or(u32::MAX);
        self.sellers.insert(seller.clone(), index);
        (index, entity)
    }

    /// Takes over a row that lies on `state.orders` or `state.inventory_levels`.
    pub fn restore(&mut self, row: &StateRecord) {
        self.learn(row);
    }

    /// Takes over a tombstone that lies there.
    pub fn restore_tombstone(&mut self, seller: &SellerId, entity: EntityToken) {
        let slot = self.slot(seller, entity);
        self.known.insert(slot, Known::Gone);
    }

    /// Forgets an entity: what comes next of it is its first version.
    pub fn forget(&mut self, seller: &SellerId, entity: EntityToken) {
        let slot = self.slot(seller, entity);
        self.known.remove(&slot);
    }

    /// Where `row`, an entity's own (not a child's), stands. Changes nothing.
    pub fn standing(&mut self, row: &StateRecord) -> Standing {
        let slot = self.slot(row.seller(), row.entity());
        match self.known.get(&slot) {
            None => Standing::Latest { vanished: Vec::new() },
            Some(Known::Gone) => Standing::Gone,
            Some(Known::Live { version, children, items }) => {
                let new = version_of(row);
                let is_older = (new.source_version, new.collected_at) < (version.source_version, version.collected_at);
                // The same event once more is written once more: a crash may have cut off its first writing.
                if is_older && new.event_id != version.event_id {
                    return Standing::Stale;
                }
                let (now_items, now_packages) = children_of(row);
                let (known_items, known_packages) = children.split_at_checked(*items as usize).unwrap_or((children, &[]));
                let gone = |kind: Kind, before: &[EntityToken], now: &[EntityToken]| -> Vec<(Kind, EntityToken)> {
                    before.iter().filter(|token| !now.contains(token)).map(|token| (kind, *token)).collect()
                };
                let mut vanished = gone(Kind::OrderItems, known_items, now_items);
                vanished.extend(gone(Kind::Packages, known_packages, now_packages));
                Standing::Latest { vanished }
            }
        }
    }

    /// Whether the latest version of `entity` names `child`; `None` where the entity is not known or is gone.
    #[must_use]
    pub fn names_child(&self, seller: &SellerId, entity: EntityToken, kind: Kind, child: EntityToken) -> Option<bool> {
        match self.known.get(&(*self.sellers.get(seller)?, entity))? {
            Known::Gone => None,
            Known::Live { children, items, .. } => {
                let (of_items, of_packages) = children.split_at_checked(*items as usize).unwrap_or((children, &[]));
                Some(if kind == Kind::OrderItems { of_items.contains(&child) } else { of_packages.contains(&child) })
            }
        }
    }

    /// Takes `row` as the latest version of its entity.
    pub fn learn(&mut self, row: &StateRecord) {
        let slot = self.slot(row.seller(), row.entity());
        let (items, packages) = children_of(row);
        let children = items.iter().chain(packages).copied().collect();
        let items = u32::try_from(items.len()).unwrap_or(u32::MAX);
        self.known.insert(slot, Known::Live { version: version_of(row), children, items });
    }
}

fn version_of(row: &StateRecord) -> Version {
    let from = row.attribution();
    Version { source_version: row.source_version(), collected_at: from.collected_at, event_id: from.event_id }
}

fn children_of(row: &StateRecord) -> (&[EntityToken], &[EntityToken]) {
    match row {
        StateRecord::Order(order) => (&order.item_tokens, &order.package_tokens),
        StateRecord::OrderItem(_) | StateRecord::Package(_) | StateRecord::InventoryLevel(_) => (&[], &[]),
    }
}
