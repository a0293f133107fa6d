//! One connection to one broker: TCP or TLS, login, and questions with their answers in order. Blocks.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{ApiVersionsRequest, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable as _, HeaderVersion as _, Request, StrBytes, encode_request_header_into_buffer};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};

use super::login::login;
use crate::kafka::error::KafkaError;
use crate::kafka::settings::Security;

/// How long a broker may take to accept a connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long a broker may take to answer; a fetch answers within its own `max_wait_ms` and a disk's delay.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Longest answer that is read: a fetch is asked for 16 MiB, and one batch may exceed that (`DLQ_MESSAGE_BYTES_MAX`).
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Fixed, as of every client: brokers keep it in clear.
const CLIENT_ID: &str = "sunder";

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// The broker does not know the version that is asked for.
pub(crate) const OLD_BROKER: &str = "OldBroker";
/// The broker's certificate is signed by no authority that is believed, or names another host.
const UNKNOWN_CERTIFICATE: &str = "UnknownCertificate";
/// The other side speaks no TLS that both know.
const NO_TLS: &str = "NoTls";
/// Codes of a broker that answers and refuses: trying again changes nothing.
pub(crate) const REFUSALS: [&str; 5] = [UNKNOWN_CERTIFICATE, NO_TLS, "Authentication", "UnsupportedSaslMechanism", "BrokerUnknown"];

/// A connection that is logged in.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    address: String,
    asked: i32,
    /// Lowest and highest version of each call that the broker takes.
    versions: Vec<(i16, i16, i16)>,
}

impl Connection {
    /// Connects to `address` (`host:port`) with `security`.
    ///
    /// # Errors
    /// [`KafkaError::Call`] with the address and a code.
    pub(crate) fn open(address: &str, security: Option<&Security>) -> Result<Self, KafkaError> {
        let stream = dial(address)?;
        let stream: Box<dyn Stream> = match security {
            Some(security) if security.protocol.ends_with("SSL") => Box::new(encrypt(stream, address, security)?),
            _ => Box::new(stream),
        };
        let mut this = Self { stream, address: address.to_owned(), asked: 0, versions: Vec::new() };
        // Version 0 is answered by every broker.
        let answer = this.send(0, &ApiVersionsRequest::default())?;
        this.versions = answer.api_keys.iter().map(|key| (key.api_key, key.min_version, key.max_version)).collect();
        if let Some(security) = security.filter(|security| security.protocol.starts_with("SASL")) {
            login(&mut this, security)?;
        }
        Ok(this)
    }

    /// Asks `request` in `version` and waits for the answer.
    ///
    /// # Errors
    /// [`KafkaError::Call`]: `OldBroker` where it does not know that version; else the connection is of no use any more.
    pub(crate) fn ask<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response, KafkaError> {
        let is_known = self.versions.iter().any(|(key, low, high)| *key == R::KEY && (*low..=*high).contains(&version));
        if !is_known {
            return Err(self.failed(OLD_BROKER));
        }
        self.send(version, request)
    }

    pub(super) fn failed(&self, code: &str) -> KafkaError {
        KafkaError::own(format!("ask broker {}", self.address), code)
    }

    fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response, KafkaError> {
        self.asked = self.asked.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.asked)
            .with_client_id(Some(StrBytes::from_static_str(CLIENT_ID)));
        let mut body = BytesMut::new();
        encode_request_header_into_buffer(&mut body, &header)
            .and_then(|()| request.encode(&mut body, version))
            .map_err(|_| self.failed("Unencodable"))?;
        let length = u32::try_from(body.len()).map_err(|_| self.failed("Unencodable"))?;
        let mut frame = Vec::with_capacity(body.len() + 4);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&body);
        self.stream.write_all(&frame).and_then(|()| self.stream.flush()).map_err(|error| self.broken(&error))?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(|error| self.broken(&error))?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > ANSWER_BYTES_MAX {
            return Err(self.failed("AnswerTooLarge"));
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).map_err(|error| self.broken(&error))?;
        let mut answer = Bytes::from(answer);
        let header = ResponseHeader::decode(&mut answer, R::Response::header_version(version)).map_err(|_| self.failed("Undecodable"))?;
        if header.correlation_id != self.asked {
            return Err(self.failed("WrongAnswer"));
        }
        <R::Response as kafka_protocol::protocol::Decodable>::decode(&mut answer, version).map_err(|_| self.failed("Undecodable"))
    }

    /// The operating system's text may name paths and hosts: its kind alone is kept.
    fn broken(&self, error: &std::io::Error) -> KafkaError {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(_)) => self.failed(UNKNOWN_CERTIFICATE),
            Some(_) => self.failed(NO_TLS),
            None => self.failed(&format!("{:?}", error.kind())),
        }
    }
}

fn dial(address: &str) -> Result<TcpStream, KafkaError> {
    let failed = |code: String| KafkaError::own(format!("reach broker {address}"), &code);
    let mut last = failed("Unresolved".to_owned());
    for resolved in address.to_socket_addrs().map_err(|_| failed("Unresolved".to_owned()))? {
        let stream = TcpStream::connect_timeout(&resolved, CONNECT_WITHIN).and_then(|stream| {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.set_write_timeout(Some(ANSWER_WITHIN))?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => return Ok(stream),
            Err(error) => last = failed(format!("{:?}", error.kind())),
        }
    }
    Err(last)
}

type Encrypted = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// TLS with the authorities of `ca_file`, else the system's; the broker's name is checked.
fn encrypt(stream: TcpStream, address: &str, security: &Security) -> Result<Encrypted, KafkaError> {
    let failed = |code: &str| KafkaError::own(format!("encrypt the connection to {address}"), code);
    let mut roots = rustls::RootCertStore::empty();
    match &security.ca_file {
        Some(file) => {
            for certificate in CertificateDer::pem_file_iter(file).map_err(|_| failed("CaFileUnreadable"))? {
                let certificate = certificate.map_err(|_| failed("CaFileUnreadable"))?;
                roots.add(certificate).map_err(|_| failed("CaFileUnreadable"))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| failed("NoProtocol"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host).map_err(|_| failed("BadHostName"))?;
    let connection = rustls::ClientConnection::new(Arc::new(config), name).map_err(|_| failed("Tls"))?;
    Ok(rustls::StreamOwned::new(connection, stream))
}
