//! The typed records of the topics: what they hold, their Avro schemas, and how they are written and read.
//!
//! A record type is declared once, with the words of its columns; its Avro schema, its encoding and the columns that stores make tables
//! of all follow from that declaration, so they cannot differ. The schemas are also checked in under `avro/`, one file a version, and a
//! test holds the two together; `sunder_schemas::records::schema` lists them with their ids.
//!
//! Invariants: rows hold no personal value and no clear order id; each carries its full attribution; they are flat (no records, no maps,
//! lists of primitives at most), so that a stock JDBC sink can store them.

pub mod codec;
mod dead_letter;
pub mod evolve;
mod facts;
mod inventory_levels;
mod order_items;
mod orders;
mod packages;
mod pii;
mod raw;
pub mod schema;

pub use codec::{Cell, Column, ColumnType, DecodeError};
pub use dead_letter::{DeadLetter, Original};
pub use facts::{FactsError, OrderFacts, PackageFacts};
pub use inventory_levels::InventoryLevelRow;
pub use order_items::OrderItemRow;
pub use orders::OrderRow;
pub use packages::PackageRow;
pub use pii::PiiRecord;

/// A text of a row. Up to 24 bytes lie in the row itself: statuses, codes, amounts and most SKUs.
pub type Text = compact_str::CompactString;

use crate::class::Kind;
use crate::envelope::Attribution;
use crate::ids::{EntityToken, SellerId};
use crate::key;
use crate::time::Timestamp;
use codec::Reader;

/// A type with an Avro schema and a table's columns.
pub trait Record: Sized {
    /// Name of the Avro record, in the namespace `sunder`.
    const NAME: &'static str;
    /// What one record is.
    const DOC: &'static str;

    /// Its columns in the order of the schema. Built anew on each call: keep the result.
    fn columns() -> Vec<Column>;

    /// Appends the Avro body.
    fn encode(&self, out: &mut Vec<u8>);

    /// Reads the fields and leaves the reader behind the last.
    ///
    /// # Errors
    /// [`DecodeError`].
    fn take(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;

    /// Hands out its values in the order of [`Record::columns`].
    fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>));

    /// Reads a whole Avro body of this crate's version of the schema.
    ///
    /// # Errors
    /// [`DecodeError`], also where bytes are left over.
    fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let record = Self::take(&mut reader)?;
        reader.finish()?;
        Ok(record)
    }
}

/// Gives a struct its schema, encoding and columns.
macro_rules! record {
    ($name:ty, $avro:literal, $doc:expr, { $($field:ident: $ty:ty = $fdoc:expr,)+ }) => {
        impl $crate::records::Record for $name {
            const NAME: &'static str = $avro;
            const DOC: &'static str = $doc;

            fn columns() -> Vec<$crate::records::Column> {
                let mut columns = Vec::new();
                $(<$ty as $crate::records::codec::Field>::declare(stringify!($field), $fdoc, &mut columns);)+
                columns
            }

            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::records::codec::Field::put(&self.$field, out);)+
            }

            fn take(reader: &mut $crate::records::codec::Reader<'_>) -> Result<Self, $crate::records::DecodeError> {
                Ok(Self { $($field: reader.field(stringify!($field))?,)+ })
            }

            fn cells<'a>(&'a self, each: &mut dyn FnMut($crate::records::Cell<'a>)) {
                $($crate::records::codec::Field::cells(&self.$field, each);)+
            }
        }
    };
}
pub(crate) use record;

/// Declares a struct and gives it its schema, encoding and columns.
macro_rules! row {
    ($(#[doc = $doc:literal])+ $name:ident = $avro:literal { $($(#[doc = $fdoc:literal])+ $field:ident: $ty:ty,)+ }) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $fdoc])+ pub $field: $ty,)+
        }
        $crate::records::record!($name, $avro, concat!($($doc),+), { $($field: $ty = concat!($($fdoc),+),)+ });
    };
}
pub(crate) use row;

