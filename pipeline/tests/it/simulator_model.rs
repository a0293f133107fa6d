//! Every answer of the simulator has the shape of Amazon's published models.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sunder_schemas::time::Timestamp;

use crate::simulator::{Api, EVERYTHING, SINCE};

/// One of Amazon's swagger models.
struct Model(Value);

impl Model {
    /// The model, or none (said loudly) where the models are not on this machine; in CI that is a failure.
    #[expect(clippy::disallowed_methods, reason = "a test finds the published models by an environment variable")]
    fn load(name: &str) -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/spapi");
        let path = std::env::var_os("SUNDER_SPAPI_DIR").map_or(beside, PathBuf::from).join("models").join(name);
        let Ok(text) = std::fs::read_to_string(&path) else {
            assert!(std::env::var_os("CI").is_none(), "the models of amzn/selling-partner-api-models are needed: set SUNDER_SPAPI_DIR");
            eprintln!("NOT TESTED: {name} of the public repository amzn/selling-partner-api-models was not found; set SUNDER_SPAPI_DIR");
            return None;
        };
        Some(Self(serde_json::from_str(&text).unwrap()))
    }

    /// Checks `value` against the definition `name`; unknown properties are faults too.
    fn check(&self, name: &str, value: &Value) {
        self.walk(&self.0["definitions"][name], value, name);
    }

    fn walk(&self, schema: &Value, value: &Value, at: &str) {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().unwrap();
            return self.walk(&self.0["definitions"][name], value, at);
        }
        match schema["type"].as_str().unwrap_or("object") {
            "object" => self.walk_object(schema, value, at),
            "array" => {
                for (number, entry) in value.as_array().unwrap_or_else(|| panic!("{at}: an array")).iter().enumerate() {
                    self.walk(&schema["items"], entry, &format!("{at}[{number}]"));
                }
            }
            "string" => {
                let text = value.as_str().unwrap_or_else(|| panic!("{at}: a string"));
                if let Some(words) = schema["enum"].as_array() {
                    assert!(words.iter().any(|word| word == text), "{at}: {text} is not in the enum");
                }
                if schema["format"] == "date-time" {
                    assert!(Timestamp::parse(text).is_ok(), "{at}: a time");
                }
            }
            "integer" => assert!(value.is_i64() || value.is_u64(), "{at}: an integer"),
            "number" => assert!(value.is_number(), "{at}: a number"),
            "boolean" => assert!(value.is_boolean(), "{at}: a boolean"),
            other => panic!("{at}: type {other}"),
        }
    }

    fn walk_object(&self, schema: &Value, value: &Value, at: &str) {
        let object = value.as_object().unwrap_or_else(|| panic!("{at}: an object"));
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(object.contains_key(required.as_str().unwrap()), "{at}: {required} is required");
        }
        for (name, value) in object {
            let property = &schema["properties"][name];
            assert!(!property.is_null(), "{at}: the model has no {name}");
            self.walk(property, value, &format!("{at}.{name}"));
        }
    }
}

#[tokio::test]
async fn orders_conform_to_the_model() {
    let Some(model) = Model::load("orders_2026-01-01.json") else { return };
    let api = Api::start(|options| {
        options.sellers = 8;
        options.orders = 800;
    })
    .await;
    for seller in api.sellers() {
        for included in [EVERYTHING, "FULFILLMENT", ""] {
            let answer = api.search(&seller.id, &[SINCE, ("includedData", included)]).await;
            model.check("SearchOrdersResponse", &answer.json());
        }
        let created = api.search(&seller.id, &[("createdAfter", "2026-11-01T00:00:00Z"), ("maxResultsPerPage", "5")]).await;
        assert!(created.json()["createdBefore"].is_string());
        model.check("SearchOrdersResponse", &created.json());
        for id in api.simulator.order_ids(&seller.id).iter().take(20) {
            let answer = api.get(&seller.id, &format!("/orders/2026-01-01/orders/{id}"), &[("includedData", EVERYTHING)]).await;
            assert_eq!(answer.json()["order"]["orderId"], id.as_str());
            model.check("GetOrderResponse", &answer.json());
        }
    }
    let refused = api.search(&api.first(), &[]).await;
    model.check("ErrorList", &refused.json());
}

#[tokio::test]
async fn inventory_conforms_to_the_model() {
    let Some(model) = Model::load("fbaInventory.json") else { return };
    let api = Api::start(|_| ()).await;
    for seller in api.sellers() {
        let market = seller.marketplaces[0];
        for details in ["true", "false", "True"] {
            let query = [("granularityType", "Marketplace"), ("granularityId", market), ("marketplaceIds", market), ("details", details)];
            let body = api.get(&seller.id, "/fba/inventory/v1/summaries", &query).await.json();
            model.check("GetInventorySummariesResponse", &body);
            assert!(!body["payload"]["inventorySummaries"].as_array().unwrap().is_empty());
        }
        let start = [("startDateTime", "2026-11-20T00:00:00Z")];
        let changed = api.all_rows(&seller.id, market, &start).await;
        assert!(changed.iter().all(|row| row["lastUpdatedTime"].as_str().unwrap() >= "2026-11-20"));
        let odd = api.all_rows(&seller.id, market, &[]).await;
        let sku = odd.iter().map(|row| row["sellerSku"].as_str().unwrap()).find(|sku| sku.contains('%') || sku.contains('/')).unwrap();
        let one = api.all_rows(&seller.id, market, &[("sellerSku", sku)]).await;
        assert!(one.len() == 1 && one[0]["sellerSku"] == sku, "an odd SKU, encoded once, is found");
    }
}
