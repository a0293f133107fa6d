//! From a raw event to typed rows and sealed records, without opening anything. Pure.
//!
//! Each function below mirrors an object of Amazon's model: its names in the order of the model, and beside each the column it goes to.
//! Everything the classification catalogue calls clear is named; a test plays Amazon's own examples through and looks for every value
//! in the rows. All is optional but what a row cannot be without.
//!
//! Invariants: every row carries the event's attribution and version; sealed blocks are moved, not read; an error names a code and a
//! place, never a value.

mod inventory;
mod item;
mod order;

use std::sync::Arc;

use rust_decimal::Decimal;
use sunder_schemas::class::Family;
use sunder_schemas::envelope::RawEvent;
use sunder_schemas::outcome::DeadLetterReason;
use sunder_schemas::records::{PiiRecord, StateRecord, Text};
use sunder_schemas::time::Timestamp;

use super::walk::{Fit, Walk};

/// What one raw event becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projected {
    /// The rows: the entity's own first, then its children's.
    pub rows: Vec<StateRecord>,
    /// The sealed groups.
    pub pii: Vec<PiiRecord>,
}

/// A raw event that no rows can be made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at line {line}, column {column} of the clear part")]
pub struct Unfit {
    /// The code.
    pub reason: DeadLetterReason,
    /// Line, from 1; 0 where no place in the clear part is meant.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
}

impl Unfit {
    /// An event that breaks `reason` as a whole.
    #[must_use]
    pub const fn whole(reason: DeadLetterReason) -> Self {
        Self { reason, line: 0, column: 0 }
    }
}

/// Makes rows and sealed records of `event`.
///
/// # Errors
/// [`Unfit`].
pub fn project(event: RawEvent) -> Result<Projected, Unfit> {
    let attribution = Arc::new(event.attribution);
    let (entity, version) = (event.entity.token, event.source_version);
    let rows = match event.entity.family {
        Family::Orders => order::rows(&event.clear, &attribution, version, entity)?,
        Family::Inventory => vec![StateRecord::InventoryLevel(inventory::row(&event.clear, &attribution, version, entity)?)],
    };
    let mut pii = Vec::with_capacity(event.sealed.len());
    if !event.sealed.is_empty() {
        // A block without the date of its key's end could not be answered for.
        let (deadline, rule) = event.deadline.ok_or(Unfit::whole(DeadLetterReason::BadField))?;
        pii.extend(event.sealed.into_iter().map(|sealed| PiiRecord {
            attribution: Arc::clone(&attribution),
            source_version: version,
            entity_token: entity,
            field_group: sealed.group,
            key_id: sealed.block.key(),
            classification: event.classification.clone(),
            deadline,
            deadline_rule: rule.clone(),
            block: sealed.block,
        }));
    }
    Ok(Projected { rows, pii })
}

/// What a row cannot be without.
fn needed<T>(value: Option<T>) -> Fit<T> {
    value.ok_or(Unfit::whole(DeadLetterReason::BadField))
}

/// A time window: its beginning and its end.
fn window(walk: &mut Walk<'_>, earliest: &mut Option<Timestamp>, latest: &mut Option<Timestamp>) -> Fit<()> {
    walk.object(|walk, name| match name {
        "earliestDateTime" => walk.time(earliest),
        "latestDateTime" => walk.time(latest),
        _ => walk.skip(),
    })
}

/// Money for a column of its own.
fn money(walk: &mut Walk<'_>, amount: &mut Option<Decimal>, currency: &mut Option<Text>) -> Fit<()> {
    walk.object(|walk, name| match name {
        "amount" => walk.amount(amount),
        "currencyCode" => walk.text(currency),
        _ => walk.skip(),
    })
}

/// Money for a list: digit for digit as it was fetched.
#[derive(Default)]
struct MoneyText {
    amount: Option<Text>,
    currency: Option<Text>,
}

impl MoneyText {
    fn read(&mut self, walk: &mut Walk<'_>) -> Fit<()> {
        walk.object(|walk, name| match name {
            "amount" => walk.text(&mut self.amount),
            "currencyCode" => walk.text(&mut self.currency),
            _ => walk.skip(),
        })
    }
}

/// The columns that the parts of proceeds go to, as parallel lists.
struct Parts<'r> {
    types: &'r mut Vec<Text>,
    /// Only items have them.
    subtypes: Option<&'r mut Vec<Text>>,
    /// Only orders have them.
    statuses: Option<&'r mut Vec<Text>>,
    amounts: &'r mut Vec<Text>,
    currencies: &'r mut Vec<Text>,
}

impl Parts<'_> {
    /// One part; its details stand before it, with their subtype.
    fn read(&mut self, walk: &mut Walk<'_>) -> Fit<()> {
        let (mut ty, mut status, mut subtotal) = (None, None, MoneyText::default());
        let mut details: Vec<(Option<Text>, MoneyText)> = Vec::new();
        walk.object(|walk, name| match name {
            "type" => walk.text(&mut ty),
            "status" => walk.text(&mut status),
            "subtotal" => subtotal.read(walk),
            "detailedBreakdowns" => walk.objects(|walk| {
                let (mut subtype, mut value) = (None, MoneyText::default());
                walk.object(|walk, name| match name {
                    "subtype" => walk.text(&mut subtype),
                    "value" => value.read(walk),
                    _ => walk.skip(),
                })?;
                details.push((subtype, value));
                Ok(())
            }),
            _ => walk.skip(),
        })?;
        let (ty, status) = (ty.unwrap_or_default(), status.unwrap_or_default());
        for (subtype, value) in details {
            self.push(ty.clone(), subtype.unwrap_or_default(), status.clone(), value);
        }
        self.push(ty, Text::default(), status, subtotal);
        Ok(())
    }

    fn push(&mut self, ty: Text, subtype: Text, status: Text, money: MoneyText) {
        self.types.push(ty);
        if let Some(subtypes) = &mut self.subtypes {
            subtypes.push(subtype);
        }
        if let Some(statuses) = &mut self.statuses {
            statuses.push(status);
        }
        self.amounts.push(money.amount.unwrap_or_default());
        self.currencies.push(money.currency.unwrap_or_default());
    }
}
