//! A root key in AWS KMS (API of 2014-11-01), its requests signed here.
//!
//! What is wrapped: `3`, the key's rotation count in four bytes, then KMS's ciphertext. The context goes along as encryption context, as
//! its SHA-256: CloudTrail shows encryption contexts. KMS rotates the material behind a key and keeps the old for as long as the key
//! lives, so a rotation takes no power from old ciphertexts: nothing of ours lies under them any more, and that is all. Rights:
//! `kms:Encrypt`, `kms:Decrypt`, `kms:ListKeyRotations`; for a rotation also `kms:RotateKeyOnDemand`.

use std::sync::Arc;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use sunder_schemas::time::Clock;
use zeroize::Zeroizing;

use super::service::{Refusal, Service, ServiceOptions, TokenSource, take_secret};
use super::signature::{Signer, sha256};
use super::{Retired, RootError, RootKey};

/// First byte of what it wraps.
const WRAP_KMS: u8 = 3;
/// Rotations in one page of the answer (the service's own limit is 1000).
const PAGE: u32 = 1000;

/// Who may use the key.
#[derive(Clone)]
pub struct KmsAccess {
    /// `AWS_ACCESS_KEY_ID`.
    pub access_key_id: TokenSource,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret_access_key: TokenSource,
    /// `AWS_SESSION_TOKEN`, for temporary credentials.
    pub session_token: Option<TokenSource>,
}

/// A symmetric key of KMS.
pub struct KmsRoot {
    service: Service,
    access: KmsAccess,
    clock: Arc<dyn Clock>,
    host: String,
    region: String,
    arn: String,
}

impl KmsRoot {
    /// The key `arn` (`arn:aws:kms:REGION:ACCOUNT:key/ID` or an alias's), at AWS or at `endpoint`. `clock` is the system's: AWS refuses
    /// signatures of another time.
    ///
    /// # Errors
    /// [`RootError::Address`].
    pub fn new(
        arn: &str,
        endpoint: Option<&str>,
        access: KmsAccess,
        clock: Arc<dyn Clock>,
        options: ServiceOptions,
    ) -> Result<Self, RootError> {
        const FORM: RootError = RootError::Address("keys.root: awskms: wants arn:aws:kms:REGION:ACCOUNT:key/ID");
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let [_, partition, "kms", region, _, id] = parts.as_slice() else { return Err(FORM) };
        if !arn.starts_with("arn:") || region.is_empty() || id.is_empty() {
            return Err(FORM);
        }
        let suffix = if *partition == "aws-cn" { "amazonaws.com.cn" } else { "amazonaws.com" };
        let address = endpoint.map_or_else(|| format!("https://kms.{region}.{suffix}"), str::to_owned);
        let service = Service::new(&address, options)?;
        let host = service.address().split_once("://").map_or("", |(_, host)| host).to_owned();
        Ok(Self { host, service, access, clock, region: (*region).to_owned(), arn: arn.to_owned() })
    }

    async fn call(&self, action: &str, body: &Value) -> Result<Result<Value, Refusal>, RootError> {
        let body = Zeroizing::new(serde_json::to_vec(body).map_err(|_| self.service.failed("request", false))?);
        let target = format!("TrentService.{action}");
        self.service
            .call(|http| {
                let read = |source: &TokenSource| source().map_err(|_| self.service.failed("credentials_unreadable", false));
                let (id, secret) = (read(&self.access.access_key_id)?, read(&self.access.secret_access_key)?);
                let session = self.access.session_token.as_ref().map(&read).transpose()?;
                let time = self.clock.now().to_utc().format("%Y%m%dT%H%M%SZ").to_string();
                let digest = sha256(&body);
                let mut headers = vec![
                    ("content-type", "application/x-amz-json-1.1"),
                    ("host", self.host.as_str()),
                    ("x-amz-content-sha256", digest.as_str()),
                    ("x-amz-date", time.as_str()),
                ];
                if let Some(session) = &session {
                    headers.push(("x-amz-security-token", text(session)));
                }
                headers.push(("x-amz-target", target.as_str()));
                let signer = Signer { access_key_id: text(&id), secret_access_key: text(&secret), region: &self.region, service: "kms" };
                let authorization = signer.authorization(&time, &headers, &body);
                let mut request = http.post(format!("{}/", self.service.address())).header("authorization", authorization);
                for (name, value) in headers.into_iter().filter(|(name, _)| *name != "host") {
                    request = request.header(name, value);
                }
                Ok(request.body(body.to_vec()))
            })
            .await
    }

    async fn ask(&self, action: &str, body: &Value) -> Result<Value, RootError> {
        self.call(action, body).await?.map_err(|refusal| self.refused(&refusal))
    }

    /// A refusal by the name of its exception: a closed list of the service's own, no text.
    fn refused(&self, refusal: &Refusal) -> RootError {
        let name = exception(refusal);
        let retry = matches!(name, "ThrottlingException" | "KMSInternalException" | "DependencyTimeoutException" | "ExpiredTokenException");
        self.service.failed(if name.is_empty() { format!("http_{}", refusal.status) } else { name.to_owned() }, retry)
    }

