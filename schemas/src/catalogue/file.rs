//! The catalogue file as written: TOML, with `{a,b}` in a path for each of the names.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{CatalogueError, EntityKind, Place, TokenKind, Type};
use crate::class::FieldGroup;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) api: String,
    pub(super) version: u32,
    pub(super) entity: Entity,
    pub(super) operations: BTreeMap<String, Operation>,
    #[serde(default, rename = "switch")]
    pub(super) switches: Vec<SwitchTable>,
    pub(super) rules: BTreeMap<String, RuleTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entity {
    pub(super) name: String,
    pub(super) kind: EntityKind,
    pub(super) id: Vec<String>,
    pub(super) source_version: String,
    pub(super) marketplace: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Operation {
    pub(super) entities: String,
    pub(super) next_token: Option<String>,
    pub(super) window_end: Option<String>,
    pub(super) marketplace: Option<String>,
    #[serde(default)]
    pub(super) left_out: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SwitchTable {
    pub(super) path: String,
    pub(super) property: String,
    pub(super) values: Vec<String>,
    #[serde(default)]
    pub(super) only: Vec<String>,
    pub(super) otherwise: FieldGroup,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleTable {
    clear: Option<Type>,
    sealed: Option<FieldGroup>,
    token: Option<TokenKind>,
    left_out: Option<String>,
    r#type: Option<Type>,
}

impl RuleTable {
    /// What the rule says, if it says exactly one thing.
    pub(super) fn place(&self, path: &str) -> Result<(Type, Place), CatalogueError> {
        let expects = self.r#type.unwrap_or(Type::String);
        match (self.clear, self.sealed, self.token, &self.left_out) {
            (_, Some(FieldGroup::Unclassified), _, _) => {
                Err(CatalogueError::new(format!("rule {path}: unclassified is what has no rule, no rule may name it")))
            }
            (Some(expects), None, None, None) if self.r#type.is_none() => Ok((expects, Place::Clear)),
            (None, Some(group), None, None) => Ok((expects, Place::Sealed(group))),
            (None, sealed, Some(kind), None) if expects == Type::String => Ok((expects, Place::Token(kind, sealed))),
            (None, None, None, Some(reason)) if !reason.trim().is_empty() => Ok((expects, Place::LeftOut(reason.clone()))),
            (None, None, None, Some(_)) => Err(CatalogueError::new(format!("rule {path}: left_out needs a reason"))),
            _ => Err(CatalogueError::new(format!("rule {path}: needs exactly one of clear, sealed, token, left_out"))),
        }
    }
}

pub(super) fn parse(text: &str) -> Result<File, CatalogueError> {
    // A catalogue is our own file, so toml's message with line and column may be shown.
    let file: File = toml::from_str(text).map_err(|error| CatalogueError::new(format!("catalogue file: {error}")))?;
    if file.entity.id.is_empty() || file.operations.is_empty() || file.version == 0 {
        return Err(CatalogueError::new(format!("catalogue {}: needs an id, an operation and a version from 1", file.api)));
    }
    Ok(file)
}

/// The paths a written path stands for.
pub(super) fn expand(path: &str) -> Result<Vec<String>, CatalogueError> {
    let Some((front, rest)) = path.split_once('{') else { return Ok(vec![path.to_owned()]) };
    let (names, back) =
        rest.split_once('}').ok_or_else(|| CatalogueError::new(format!("rule {path}: a brace is opened and not closed")))?;
    let mut all = Vec::new();
    for name in names.split(',') {
        all.extend(expand(&format!("{front}{}{back}", name.trim()))?);
    }
    Ok(all)
}

/// A step of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Member(&'a str),
    Element,
}

/// Reads `a.b[*].c`.
pub(super) fn steps(path: &str) -> Result<Vec<Step<'_>>, CatalogueError> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let mut name = part;
        let mut elements = 0;
        while let Some(front) = name.strip_suffix("[*]") {
            name = front;
            elements += 1;
        }
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(CatalogueError::new(format!(
                "rule {path}: a path is names of letters, digits and _ joined by dots, with [*] for elements"
            )));
        }
        steps.push(Step::Member(name));
        steps.extend(std::iter::repeat_n(Step::Element, elements));
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_stand_for_each_name() {
        assert_eq!(expand("a.{b,c}[*].{d,e}").unwrap(), ["a.b[*].d", "a.b[*].e", "a.c[*].d", "a.c[*].e"]);
        assert_eq!(steps("a[*].b").unwrap(), [Step::Member("a"), Step::Element, Step::Member("b")]);
    }
}
