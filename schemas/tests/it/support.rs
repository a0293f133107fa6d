//! What several tests share: Amazon's published files, and tokens that can be foreseen.

use std::path::PathBuf;

use serde_json::Value;
use sunder_schemas::classify::{TokenKind, Tokens};
use sunder_schemas::ids::EntityToken;

/// Reads a variable of the environment.
#[expect(clippy::disallowed_methods, reason = "tests have no config; these variables steer tests alone")]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The text of one of Amazon's published files, e.g. `models/fbaInventory.json`; `None`, said loudly, where they are not at hand.
pub(crate) fn spapi_file(name: &str) -> Option<String> {
    let folder = environment("SUNDER_SPAPI_DIR").map_or_else(|| workspace().join("../shared/spapi"), PathBuf::from);
    if let Ok(text) = std::fs::read_to_string(folder.join(name)) {
        return Some(text);
    }
    let message = format!(
        "{name} is not under {}: get it from the public repository amzn/selling-partner-api-models and name its folder in SUNDER_SPAPI_DIR",
        folder.display()
    );
    assert!(environment("CI").is_none(), "{message}");
    eprintln!("NOT TESTED: {message}");
    None
}

/// The pairs of requests and answers of one model's sandbox.
pub(crate) fn sandbox(model: &str) -> Vec<Value> {
    let text = spapi_file(&format!("sandbox/{model}.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Tokens that depend on kind and id alone.
pub(crate) struct PlainTokens;

impl Tokens for PlainTokens {
    fn token(&self, kind: TokenKind, clear: &str) -> EntityToken {
        let mut token = [0u8; 16];
        for (index, byte) in kind.as_str().bytes().chain([0]).chain(clear.bytes()).enumerate() {
            let at = index % 16;
            token[at] = token[at].wrapping_mul(31).wrapping_add(byte);
        }
        EntityToken(token)
    }
}
