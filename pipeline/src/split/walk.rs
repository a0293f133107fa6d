//! Reads the clear part front to back, each value straight into the place it has in a row: no tree, and no copy of what is not kept.
//!
//! Invariants: a name that nobody asks for is passed over; a value of another type than its place, or a name given twice, makes the
//! event unfit; null is the same as absent. An error carries a code and a place, never a value.

use std::collections::HashSet;

use rust_decimal::Decimal;
use sunder_schemas::ids::EntityToken;
use sunder_schemas::json::{Json, JsonError, Next, Quoted, unescape};
use sunder_schemas::outcome::DeadLetterReason;
use sunder_schemas::records::Text;
use sunder_schemas::records::codec::fits;
use sunder_schemas::time::Timestamp;

use super::project::Unfit;

/// What reading gives.
pub(super) type Fit<T> = Result<T, Unfit>;

/// A reader of the clear part `'j`.
pub(super) struct Walk<'j> {
    json: Json<'j>,
    text: &'j str,
}

impl<'j> Walk<'j> {
    /// Reads the object that `clear` is: `member` gets the name of each of its members and reads, or skips, the value.
    ///
    /// # Errors
    /// [`Unfit`] where `clear` is not one JSON object, or what `member` returned.
    pub(super) fn whole(clear: &'j [u8], member: impl FnMut(&mut Self, &'j str) -> Fit<()>) -> Fit<()> {
        // Looked at once as a whole: names and texts are then text wherever they are cut out.
        let text = std::str::from_utf8(clear).map_err(|_| Unfit::whole(DeadLetterReason::BadClearPart))?;
        let mut walk = Self { json: Json::new(text), text };
        match walk.next()? {
            Next::Object => walk.members(member)?,
            other => return Err(walk.misfit(other)),
        }
        walk.json.end().map_err(|error| walk.unfit(error))
    }

    /// Reads an object, or null.
    pub(super) fn object(&mut self, member: impl FnMut(&mut Self, &'j str) -> Fit<()>) -> Fit<()> {
        match self.next()? {
            Next::Object => self.members(member),
            Next::Null => self.null(),
            other => Err(self.misfit(other)),
        }
    }

    /// Reads an object, or null, of which one member matters.
    pub(super) fn only(&mut self, wanted: &str, mut read: impl FnMut(&mut Self) -> Fit<()>) -> Fit<()> {
        self.object(|walk, name| if name == wanted { read(walk) } else { walk.skip() })
    }

    /// Reads a list of objects, or null: `each` reads one with [`Walk::object`].
    pub(super) fn objects(&mut self, mut each: impl FnMut(&mut Self) -> Fit<()>) -> Fit<()> {
        self.list(|walk, next| if next == Next::Object { each(walk) } else { Err(walk.misfit(next)) })
    }

    /// Reads a list of texts, or null. An element that was no text was sealed as unclassified and left `{}` in its place: passed over.
    pub(super) fn texts(&mut self, place: &mut Vec<Text>) -> Fit<()> {
        self.list(|walk, next| match next {
            Next::String => walk.some_string(|text| {
                place.push(text.into());
                Some(())
            }),
            Next::Null | Next::Object => walk.skip(),
            other => Err(walk.misfit(other)),
        })
    }

    /// Reads a text, or null.
    pub(super) fn text(&mut self, place: &mut Option<Text>) -> Fit<()> {
        self.some_string(|text| {
            *place = Some(text.into());
            Some(())
        })
    }

    /// Reads a time as SP-API writes it, or null; Amazon also writes an empty text where it has none.
    pub(super) fn time(&mut self, place: &mut Option<Timestamp>) -> Fit<()> {
        self.some_string(|text| if text.is_empty() { Some(()) } else { Timestamp::parse(text).ok().map(|at| *place = Some(at)) })
    }

    /// Reads a token, or null.
    pub(super) fn token(&mut self, place: &mut Option<EntityToken>) -> Fit<()> {
        self.some_string(|text| EntityToken::parse(text).ok().map(|token| *place = Some(token)))
    }

    /// Reads an amount of money, which SP-API writes as text, or null; an empty text is none.
    pub(super) fn amount(&mut self, place: &mut Option<Decimal>) -> Fit<()> {
        self.some_string(|text| if text.is_empty() { Some(()) } else { parse_amount(text).map(|amount| *place = Some(amount)) })
    }

    /// Reads a whole number, or null.
    pub(super) fn int(&mut self, place: &mut Option<i64>) -> Fit<()> {
        let mut digits = None;
        self.number(&mut digits)?;
        if let Some(digits) = digits {
            *place = Some(digits.parse().map_err(|_| self.bad_field())?);
        }
        Ok(())
    }

    /// Reads a number as it is written, or null.
    pub(super) fn number(&mut self, place: &mut Option<&'j str>) -> Fit<()> {
        match self.next()? {
            Next::Null => self.null(),
            Next::Number => {
                *place = Some(self.json.number().map_err(|error| self.unfit(error))?);
                Ok(())
            }
            other => Err(self.misfit(other)),
        }
    }

    /// Passes over a value.
    pub(super) fn skip(&mut self) -> Fit<()> {
        self.json.skip().map_err(|error| self.unfit(error))
    }

    fn list(&mut self, mut each: impl FnMut(&mut Self, Next) -> Fit<()>) -> Fit<()> {
        match self.next()? {
            Next::Array => {}
            Next::Null => return self.null(),
            other => return Err(self.misfit(other)),
        }
        let mut found = self.json.array().map_err(|error| self.unfit(error))?;
        while let Some(next) = found {
            each(self, next)?;
            found = self.json.element().map_err(|error| self.unfit(error))?;
        }
        Ok(())
    }

    fn members(&mut self, mut member: impl FnMut(&mut Self, &'j str) -> Fit<()>) -> Fit<()> {
        let from = self.json.clone();
        let mut last = "";
        let mut found = self.json.object().map_err(|error| self.unfit(error))?;
        while let Some(name) = found {
            // Names we know need no escapes, and canonical JSON has none that are not needed.
            if name.is_escaped() {
                return Err(self.bad(DeadLetterReason::BadClearPart));
            }
            // Canonical JSON is sorted, so a name given twice stands behind itself; of another writer's all names are looked at.
            let name = self.json.raw(name);
            if !follows(name, last) {
                self.demand_unique(from.clone())?;
            }
            last = name;
            member(self, name)?;
            found = self.json.member().map_err(|error| self.unfit(error))?;
        }
        Ok(())
    }

    /// Demands that the object that comes next for `ahead` gives no name twice.
    #[cold]
    fn demand_unique(&self, mut ahead: Json<'j>) -> Fit<()> {
        let mut seen = HashSet::new();
        let mut found = ahead.object().map_err(|error| self.unfit(error))?;
        while let Some(name) = found {
            if !seen.insert(ahead.raw(name)) {
                return Err(self.bad_field());
            }
            ahead.skip().map_err(|error| self.unfit(error))?;
            found = ahead.member().map_err(|error| self.unfit(error))?;
        }
        Ok(())
    }

    fn some_string(&mut self, take: impl FnOnce(&str) -> Option<()>) -> Fit<()> {
        match self.next()? {
            Next::String => {
                let quoted = self.string()?;
                let raw = self.json.raw(quoted);
                let taken = if quoted.is_escaped() { take(&decoded(raw)) } else { take(raw) };
                taken.ok_or_else(|| self.bad_field())
            }
            Next::Null => self.null(),
            other => Err(self.misfit(other)),
        }
    }

    fn string(&mut self) -> Fit<Quoted> {
        self.json.string().map_err(|error| self.unfit(error))
    }

    fn next(&mut self) -> Fit<Next> {
        self.json.peek().map_err(|error| self.unfit(error))
    }

    fn null(&mut self) -> Fit<()> {
        self.json.word().map_err(|error| self.unfit(error))
    }

    /// A value of another type than its place; what does not even begin a value breaks the JSON.
    #[cold]
    fn misfit(&self, next: Next) -> Unfit {
        self.bad(if next == Next::Nothing { DeadLetterReason::BadClearPart } else { DeadLetterReason::BadField })
    }

    /// A value that its place does not hold.
    #[cold]
    fn bad_field(&self) -> Unfit {
        self.bad(DeadLetterReason::BadField)
    }

    #[cold]
    fn bad(&self, reason: DeadLetterReason) -> Unfit {
        self.unfit_at(reason, self.json.at())
    }

    #[cold]
    fn unfit(&self, error: JsonError) -> Unfit {
        self.unfit_at(DeadLetterReason::BadClearPart, error.at as usize)
    }

    #[cold]
    fn unfit_at(&self, reason: DeadLetterReason, at: usize) -> Unfit {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        Unfit { reason, line, column }
    }
}

/// Whether `name` sorts behind `last`, where there is one. Nearly always the first letter says it.
#[inline]
fn follows(name: &str, last: &str) -> bool {
    match (name.as_bytes().first(), last.as_bytes().first()) {
        (_, None) => true,
        (name_first, last_first) => name_first > last_first || (name_first == last_first && name > last),
    }
}

/// The text of a string with escapes.
#[cold]
fn decoded(raw: &str) -> String {
    let mut out = Vec::with_capacity(raw.len());
    unescape(raw, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// A number as text; `None` where a column of money does not hold it digit for digit.
pub(super) fn parse_amount(text: &str) -> Option<Decimal> {
    let amount = Decimal::from_str_exact(text).or_else(|_| Decimal::from_scientific(text)).ok()?;
    fits(amount).then_some(amount)
}