    fn context(context: &[u8]) -> Value {
        json!({ "sunder": sha256(context) })
    }
}

/// The exception's name, if it is one that the service documents.
fn exception(refusal: &Refusal) -> &'static str {
    const KNOWN: [&str; 14] = [
        "AccessDeniedException",
        "DependencyTimeoutException",
        "DisabledException",
        "ExpiredTokenException",
        "IncorrectKeyException",
        "InvalidCiphertextException",
        "InvalidKeyUsageException",
        "InvalidSignatureException",
        "KMSInternalException",
        "KMSInvalidStateException",
        "KeyUnavailableException",
        "NotFoundException",
        "ThrottlingException",
        "UnrecognizedClientException",
    ];
    let said = refusal.body.get("__type").and_then(Value::as_str).unwrap_or_default();
    let said = said.rsplit('#').next().unwrap_or_default();
    KNOWN.into_iter().find(|name| *name == said).unwrap_or_default()
}

fn text(secret: &secrecy::SecretString) -> &str {
    secret.expose_secret()
}

#[async_trait]
impl RootKey for KmsRoot {
    async fn wrap(&self, context: &[u8], key: &[u8]) -> Result<Vec<u8>, RootError> {
        // Read before the call: where a rotation comes in between, the number is one too low and the key is wrapped once more, no harm.
        let version = u32::try_from(self.version().await?).unwrap_or(u32::MAX);
        let plain = Zeroizing::new(STANDARD.encode(key));
        let mut body = json!({ "KeyId": self.arn, "Plaintext": plain.as_str(), "EncryptionContext": Self::context(context) });
        let answer = self.ask("Encrypt", &body).await;
        drop(take_secret(&mut body, "/Plaintext"));
        let answer = answer?;
        let blob = answer.get("CiphertextBlob").and_then(Value::as_str).and_then(|blob| STANDARD.decode(blob).ok());
        let mut out = vec![WRAP_KMS];
        out.extend_from_slice(&version.to_be_bytes());
        out.extend(blob.ok_or_else(|| self.service.failed("answer", false))?);
        Ok(out)
    }

    async fn unwrap(&self, context: &[u8], wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, RootError> {
        let (_, blob) = split(wrapped).ok_or(RootError::NotOurs)?;
        let body = json!({ "KeyId": self.arn, "CiphertextBlob": STANDARD.encode(blob), "EncryptionContext": Self::context(context) });
        let mut answer = match self.call("Decrypt", &body).await? {
            Ok(answer) => answer,
            Err(refusal) if matches!(exception(&refusal), "InvalidCiphertextException" | "IncorrectKeyException") => {
                return Err(RootError::NotOurs);
            }
            Err(refusal) => return Err(self.refused(&refusal)),
        };
        let plain = take_secret(&mut answer, "/Plaintext").ok_or_else(|| self.service.failed("answer", false))?;
        Ok(Zeroizing::new(STANDARD.decode(plain.as_bytes()).map_err(|_| self.service.failed("answer", false))?))
    }

    fn describe(&self) -> String {
        format!("awskms:{}", self.arn)
    }

    async fn version(&self) -> Result<u64, RootError> {
        let mut count = 1u64;
        let mut marker = Value::Null;
        loop {
            let mut body = json!({ "KeyId": self.arn, "Limit": PAGE });
            if let (Some(body), Value::String(_)) = (body.as_object_mut(), &marker) {
                body.insert("Marker".to_owned(), marker);
            }
            let answer = self.ask("ListKeyRotations", &body).await?;
            count += answer.get("Rotations").and_then(Value::as_array).map_or(0, Vec::len) as u64;
            if answer.get("Truncated").and_then(Value::as_bool) != Some(true) {
                return Ok(count);
            }
            marker = answer.get("NextMarker").cloned().unwrap_or_default();
        }
    }

    fn version_of(&self, wrapped: &[u8]) -> Option<u64> {
        split(wrapped).map(|(version, _)| u64::from(version))
    }

    async fn rotate(&self, from: u64) -> Result<u64, RootError> {
        let newest = self.version().await?;
        if newest > from {
            return Ok(newest);
        }
        self.ask("RotateKeyOnDemand", &json!({ "KeyId": self.arn })).await?;
        let after = self.version().await?;
        // KMS finishes a rotation within a while: until it is listed, nothing is to be wrapped anew.
        if after > from { Ok(after) } else { Err(self.service.failed("rotation_under_way", true)) }
    }

    async fn retire(&self, _version: u64) -> Result<Retired, RootError> {
        Ok(Retired::KeptByService)
    }
}

/// The version and the service's ciphertext.
fn split(wrapped: &[u8]) -> Option<(u32, &[u8])> {
    let (first, rest) = wrapped.split_first()?;
    let (version, blob) = rest.split_first_chunk::<4>()?;
    (*first == WRAP_KMS).then(|| (u32::from_be_bytes(*version), blob))
}
