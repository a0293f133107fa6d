//! The classification catalogue: for each property of an answer, whether it is personal, and where it goes.
//!
//! Classification is data: one TOML file per API under `catalogue/`, compiled into the program. A rule names a path and says *clear*,
//! *sealed* in a field group, a *token*, or *left out* with a reason; a property without a rule is personal (DESIGN section 2, rule 3).
//!
//! Invariants: every path has one rule, every rule is a leaf, the version changes with the rules and travels with each event. This
//! module only reads and checks the catalogue; [`crate::classify`] applies it.

mod file;
mod tree;

use std::fmt;
use std::sync::LazyLock;

use serde::Deserialize;

pub use self::tree::MEMBERS_MAX;
pub(crate) use self::tree::{CLEAR, Capture, LEFT_OUT, Names, NodeId, ROOT, Shape, Switch, Tree, UNCLASSIFIED, group_bit};
use crate::class::{Family, FieldGroup};

/// The files, as compiled in.
const FILES: &[&str] = &[include_str!("../catalogue/orders_2026-01-01.toml"), include_str!("../catalogue/fbaInventory.toml")];

static CATALOGUES: LazyLock<Result<Vec<Catalogue>, CatalogueError>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for text in FILES {
        all.extend(Catalogue::read(text)?);
    }
    Ok(all)
});

/// A catalogue that does not load, or an operation that has none. Speaks of rules only, never of fetched values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CatalogueError(String);

impl CatalogueError {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// What kind of identifier a token stands for; part of what the token is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// An order; made from the order id.
    Order,
    /// An order item; made from the order item id alone, so that references from other orders agree.
    OrderItem,
    /// A package; made from the order's id and the package reference, which is unique within its order only.
    Package,
    /// An inventory level; made from marketplace, SKU, FNSKU and condition.
    InventoryLevel,
}

impl TokenKind {
    /// The name used in catalogue files.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::OrderItem => "order_item",
            Self::Package => "package",
            Self::InventoryLevel => "inventory_level",
        }
    }
}

/// What an entity of an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntityKind {
    /// An order with its items and packages.
    Order,
    /// The stock of one SKU in one marketplace.
    InventoryLevel,
}

impl EntityKind {
    /// The family whose topics carry such entities.
    #[must_use]
    pub const fn family(self) -> Family {
        match self {
            Self::Order => Family::Orders,
            Self::InventoryLevel => Family::Inventory,
        }
    }
}

/// The JSON type a rule expects; null is always accepted, anything else is treated as unclassified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Type {
    /// A string.
    String,
    /// A number, kept digit for digit.
    Number,
    /// True or false.
    Boolean,
}

/// Where a property goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Into the clear part, as fetched.
    Clear,
    /// Its token into the clear part, and the clear id into a sealed group if one is named.
    Token(TokenKind, Option<FieldGroup>),
    /// Into a sealed group.
    Sealed(FieldGroup),
    /// Nowhere, for the reason given.
    LeftOut(String),
    /// It steers the poller (next token, end of the window, marketplace) and goes nowhere else.
    Page,
}

/// One rule of a catalogue, for tests and documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The path from the root of the answer, e.g. `orders[*].buyer.buyerName`.
    pub path: String,
    /// The type the rule expects.
    pub expects: Type,
    /// Where the property goes.
    pub place: Place,
}

/// A conditional rule, for documents: where `property` has none of `values`, what lies below `path` is sealed in `otherwise`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// The path of the object from the root of the answer.
    pub path: String,
    /// The sibling that decides.
    pub property: String,
    /// The values under which the rules hold as written.
    pub values: Vec<String>,
    /// The properties it is about; empty: all.
    pub only: Vec<String>,
    /// The group everything else is sealed in.
    pub otherwise: FieldGroup,
}

/// The rules for the answers of one operation.
pub struct Catalogue {
    api: String,
    operation: String,
    version: String,
    kind: EntityKind,
    rules: Vec<Rule>,
    conditions: Vec<Condition>,
    pub(crate) tree: Tree,
}

