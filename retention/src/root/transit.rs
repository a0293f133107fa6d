//! A root key in the transit engine of OpenBao or Vault (API of OpenBao 2.x, `/api-docs/secret/transit`).
//!
//! What is wrapped is the service's own text, `vault:v3:...`; the context goes along as associated data, so the key must be of a type
//! that binds it (`aes256-gcm96`, the default, or `chacha20-poly1305`). Rights: `update` on `encrypt/KEY` and `decrypt/KEY`; for `sunder
//! keys` also `read` on `keys/KEY`, and for a rotation `update` on `keys/KEY/rotate`, `keys/KEY/config` and `keys/KEY/trim`.

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::service::{Refusal, Service, ServiceOptions, TokenSource, take_secret};
use super::{Retired, RootError, RootKey};

/// What every wrapped text begins with.
const PREFIX: &str = "vault:v";
/// Header of the token.
const TOKEN_HEADER: &str = "X-Vault-Token";

/// A key of a transit engine.
pub struct TransitRoot {
    service: Service,
    token: TokenSource,
    mount: String,
    key: String,
}

impl TransitRoot {
    /// The key that `address` names: `https://host:port/mount/key`.
    ///
    /// # Errors
    /// [`RootError::Address`].
    pub fn new(address: &str, token: TokenSource, options: ServiceOptions) -> Result<Self, RootError> {
        const FORM: RootError = RootError::Address("keys.root: transit: wants https://host:port/mount/key");
        let (scheme, rest) = address.split_once("://").ok_or(FORM)?;
        let (host, path) = rest.split_once('/').ok_or(FORM)?;
        let (mount, key) = path.trim_end_matches('/').rsplit_once('/').ok_or(FORM)?;
        let is_name = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./".contains(&b));
        if host.is_empty() || host.contains('@') || !is_name(mount) || !is_name(key) {
            return Err(FORM);
        }
        let service = Service::new(&format!("{scheme}://{host}"), options)?;
        Ok(Self { service, token, mount: mount.to_owned(), key: key.to_owned() })
    }

    /// Calls `POST what/KEY[/then]`, or `GET` without a body.
    async fn call(&self, what: &str, then: &str, body: Option<&Value>) -> Result<Result<Value, Refusal>, RootError> {
        let url = format!("{}/v1/{}/{what}/{}{then}", self.service.address(), self.mount, self.key);
        let body = match body {
            Some(body) => Some(Zeroizing::new(serde_json::to_vec(body).map_err(|_| self.service.failed("request", false))?)),
            None => None,
        };
        self.service
            .call(|http| {
                let token = (self.token)().map_err(|_| self.service.failed("token_unreadable", false))?;
                let mut value = reqwest::header::HeaderValue::from_str(token_text(&token))
                    .map_err(|_| self.service.failed("token_unreadable", false))?;
                value.set_sensitive(true);
                let request = match &body {
                    None => http.get(&url),
                    Some(body) => http.post(&url).header("content-type", "application/json").body(body.to_vec()),
                };
                Ok(request.header(TOKEN_HEADER, value).header("X-Vault-Request", "true"))
            })
            .await
    }

    /// The answer, or the error that a refusal without a meaning of its own is.
    async fn ask(&self, what: &str, then: &str, body: Option<&Value>) -> Result<Value, RootError> {
        self.call(what, then, body).await?.map_err(|refusal| self.refused(&refusal))
    }

    fn refused(&self, refusal: &Refusal) -> RootError {
        // 403: the token is wrong, expired or lacks the right. 404: no such mount or key. The text may quote the request: it stays here.
        self.service.failed(format!("http_{}", refusal.status), refusal.status == 403)
    }

    async fn newest(&self) -> Result<u64, RootError> {
        let answer = self.ask("keys", "", None).await?;
        answer.pointer("/data/latest_version").and_then(Value::as_u64).ok_or_else(|| self.service.failed("answer", false))
    }
}

fn token_text(token: &secrecy::SecretString) -> &str {
    token.expose_secret()
}

