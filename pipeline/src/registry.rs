//! Schema ids: which schema a framed value was written with, and the id to write with.
//!
//! Two registries: the built-in one, whose ids are compiled in and the same in every process, and a Confluent-compatible one over HTTP.
//! [`Schemas`] stands before either, answers from memory, and is what decoders ask. Subjects follow `TopicNameStrategy`:
//! `<topic>-value`; keys are plain text and never framed.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use apache_avro::Schema;
use async_trait::async_trait;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use sunder_schemas::outcome::DeadLetterReason;
use sunder_schemas::records::evolve;
use sunder_schemas::records::schema::{RecordType, VERSIONS, Version};
use sunder_schemas::topic::Topic;
use sunder_schemas::wire::{self, FrameError};

/// Media type of the registry's answers.
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";
/// How long a registry may take to answer one request (chosen: it serves from memory).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an id that the registry does not know is believed unknown (chosen: a stream of foreign records costs one request a minute).
const UNKNOWN_FOR: Duration = Duration::from_secs(60);
/// How many unknown ids are remembered at once.
const UNKNOWN_MAX: usize = 1024;

/// Why a registry gave no answer; never its text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No answer, or one that is not a registry's: try again.
    #[error("the schema registry gave no answer ({code})")]
    Unavailable {
        /// `transport`, `body` or the HTTP status.
        code: String,
    },
    /// It refuses the schema as incompatible with what it holds.
    #[error("the schema registry refuses schema of {registry_subject}: it is not compatible with the versions it holds")]
    Incompatible {
        /// The registry subject, `<topic>-value`.
        registry_subject: String,
    },
}

/// The registry subject of a topic's values.
#[must_use]
pub fn registry_subject(topic: &str) -> String {
    format!("{topic}-value")
}

/// Gives ids to schemas and schemas to ids.
#[async_trait]
pub trait Registry: Send + Sync {
    /// The id of `version` under `registry_subject`, registering it where it is new.
    ///
    /// # Errors
    /// [`RegistryError`].
    async fn id_for(&self, registry_subject: &str, version: &'static Version) -> Result<u32, RegistryError>;

    /// The text of the schema `id`; `None` where the registry does not know it.
    ///
    /// # Errors
    /// [`RegistryError`].
    async fn schema(&self, id: u32) -> Result<Option<String>, RegistryError>;
}

/// The compiled-in schemas as a registry.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

#[async_trait]
impl Registry for BuiltIn {
    async fn id_for(&self, _: &str, version: &'static Version) -> Result<u32, RegistryError> {
        Ok(version.id)
    }

    async fn schema(&self, id: u32) -> Result<Option<String>, RegistryError> {
        Ok(VERSIONS.iter().find(|v| v.id == id).map(|v| v.text.to_owned()))
    }
}

/// A Confluent-compatible registry.
pub struct HttpRegistry {
    client: reqwest::Client,
    base: String,
    login: Option<(String, SecretString)>,
}

#[derive(Deserialize)]
struct IdAnswer {
    id: u32,
}

#[derive(Deserialize)]
struct SchemaAnswer {
    schema: String,
}

impl HttpRegistry {
    /// A registry at `base`, e.g. `https://registry.example/apis/ccompat/v7`, with user and password where it asks for them.
    #[must_use]
    pub fn new(client: reqwest::Client, base: &str, login: Option<(String, SecretString)>) -> Self {
        Self { client, base: base.trim_end_matches('/').to_owned(), login }
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, RegistryError> {
        let request = match &self.login {
            None => request,
            Some((user, password)) => request.basic_auth(user, Some(password.expose_secret())),
        };
        request
            .timeout(ANSWER_TIMEOUT)
            .header(header::ACCEPT, MEDIA_TYPE)
            .send()
            .await
            .map_err(|_| RegistryError::Unavailable { code: "transport".to_owned() })
    }
}

async fn body<T: serde::de::DeserializeOwned>(answer: reqwest::Response) -> Result<T, RegistryError> {
    if !answer.status().is_success() {
        return Err(RegistryError::Unavailable { code: answer.status().as_u16().to_string() });
    }
    answer.json().await.map_err(|_| RegistryError::Unavailable { code: "body".to_owned() })
}

#[async_trait]
impl Registry for HttpRegistry {
    async fn id_for(&self, registry_subject: &str, version: &'static Version) -> Result<u32, RegistryError> {
        let url = format!("{}/subjects/{registry_subject}/versions", self.base);
        let answer = self.ask(self.client.post(url).json(&json!({ "schema": version.text }))).await?;
        if answer.status() == StatusCode::CONFLICT {
            return Err(RegistryError::Incompatible { registry_subject: registry_subject.to_owned() });
        }
        Ok(body::<IdAnswer>(answer).await?.id)
    }