impl Catalogue {
    /// The catalogue for the answers of `operation` of `api`, by the names of Amazon's models, e.g. `orders_2026-01-01` and `searchOrders`.
    ///
    /// # Errors
    /// [`CatalogueError`] where there is none: such answers cannot be taken in.
    pub fn for_operation(api: &str, operation: &str) -> Result<&'static Self, CatalogueError> {
        Self::all()?
            .iter()
            .find(|catalogue| catalogue.api == api && catalogue.operation == operation)
            .ok_or_else(|| CatalogueError::new(format!("no classification catalogue for operation {operation} of {api}")))
    }

    /// Every compiled-in catalogue.
    ///
    /// # Errors
    /// [`CatalogueError`] where a file is broken, which the tests of this crate rule out.
    pub fn all() -> Result<&'static [Self], CatalogueError> {
        CATALOGUES.as_deref().map_err(Clone::clone)
    }

    /// Reads a catalogue file: one catalogue per operation it names.
    ///
    /// # Errors
    /// [`CatalogueError`] for a file that is not of the form, unknown groups or types, rules that overlap, an identity without a rule.
    pub fn read(text: &str) -> Result<Vec<Self>, CatalogueError> {
        let file = file::parse(text)?;
        let mut catalogues = Vec::with_capacity(file.operations.len());
        for operation in file.operations.keys() {
            let (tree, rules, conditions) = tree::build(&file, operation)?;
            catalogues.push(Self {
                api: file.api.clone(),
                operation: operation.clone(),
                version: format!("{}#{}", file.api, file.version),
                kind: file.entity.kind,
                rules,
                conditions,
                tree,
            });
        }
        Ok(catalogues)
    }

    /// The model's name, e.g. `orders_2026-01-01`: the `source_api` of the attribution.
    #[must_use]
    pub fn api(&self) -> &str {
        &self.api
    }

    /// The operation's id in that model, e.g. `searchOrders`.
    #[must_use]
    pub fn operation(&self) -> &str {
        &self.operation
    }

    /// Name and version, e.g. `orders_2026-01-01#1`: travels with every event and is bound into every sealed block.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What the entities of the answer are.
    #[must_use]
    pub const fn kind(&self) -> EntityKind {
        self.kind
    }

    /// Every rule with its full path, in the order of paths.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Every conditional rule.
    #[must_use]
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl fmt::Debug for Catalogue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Catalogue({} {})", self.version, self.operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_compiled_in_file_loads() {
        let all = Catalogue::all().unwrap();
        assert_eq!(all.len(), 3);
        let search = Catalogue::for_operation("orders_2026-01-01", "searchOrders").unwrap();
        assert_eq!(search.version(), "orders_2026-01-01#1");
        assert_eq!(search.kind().family(), Family::Orders);
        assert!(Catalogue::for_operation("orders_2026-01-01", "cancelOrder").is_err());
    }

    const HEAD: &str = "api = \"a\"\nversion = 1\n[entity]\nname = \"order\"\nkind = \"order\"\nid = [\"orderId\"]\nsource_version = \"at\"\n\
                        [operations.get]\nentities = \"order\"\n[rules]\n\"at\" = { clear = \"string\" }\n";
    const ID: &str = "\"orderId\" = { token = \"order\", sealed = \"identifiers\" }\n";

    fn refused(rules: &str) -> String {
        Catalogue::read(&format!("{HEAD}{rules}")).unwrap_err().to_string()
    }

    #[test]
    fn a_broken_catalogue_is_refused_with_the_rule_at_fault() {
        assert!(Catalogue::read(&format!("{HEAD}{ID}")).is_ok());
        assert!(refused("").contains("orderId"));
        assert!(refused(&format!("{ID}\"x\" = {{ sealed = \"adress\" }}")).contains("adress"));
        assert!(refused(&format!("{ID}\"x\" = {{ sealed = \"unclassified\" }}")).contains("unclassified"));
        assert!(refused(&format!("{ID}\"x\" = {{ clear = \"string\", sealed = \"gift\" }}")).contains('x'));
        assert!(refused(&format!("{ID}\"x\" = {{ left_out = \" \" }}")).contains("reason"));
        assert!(refused(&format!("{ID}\"x\" = {{ clear = \"object\" }}")).contains("object"));
        assert!(refused(&format!("{ID}\"a.{{b,c}}\" = {{ clear = \"string\" }}\n\"a.c\" = {{ sealed = \"gift\" }}")).contains("a.c"));
        assert!(refused(&format!("{ID}\"a.b\" = {{ clear = \"string\" }}\n\"a\" = {{ sealed = \"gift\" }}")).contains("a"));
        assert!(refused(&format!("{ID}\"a.{{b\" = {{ clear = \"string\" }}")).contains("a.{b"));
        assert!(refused(&format!("{ID}\"a..b\" = {{ clear = \"string\" }}")).contains("a..b"));
        assert!(refused("\"orderId\" = { clear = \"string\" }").contains("orderId"));
        assert!(refused(&format!("{ID}\"a.{{b,c}}\" = {{ clear = \"string\" }}\n[[switch]]\npath = \"a\"\nproperty = \"d\"\nvalues = [\"V\"]\notherwise = \"gift\"")).contains('d'));
    }
}