#[async_trait]
impl RootKey for TransitRoot {
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, RootError> {
        let plain = Zeroizing::new(STANDARD.encode(key));
        let mut body = json!({ "plaintext": plain.as_str(), "associated_data": STANDARD.encode(context) });
        let answer = self.ask("encrypt", "", Some(&body)).await;
        drop(take_secret(&mut body, "/plaintext"));
        let text = answer?.pointer("/data/ciphertext").and_then(Value::as_str).map(str::to_owned);
        let text = text.filter(|text| self.version_of(text.as_bytes()).is_some());
        Ok(text.ok_or_else(|| self.service.failed("answer", false))?.into_bytes())
    }

    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        if self.version_of(wrapped).is_none() {
            return Err(RootError::NotOurs);
        }
        let text = std::str::from_utf8(wrapped).map_err(|_| RootError::NotOurs)?;
        let body = json!({ "ciphertext": text, "associated_data": STANDARD.encode(context) });
        let mut answer = match self.call("decrypt", "", Some(&body)).await? {
            Ok(answer) => answer,
            // Bytes, context or key differ, or its version is retired.
            Err(Refusal { status: 400, .. }) => return Err(RootError::NotOurs),
            Err(refusal) => return Err(self.refused(&refusal)),
        };
        let plain = take_secret(&mut answer, "/data/plaintext").ok_or_else(|| self.service.failed("answer", false))?;
        Ok(Zeroizing::new(STANDARD.decode(plain.as_bytes()).map_err(|_| self.service.failed("answer", false))?))
    }

    fn describe(&self) -> String {
        format!("transit:{}/{}/{}", self.service.address(), self.mount, self.key)
    }

    async fn version(&self) -> Result<u64, RootError> {
        self.newest().await
    }

    fn version_of(&self, wrapped: &[u8]) -> Option<u64> {
        let text = std::str::from_utf8(wrapped).ok()?;
        text.strip_prefix(PREFIX)?.split_once(':')?.0.parse().ok()
    }

    async fn rotate(&self, from: u64) -> Result<u64, RootError> {
        let newest = self.newest().await?;
        if newest > from {
            return Ok(newest);
        }
        self.ask("keys", "/rotate", Some(&json!({}))).await?;
        self.newest().await
    }

    async fn retire(&self, version: u64) -> Result<Retired, RootError> {
        // Trimming removes the key material for good; it wants both minima at or above what stays.
        self.ask("keys", "/config", Some(&json!({ "min_decryption_version": version, "min_encryption_version": version }))).await?;
        self.ask("keys", "/trim", Some(&json!({ "min_available_version": version }))).await?;
        Ok(Retired::Destroyed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn root(address: &str, allow_http: bool) -> Result<TransitRoot, RootError> {
        TransitRoot::new(address, Arc::new(|| Ok("token".into())), ServiceOptions { allow_http })
    }

    #[test]
    fn an_address_names_host_mount_and_key_and_plain_http_is_for_tests() {
        let found = root("https://vault:8200/team/transit/sunder", false).unwrap();
        assert_eq!((found.service.address(), found.mount.as_str(), found.key.as_str()), ("https://vault:8200", "team/transit", "sunder"));
        assert_eq!(found.describe(), "transit:https://vault:8200/team/transit/sunder");
        for wrong in [
            "vault:8200/transit/sunder",
            "https://vault:8200",
            "https://vault:8200/sunder",
            "https://u:p@vault/transit/k",
            "https://v/t/k?x",
        ] {
            assert!(matches!(root(wrong, true).err(), Some(RootError::Address(_))), "{wrong}");
        }
        assert!(matches!(root("http://vault:8200/transit/sunder", false).err(), Some(RootError::Address(_))));
        assert!(root("http://vault:8200/transit/sunder", true).is_ok());
    }

    #[test]
    fn a_wrapped_text_says_its_version() {
        let root = root("https://vault/transit/k", false).unwrap();
        assert_eq!(root.version_of(b"vault:v12:AAAA"), Some(12));
        for other in [&b"vault:v:AAAA"[..], b"vault:12:AAAA", b"\x01abc", b"", b"vault:v12"] {
            assert_eq!(root.version_of(other), None);
        }
    }
}
