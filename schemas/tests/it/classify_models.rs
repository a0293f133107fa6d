//! Every property of Amazon's response models has one rule, and every rule has a property.

use std::collections::BTreeMap;

use serde_json::Value;
use sunder_schemas::catalogue::{Catalogue, Type};

use crate::support::spapi_file;

/// Collects the leaves below `schema` with their types.
fn leaves(model: &Value, schema: &Value, path: &str, seen: &mut Vec<String>, found: &mut BTreeMap<String, Type>) {
    if let Some(reference) = schema["$ref"].as_str() {
        assert!(!seen.contains(&reference.to_owned()), "{path} nests without end");
        seen.push(reference.to_owned());
        let name = reference.strip_prefix("#/definitions/").unwrap();
        leaves(model, &model["definitions"][name], path, seen, found);
        seen.pop();
        return;
    }
    assert!(schema["additionalProperties"].is_null(), "{path} is a map: its keys are values, decide where they go");
    for part in schema["allOf"].as_array().into_iter().flatten() {
        leaves(model, part, path, seen, found);
    }
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        leaves(model, property, &below, seen, found);
    }
    let kind = match schema["type"].as_str() {
        Some("array") => return leaves(model, &schema["items"], &format!("{path}[*]"), seen, found),
        Some("string") => Type::String,
        Some("integer" | "number") => Type::Number,
        Some("boolean") => Type::Boolean,
        Some("object") | None => return,
        Some(other) => panic!("{path} is of an unknown type {other}"),
    };
    found.insert(path.to_owned(), kind);
}

fn model_leaves(api: &str, operation: &str) -> Option<BTreeMap<String, Type>> {
    let model: Value = serde_json::from_str(&spapi_file(&format!("models/{api}.json"))?).unwrap();
    let methods = model["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let schema = methods.filter(|method| method["operationId"] == operation).map(|method| &method["responses"]["200"]["schema"]).next();
    let mut found = BTreeMap::new();
    leaves(&model, schema.unwrap(), "", &mut Vec::new(), &mut found);
    assert!(found.len() > 20, "the walk over {operation} found only {} leaves", found.len());
    Some(found)
}

#[test]
fn every_property_of_the_models_has_a_rule_and_every_rule_a_property() {
    for catalogue in Catalogue::all().unwrap() {
        let Some(model) = model_leaves(catalogue.api(), catalogue.operation()) else { return };
        let rules: BTreeMap<String, Type> = catalogue.rules().iter().map(|rule| (rule.path.clone(), rule.expects)).collect();
        let without_rule: Vec<_> = model.keys().filter(|path| !rules.contains_key(*path)).collect();
        let without_property: Vec<_> = rules.keys().filter(|path| !model.contains_key(*path)).collect();
        assert!(without_rule.is_empty(), "{catalogue:?}: decide where these go: {without_rule:#?}");
        assert!(without_property.is_empty(), "{catalogue:?}: no such property in the model: {without_property:#?}");
        assert_eq!(model, rules, "{catalogue:?}: a rule expects another type than the model says");
    }
}
