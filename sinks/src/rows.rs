//! What a sink needs of a record: its key, its version and its cells.

use sunder_schemas::class::FieldGroup;
use sunder_schemas::ids::{EntityToken, SellerId};
use sunder_schemas::key;
use sunder_schemas::records::{Cell, PiiRecord, Record, StateRecord};
use sunder_schemas::time::Timestamp;

use crate::cells::HexToken;

/// The last part of a row's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// The row is the entity's own.
    None,
    /// A child of the entity.
    Child(EntityToken),
    /// A field group of the entity.
    Group(FieldGroup),
}

/// A row's primary key, as it lies in the record's key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RowKey {
    /// The seller.
    pub seller: SellerId,
    /// The entity: for a child its order.
    pub entity: EntityToken,
    /// What follows.
    pub part: Part,
}

impl RowKey {
    /// Reads a record's key of `parts` parts; `None` where it is not one of ours.
    #[must_use]
    pub fn parse(bytes: &[u8], parts: usize) -> Option<Self> {
        let found = key::split(bytes)?;
        if found.len() != parts {
            return None;
        }
        let mut found = found.iter();
        let seller = SellerId::parse(found.next()?).ok()?;
        let entity = EntityToken::parse(found.next()?).ok()?;
        let part = match found.next() {
            None => Part::None,
            Some(text) => match EntityToken::parse(text) {
                Ok(child) => Part::Child(child),
                Err(_) => Part::Group(text.parse().ok()?),
            },
        };
        Some(Self { seller, entity, part })
    }

    /// The entity's token as text.
    #[must_use]
    pub fn entity_text(&self) -> HexToken {
        HexToken::new(self.entity)
    }

    /// The last part as text.
    #[must_use]
    pub fn part_text(&self) -> Option<String> {
        match self.part {
            Part::None => None,
            Part::Child(token) => Some(token.to_hex()),
            Part::Group(group) => Some(group.as_str().to_owned()),
        }
    }
}

/// A record that is stored as a row.
pub trait Row: Send + Sync {
    /// Its primary key.
    fn key(&self) -> RowKey;
    /// The source's version, then when it was collected: a lower pair never replaces a higher one.
    fn version(&self) -> (i64, Timestamp);
    /// Its values in the order of its table's columns, without the provenance.
    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>));
}

impl Row for StateRecord {
    fn key(&self) -> RowKey {
        RowKey { seller: self.seller().clone(), entity: self.entity(), part: self.child().map_or(Part::None, Part::Child) }
    }

    fn version(&self) -> (i64, Timestamp) {
        (self.source_version(), self.attribution().collected_at)
    }

    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
        Self::cells(self, each);
    }
}

impl Row for PiiRecord {
    fn key(&self) -> RowKey {
        RowKey { seller: self.seller().clone(), entity: self.entity_token, part: Part::Group(self.field_group) }
    }

    fn version(&self) -> (i64, Timestamp) {
        (self.source_version, self.attribution.collected_at)
    }

    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
        Record::cells(self, each);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_from_its_topic_form() {
        let seller = SellerId::parse("A1").unwrap();
        let (order, item) = (EntityToken([1; 16]), EntityToken([2; 16]));
        let own = RowKey::parse(key::state_key(&seller, order, None).as_bytes(), 2).unwrap();
        assert_eq!(own, RowKey { seller: seller.clone(), entity: order, part: Part::None });
        let child = RowKey::parse(key::state_key(&seller, order, Some(item)).as_bytes(), 3).unwrap();
        assert_eq!(child.part, Part::Child(item));
        let group = RowKey::parse(key::pii_key(&seller, order, FieldGroup::Gift).as_bytes(), 3).unwrap();
        assert_eq!(group.part, Part::Group(FieldGroup::Gift));
        assert_eq!(RowKey::parse(b"~hb", 2), None);
        assert_eq!(RowKey::parse(key::state_key(&seller, order, None).as_bytes(), 3), None);
    }
}