    async fn schema(&self, id: u32) -> Result<Option<String>, RegistryError> {
        let answer = self.ask(self.client.get(format!("{}/schemas/ids/{id}", self.base))).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        Ok(Some(body::<SchemaAnswer>(answer).await?.schema))
    }
}

/// What an id turned out to be, for one record type.
#[derive(Clone)]
enum Meaning {
    /// Our latest version: read as it is.
    Ours(RecordType),
    /// Another schema; which of ours can read it is decided on use.
    Other(Arc<Schema>),
    /// No schema of that id, as of then.
    Unknown(Instant),
}

/// Why a value cannot be read right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unread {
    /// It never will be: the code for its dead letter.
    Never(DeadLetterReason),
    /// The schema of this id must be asked for first: [`Schemas::learn`], then try again.
    Learn(u32),
}

/// Ids and schemas, in memory.
pub struct Schemas {
    registry: Arc<dyn Registry>,
    ids: HashMap<RecordType, u32>,
    meanings: RwLock<HashMap<u32, Meaning>>,
}

impl Schemas {
    /// Asks `registry` for the ids that the topics under `prefix` are written with.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn open(registry: Arc<dyn Registry>, prefix: &str) -> Result<Self, RegistryError> {
        let mut ids = HashMap::new();
        let mut meanings = HashMap::new();
        for topic in Topic::all() {
            let Some(record) = RecordType::of(topic) else { continue };
            // Topics of one record type share the schema's text, and so, in every registry of this protocol, its id.
            let id = registry.id_for(&registry_subject(&topic.name(prefix)), record.latest()).await?;
            ids.insert(record, id);
            meanings.insert(id, Meaning::Ours(record));
        }
        Ok(Self { registry, ids, meanings: RwLock::new(meanings) })
    }

    /// The compiled-in schemas, asked of nobody.
    #[must_use]
    pub fn built_in() -> Self {
        let records: Vec<RecordType> = Topic::all().into_iter().filter_map(RecordType::of).collect();
        let ids: HashMap<RecordType, u32> = records.into_iter().map(|record| (record, record.latest().id)).collect();
        let meanings = ids.iter().map(|(record, id)| (*id, Meaning::Ours(*record))).collect();
        Self { registry: Arc::new(BuiltIn), ids, meanings: RwLock::new(meanings) }
    }

    /// The id to write `record` with.
    #[must_use]
    pub fn id(&self, record: RecordType) -> u32 {
        // `open` asked for every record type there is.
        self.ids.get(&record).copied().unwrap_or_else(|| record.latest().id)
    }

    /// Starts a framed value of `record`: the Avro body is appended after it.
    pub fn begin(&self, record: RecordType, out: &mut Vec<u8>) {
        wire::begin(self.id(record), out);
    }

