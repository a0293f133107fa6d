//! References to secrets.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Where a secret is to be read: `{ file = "/path" }` or `{ env = "NAME" }`. Never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum SecretRef {
    /// The first line of a file.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl SecretRef {
    /// Reads the secret.
    ///
    /// # Errors
    /// A sentence that names the reference, never what it holds.
    #[expect(clippy::disallowed_methods, reason = "the config is the one reader of the environment")]
    pub fn read(&self) -> Result<SecretString, String> {
        let text = match self {
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|e| format!("secret file {} cannot be read: {}", path.display(), e.kind()))?
            }
            Self::Env(name) => std::env::var(name).map_err(|_| format!("environment variable {name} is not set or not UTF-8"))?,
        };
        let line = text.lines().next().unwrap_or_default().trim();
        if line.is_empty() {
            return Err(format!("{self} is empty"));
        }
        Ok(SecretString::from(line.to_owned()))
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "secret file {}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
        }
    }
}

const FORM: &str = "a secret must be a reference, { file = \"...\" } or { env = \"...\" }, never a value";

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reference;
        impl<'de> Visitor<'de> for Reference {
            type Value = SecretRef;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(FORM)
            }
            fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<SecretRef, E> {
                Err(E::custom(FORM))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretRef, A::Error> {
                let mut found = None;
                while let Some(key) = map.next_key::<String>()? {
                    let value: String = map.next_value().map_err(|_| A::Error::custom(FORM))?;
                    let reference = match key.as_str() {
                        "file" => SecretRef::File(PathBuf::from(value)),
                        "env" => SecretRef::Env(value),
                        _ => return Err(A::Error::custom(FORM)),
                    };
                    if found.replace(reference).is_some() {
                        return Err(A::Error::custom("a secret has one reference: file or env, not both"));
                    }
                }
                found.ok_or_else(|| A::Error::custom(FORM))
            }
        }
        deserializer.deserialize_any(Reference)
    }
}
