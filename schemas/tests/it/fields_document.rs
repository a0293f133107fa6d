//! `docs/fields.md` says what the catalogue says.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use sunder_schemas::catalogue::{Catalogue, Place, Rule};
use sunder_schemas::class::FieldGroup;

use crate::support::{environment, workspace};

const HEAD: &str = "# Fields\n\n\
    <!-- Written by the tests of sunder-schemas from the catalogue files: after a change to those, run\n     \
    SUNDER_WRITE_DOCS=1 cargo test -p sunder-schemas fields -->\n\n\
    Where each field of an SP-API answer goes. A field that is not named here is personal: it is sealed in the group `unclassified`, counted,\n\
    and reported by the path of the last known field. So is a value of another JSON type than Amazon's model says (null is always accepted),\n\
    and every later value of a field that is given twice.\n\n\
    A seller's `personal` list and a purpose's `fields` name groups. `identifiers` and `unclassified` are sealed wherever any group is\n\
    wanted; purposes may name them, `personal` may not.\n";

const fn meaning(group: FieldGroup) -> &'static str {
    match group {
        FieldGroup::BuyerName => "the buyer's name and company",
        FieldGroup::BuyerContact => "the buyer's e-mail and the recipient's phone",
        FieldGroup::RecipientAddress => "the address; state or region and country code stay clear",
        FieldGroup::DeliveryInstructions => "where and when to deliver",
        FieldGroup::Gift => "gift messages",
        FieldGroup::Customization => "what makes a unit this buyer's: customisation, serial numbers",
        FieldGroup::TaxIdentity => "the buyer's tax registration and purchase order number",
        FieldGroup::Payment => "card brand and authorisation",
        FieldGroup::Tracking => "tracking numbers: they lead to an address at the carrier",
        FieldGroup::FreeText => "text a buyer may have written",
        FieldGroup::Identifiers => "clear ids of the order, its items and packages, and its aliases",
        FieldGroup::Unclassified => "whatever has no rule",
    }
}

fn list(out: &mut String, title: &str, paths: impl Iterator<Item = String>) {
    let paths: BTreeSet<String> = paths.collect();
    if !paths.is_empty() {
        writeln!(out, "\n### {title}\n").unwrap();
        for path in paths {
            writeln!(out, "- {path}").unwrap();
        }
    }
}

fn sealed_in(rule: &Rule) -> Option<FieldGroup> {
    match rule.place {
        Place::Sealed(group) | Place::Token(_, Some(group)) => Some(group),
        Place::Clear | Place::Token(_, None) | Place::LeftOut(_) | Place::Page => None,
    }
}

fn section(out: &mut String, catalogue: &Catalogue) {
    writeln!(out, "\n## {} {}\n\nCatalogue `{}`.", catalogue.api(), catalogue.operation(), catalogue.version()).unwrap();
    for group in FieldGroup::ALL {
        let paths = catalogue.rules().iter().filter(|rule| sealed_in(rule) == Some(*group)).map(|rule| format!("`{}`", rule.path));
        list(out, &format!("Sealed: {group} ({})", meaning(*group)), paths);
    }
    list(
        out,
        "Depending on a field beside it",
        catalogue.conditions().iter().map(|c| {
            let what = if c.only.is_empty() { "all of it".to_owned() } else { format!("`{}`", c.only.join("`, `")) };
            format!("`{}`: unless `{}` is {}, {what} is sealed in `{}`", c.path, c.property, c.values.join(" or "), c.otherwise)
        }),
    );
    let rules = || catalogue.rules().iter();
    list(
        out,
        "Token in the place of the id",
        rules().filter_map(|rule| match &rule.place {
            Place::Token(kind, _) => Some(format!("`{}` ({})", rule.path, kind.as_str())),
            Place::Clear | Place::Sealed(_) | Place::LeftOut(_) | Place::Page => None,
        }),
    );
    list(
        out,
        "Left out",
        rules().filter_map(|rule| match &rule.place {
            Place::LeftOut(reason) => Some(format!("`{}`: {reason}", rule.path)),
            Place::Clear | Place::Sealed(_) | Place::Token(..) | Place::Page => None,
        }),
    );
    list(out, "Steers the poller", rules().filter(|rule| rule.place == Place::Page).map(|rule| format!("`{}`", rule.path)));
    list(out, "Clear", rules().filter(|rule| rule.place == Place::Clear).map(|rule| format!("`{}`", rule.path)));
}

#[test]
fn the_fields_document_says_what_the_catalogue_says() {
    let mut written = HEAD.to_owned();
    for catalogue in Catalogue::all().unwrap() {
        // getOrder has the rules of searchOrders, with `order` for `orders[*]`.
        if catalogue.operation() == "getOrder" {
            writeln!(written, "\n## {} getOrder\n\nAs searchOrders, with `order` for `orders[*]`.", catalogue.api()).unwrap();
        } else {
            section(&mut written, catalogue);
        }
    }
    let path = workspace().join("docs/fields.md");
    if environment("SUNDER_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &written).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == written, "{} is stale: run SUNDER_WRITE_DOCS=1 cargo test -p sunder-schemas fields", path.display());
}