    /// The Avro body of `value` in our version of `record`'s schema: borrowed where it was written so.
    ///
    /// # Errors
    /// [`Unread`].
    pub fn body<'a>(&self, record: RecordType, value: &'a [u8]) -> Result<Cow<'a, [u8]>, Unread> {
        let (id, body) = wire::open(value).map_err(|error| {
            Unread::Never(match error {
                FrameError::NotFramed => DeadLetterReason::NotFramed,
                FrameError::Guid => DeadLetterReason::UnknownSchema,
            })
        })?;
        let meaning = self.meanings.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        match meaning {
            Some(Meaning::Ours(ours)) if ours == record => Ok(Cow::Borrowed(body)),
            Some(Meaning::Ours(_)) => Err(Unread::Never(DeadLetterReason::ForeignSchema)),
            Some(Meaning::Other(schema)) => {
                evolve::check(&schema, record.latest()).map_err(|_| Unread::Never(DeadLetterReason::ForeignSchema))?;
                let body = evolve::resolve(&schema, record.latest(), body).map_err(|_| Unread::Never(DeadLetterReason::BadAvro))?;
                Ok(Cow::Owned(body))
            }
            Some(Meaning::Unknown(since)) if since.elapsed() < UNKNOWN_FOR => Err(Unread::Never(DeadLetterReason::UnknownSchema)),
            Some(Meaning::Unknown(_)) | None => Err(Unread::Learn(id)),
        }
    }

    /// Asks the registry what `id` is and remembers it.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn learn(&self, id: u32) -> Result<(), RegistryError> {
        let text = self.registry.schema(id).await?;
        // A text that is no Avro schema can be nothing of ours.
        let meaning = match text.and_then(|text| Schema::parse_str(&text).ok()) {
            Some(schema) => Meaning::Other(Arc::new(schema)),
            None => Meaning::Unknown(Instant::now()),
        };
        let mut meanings = self.meanings.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(meaning, Meaning::Unknown(_)) && meanings.len() > UNKNOWN_MAX {
            meanings.retain(|_, m| !matches!(m, Meaning::Unknown(_)));
        }
        meanings.insert(id, meaning);
        Ok(())
    }
}

/// The built-in registry over HTTP, as much of the Confluent API as readers use, for the topics under `prefix`. Read only.
pub fn router(prefix: &str) -> axum::Router {
    let subjects: Arc<Vec<(String, RecordType)>> = Arc::new(
        Topic::all().into_iter().filter_map(|topic| Some((registry_subject(&topic.name(prefix)), RecordType::of(topic)?))).collect(),
    );
    axum::Router::new()
        .route("/subjects", get(list_subjects))
        .route("/subjects/{subject}/versions", get(list_versions))
        .route("/subjects/{subject}/versions/{version}", get(one_version))
        .route("/schemas/ids/{id}", get(schema_by_id))
        .with_state(subjects)
}

type Subjects = State<Arc<Vec<(String, RecordType)>>>;

fn answer(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body.to_string()).into_response()
}

/// The protocol's own codes: 40401 no such subject, 40402 no such version, 40403 no such schema.
fn missing(error_code: u32, message: &str) -> Response {
    answer(StatusCode::NOT_FOUND, &json!({ "error_code": error_code, "message": message }))
}

async fn list_subjects(State(subjects): Subjects) -> Response {
    answer(StatusCode::OK, &subjects.iter().map(|(name, _)| name.as_str()).collect())
}

fn versions_of(subjects: &[(String, RecordType)], subject: &str) -> Option<Vec<&'static Version>> {
    let (_, record) = subjects.iter().find(|(name, _)| name == subject)?;
    Some(VERSIONS.iter().filter(|v| v.record == *record).collect())
}

async fn list_versions(State(subjects): Subjects, Path(subject): Path<String>) -> Response {
    versions_of(&subjects, &subject)
        .map_or_else(|| missing(40401, "no such subject"), |versions| answer(StatusCode::OK, &versions.iter().map(|v| v.version).collect()))
}

async fn one_version(State(subjects): Subjects, Path((subject, version)): Path<(String, String)>) -> Response {
    let Some(versions) = versions_of(&subjects, &subject) else { return missing(40401, "no such subject") };
    let found = match version.as_str() {
        "latest" | "-1" => versions.last().copied(),
        number => versions.iter().find(|v| number == v.version.to_string()).copied(),
    };
    found.map_or_else(
        || missing(40402, "no such version"),
        |v| answer(StatusCode::OK, &json!({ "subject": subject, "version": v.version, "id": v.id, "schema": v.text })),
    )
}