/// [`row!`] for a row of a kind, which the projection fills member by member.
macro_rules! kind_row {
    ($(#[doc = $doc:literal])+ $name:ident = $avro:literal {
        #[doc = $adoc:literal] attribution: $aty:ty,
        #[doc = $vdoc:literal] source_version: $vty:ty,
        $($(#[doc = $fdoc:literal])+ $field:ident: $ty:ty,)+
    }) => {
        $crate::records::row!($(#[doc = $doc])+ $name = $avro {
            #[doc = $adoc] attribution: $aty,
            #[doc = $vdoc] source_version: $vty,
            $($(#[doc = $fdoc])+ $field: $ty,)+
        });
        impl $name {
            /// A row of which only this much is known: all else is absent, empty or zero.
            #[must_use]
            pub fn blank(attribution: $aty, source_version: $vty) -> Self {
                Self { attribution, source_version, $($field: $crate::records::codec::Blank::blank(),)+ }
            }
        }
    };
}
pub(crate) use kind_row;

/// A row of one of the kinds: the value of `state.<kind>`, and with two more fields of `events.<kind>`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "rows live in batches that are written at once; a box per order would cost more")]
pub enum StateRecord {
    /// An order.
    Order(OrderRow),
    /// An order item.
    OrderItem(OrderItemRow),
    /// A package.
    Package(PackageRow),
    /// An inventory level.
    InventoryLevel(InventoryLevelRow),
}

/// Runs the same expression on the row, whichever kind it is.
macro_rules! each_row {
    ($record:expr, $row:ident => $body:expr) => {
        match $record {
            StateRecord::Order($row) => $body,
            StateRecord::OrderItem($row) => $body,
            StateRecord::Package($row) => $body,
            StateRecord::InventoryLevel($row) => $body,
        }
    };
}

impl StateRecord {
    /// Its kind: names the topics and the table.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Order(_) => Kind::Orders,
            Self::OrderItem(_) => Kind::OrderItems,
            Self::Package(_) => Kind::Packages,
            Self::InventoryLevel(_) => Kind::InventoryLevels,
        }
    }

    /// Where it came from.
    #[must_use]
    pub fn attribution(&self) -> &Attribution {
        each_row!(self, row => &row.attribution)
    }

    /// The seller whose data it is.
    #[must_use]
    pub fn seller(&self) -> &SellerId {
        &self.attribution().selling_partner_id
    }

    /// The entity it belongs to; for a child its order. Decides the partition.
    #[must_use]
    pub const fn entity(&self) -> EntityToken {
        match self {
            Self::Order(row) => row.order_token,
            Self::OrderItem(row) => row.order_token,
            Self::Package(row) => row.order_token,
            Self::InventoryLevel(row) => row.level_token,
        }
    }

    /// Its own token below the entity, where it is a child.
    #[must_use]
    pub const fn child(&self) -> Option<EntityToken> {
        match self {
            Self::Order(_) | Self::InventoryLevel(_) => None,
            Self::OrderItem(row) => Some(row.order_item_token),
            Self::Package(row) => Some(row.package_token),
        }
    }

    /// The source's version in milliseconds; of two rows of a key the higher one is the later.
    #[must_use]
    pub const fn source_version(&self) -> i64 {
        each_row!(self, row => row.source_version)
    }

    /// The instant its age counts from: an order's creation; of an inventory level, which is a reading, when it was last seen. `None`
    /// for a child, which goes with its order.
    #[must_use]
    pub fn event_time(&self) -> Option<Timestamp> {
        match self {
            Self::Order(row) => Some(row.created_at),
            Self::InventoryLevel(row) => Some(row.attribution.collected_at),
            Self::OrderItem(_) | Self::Package(_) => None,
        }
    }

    /// Its key on `state.<kind>`.
    #[must_use]
    pub fn key(&self) -> String {
        key::state_key(self.seller(), self.entity(), self.child())
    }

    /// Its key on `state.<kind>`, in the place of what `key` holds.
    pub fn put_key(&self, key: &mut String) {
        key::put_state_key(key, self.seller(), self.entity(), self.child());
    }

    /// Its key on `events.<kind>`, in the place of what `key` holds.
    pub fn put_event_key(&self, key: &mut String) {
        key::put_event_key(key, self.seller(), self.entity(), self.child(), self.attribution().event_id);
    }

    /// Columns of the rows of `kind`, in the order of [`StateRecord::cells`]. Built anew on each call: keep the result.
    #[must_use]
    pub fn columns(kind: Kind) -> Vec<Column> {
        match kind {
            Kind::Orders => OrderRow::columns(),
            Kind::OrderItems => OrderItemRow::columns(),
            Kind::Packages => PackageRow::columns(),
            Kind::InventoryLevels => InventoryLevelRow::columns(),
        }
    }

    /// Hands out its values in the order of its columns.
    pub fn cells<'a>(&'a self, each: &mut dyn FnMut(Cell<'a>)) {
        each_row!(self, row => row.cells(each));
    }

    /// Appends the Avro body for `state.<kind>`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        each_row!(self, row => row.encode(out));
    }

    /// Makes of the Avro body for `state.<kind>` in `out` the one for `events.<kind>`: its schema is the state's with two more fields.
    pub fn extend_to_event(poller: &str, classification: &str, out: &mut Vec<u8>) {
        codec::put_bytes(poller.as_bytes(), out);
        codec::put_bytes(classification.as_bytes(), out);
    }

    /// Reads the row out of the Avro body of a record of `events.<kind>`: the two fields behind it are left unread.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode_event(kind: Kind, body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        Ok(match kind {
            Kind::Orders => Self::Order(OrderRow::take(&mut reader)?),
            Kind::OrderItems => Self::OrderItem(OrderItemRow::take(&mut reader)?),
            Kind::Packages => Self::Package(PackageRow::take(&mut reader)?),
            Kind::InventoryLevels => Self::InventoryLevel(InventoryLevelRow::take(&mut reader)?),
        })
    }

    /// Reads the Avro body of a record of `state.<kind>`, of this crate's version of the schema.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(kind: Kind, body: &[u8]) -> Result<Self, DecodeError> {
        Ok(match kind {
            Kind::Orders => Self::Order(OrderRow::decode(body)?),
            Kind::OrderItems => Self::OrderItem(OrderItemRow::decode(body)?),
            Kind::Packages => Self::Package(PackageRow::decode(body)?),
            Kind::InventoryLevels => Self::InventoryLevel(InventoryLevelRow::decode(body)?),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