async fn schema_by_id(Path(id): Path<u32>) -> Response {
    VERSIONS
        .iter()
        .find(|v| v.id == id)
        .map_or_else(|| missing(40403, "no such schema"), |v| answer(StatusCode::OK, &json!({ "schema": v.text })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sunder_schemas::class::Kind;
    use wiremock::matchers::{method, path, path_regex};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    #[tokio::test]
    async fn built_in_ids_are_the_same_everywhere() {
        let schemas = Schemas::open(Arc::new(BuiltIn), "sp").await.unwrap();
        assert_eq!(schemas.id(RecordType::RawEvent), 1);
        let mut value = Vec::new();
        schemas.begin(RecordType::Pii, &mut value);
        value.extend(b"x");
        assert_eq!(schemas.body(RecordType::Pii, &value).unwrap(), Cow::Borrowed(b"x".as_slice()));
        assert_eq!(schemas.body(RecordType::RawEvent, &value), Err(Unread::Never(DeadLetterReason::ForeignSchema)));
    }

    #[tokio::test]
    async fn an_unknown_id_is_asked_for_once() {
        let schemas = Schemas::open(Arc::new(BuiltIn), "sp").await.unwrap();
        let value = [0, 0, 0, 0x30, 0x39, 1];
        assert_eq!(schemas.body(RecordType::RawEvent, &value), Err(Unread::Learn(12345)));
        schemas.learn(12345).await.unwrap();
        assert_eq!(schemas.body(RecordType::RawEvent, &value), Err(Unread::Never(DeadLetterReason::UnknownSchema)));
        assert_eq!(schemas.body(RecordType::RawEvent, b"{}"), Err(Unread::Never(DeadLetterReason::NotFramed)));
    }

    /// A client without TLS: the stand-in speaks plain HTTP.
    fn client() -> reqwest::Client {
        _ = rustls::crypto::ring::default_provider().install_default();
        reqwest::Client::new()
    }

    #[tokio::test]
    async fn a_registry_over_http_gives_its_own_ids() {
        let server = MockServer::start().await;
        Mock::given(method("POST"))
            .and(path("/subjects/sp.state.orders.v1-value/versions"))
            .respond_with(ResponseTemplate::new(200).set_body_json(json!({"id": 77})))
            .mount(&server)
            .await;
        Mock::given(method("GET"))
            .and(path("/schemas/ids/404"))
            .respond_with(ResponseTemplate::new(404).set_body_json(json!({"error_code": 40403})))
            .mount(&server)
            .await;
        Mock::given(method("GET")).and(path_regex("/schemas/ids/5..")).respond_with(ResponseTemplate::new(500)).mount(&server).await;
        let registry = HttpRegistry::new(client(), &server.uri(), None);
        let version = RecordType::State(Kind::Orders).latest();
        assert_eq!(registry.id_for("sp.state.orders.v1-value", version).await.unwrap(), 77);
        assert_eq!(registry.schema(404).await.unwrap(), None);
        assert_eq!(registry.schema(500).await.unwrap_err(), RegistryError::Unavailable { code: "500".to_owned() });
    }

    #[tokio::test]
    async fn our_own_router_speaks_what_our_client_reads() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::task::LocalSet::new();
        served.spawn_local(async move { axum::serve(listener, router("sp")).await });
        served
            .run_until(async {
                let registry = HttpRegistry::new(client(), &base, None);
                assert_eq!(registry.schema(2).await.unwrap().unwrap(), RecordType::State(Kind::Orders).latest().text);
                assert_eq!(registry.schema(9999).await.unwrap(), None);
                let text = client()
                    .get(format!("{base}/subjects/sp.pii.orders.v1-value/versions/latest"))
                    .send()
                    .await
                    .unwrap()
                    .text()
                    .await
                    .unwrap();
                assert!(text.contains("\"id\":10"), "{text}");
            })
            .await;
    }
}
