//! SASL: `PLAIN` (RFC 4616) and `SCRAM-SHA-256` / `SCRAM-SHA-512` (RFC 5802, RFC 7677), as Kafka carries them.

use std::num::NonZeroU32;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslHandshakeRequest};
use kafka_protocol::protocol::StrBytes;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::{digest, hmac, pbkdf2};
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use super::connection::Connection;
use crate::kafka::error::KafkaError;
use crate::kafka::settings::Security;

const HANDSHAKE: i16 = 1;
const AUTHENTICATE: i16 = 1;
/// Rounds of PBKDF2 that a broker may ask for; Kafka's own limit is 16,384.
const ROUNDS: std::ops::RangeInclusive<u32> = 4_096..=1_000_000;

/// Logs `connection` in.
///
/// # Errors
/// [`KafkaError::Call`]: `Authentication` where the broker refuses, `UnsupportedSaslMechanism`, or `BrokerUnknown` where the broker
/// does not know the password itself.
pub(super) fn login(connection: &mut Connection, security: &Security) -> Result<(), KafkaError> {
    let mechanism = security.mechanism.as_deref().unwrap_or("PLAIN");
    let scram = match mechanism {
        "PLAIN" => None,
        "SCRAM-SHA-256" => Some(Scram::SHA_256),
        "SCRAM-SHA-512" => Some(Scram::SHA_512),
        _ => return Err(connection.failed("UnsupportedSaslMechanism")),
    };
    let handshake = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_string(mechanism.to_owned()));
    if connection.ask(HANDSHAKE, &handshake)?.error_code != 0 {
        return Err(connection.failed("UnsupportedSaslMechanism"));
    }
    let user = security.username.as_deref().unwrap_or_default();
    // The one place besides librdkafka's options where the broker password leaves its wrapper.
    let password = security.password.as_ref().map_or("", |password| password.expose_secret());
    let Some(scram) = scram else {
        let token = Zeroizing::new(format!("\0{user}\0{password}"));
        authenticate(connection, token.as_bytes())?;
        return Ok(());
    };
    let mut random = [0; 24];
    SystemRandom::new().fill(&mut random).map_err(|_| connection.failed("NoRandomness"))?;
    let first = ClientFirst::new(user, &STANDARD.encode(random));
    let server_first = authenticate(connection, first.message().as_bytes())?;
    let (message, server_signature) = scram.answer(&first, &server_first, password).ok_or_else(|| connection.failed("BadChallenge"))?;
    let server_final = authenticate(connection, message.as_bytes())?;
    if is_signed(&server_final, &server_signature) { Ok(()) } else { Err(connection.failed("BrokerUnknown")) }
}

fn authenticate(connection: &mut Connection, token: &[u8]) -> Result<Bytes, KafkaError> {
    let request = SaslAuthenticateRequest::default().with_auth_bytes(Bytes::copy_from_slice(token));
    let answer = connection.ask(AUTHENTICATE, &request)?;
    if answer.error_code == 0 { Ok(answer.auth_bytes) } else { Err(connection.failed("Authentication")) }
}

struct ClientFirst {
    nonce: String,
    bare: String,
}

impl ClientFirst {
    fn new(user: &str, nonce: &str) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Self { nonce: nonce.to_owned(), bare: format!("n={user},r={nonce}") }
    }

    fn message(&self) -> String {
        format!("n,,{}", self.bare)
    }
}

#[derive(Clone, Copy)]
struct Scram {
    hmac: hmac::Algorithm,
    pbkdf2: pbkdf2::Algorithm,
    digest: &'static digest::Algorithm,
}

impl Scram {
    const SHA_256: Self = Self { hmac: hmac::HMAC_SHA256, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA256, digest: &digest::SHA256 };
    const SHA_512: Self = Self { hmac: hmac::HMAC_SHA512, pbkdf2: pbkdf2::PBKDF2_HMAC_SHA512, digest: &digest::SHA512 };

    /// The client's last message, and the signature that the broker must answer with; `None` where the challenge is not one.
    fn answer(self, first: &ClientFirst, challenge: &[u8], password: &str) -> Option<(String, Vec<u8>)> {
        let challenge = std::str::from_utf8(challenge).ok()?;
        let field = |name: &str| challenge.split(',').find_map(|part| part.strip_prefix(name));
        let nonce = field("r=").filter(|nonce| nonce.len() > first.nonce.len() && nonce.starts_with(&first.nonce))?;
        let salt = STANDARD.decode(field("s=")?).ok()?;
        let rounds = field("i=")?.parse().ok().filter(|rounds| ROUNDS.contains(rounds)).and_then(NonZeroU32::new)?;
        let mut salted = Zeroizing::new(vec![0; self.digest.output_len()]);
        pbkdf2::derive(self.pbkdf2, rounds, &salt, password.as_bytes(), &mut salted);
        let salted = hmac::Key::new(self.hmac, &salted);
        let client_key = hmac::sign(&salted, b"Client Key");
        let stored = digest::digest(self.digest, client_key.as_ref());
        let without_proof = format!("c=biws,r={nonce}");
        let signed = format!("{},{challenge},{without_proof}", first.bare);
        let signature = hmac::sign(&hmac::Key::new(self.hmac, stored.as_ref()), signed.as_bytes());
        let proof: Vec<u8> = client_key.as_ref().iter().zip(signature.as_ref()).map(|(key, signature)| key ^ signature).collect();
        let server_key = hmac::sign(&salted, b"Server Key");
        let expected = hmac::sign(&hmac::Key::new(self.hmac, server_key.as_ref()), signed.as_bytes());
        Some((format!("{without_proof},p={}", STANDARD.encode(proof)), expected.as_ref().to_vec()))
    }
}

fn is_signed(answer: &[u8], expected: &[u8]) -> bool {
    let signature = std::str::from_utf8(answer).ok().and_then(|text| text.split(',').find_map(|part| part.strip_prefix("v=")));
    signature.and_then(|text| STANDARD.decode(text).ok()).is_some_and(|signature| signature == expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange of RFC 7677, section 3.
    #[test]
    fn the_published_exchange_comes_out_as_published() {
        let first = ClientFirst::new("user", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(first.message(), "n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let challenge = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let (message, signature) = Scram::SHA_256.answer(&first, challenge, "pencil").unwrap();
        assert_eq!(message, "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=");
        assert!(is_signed(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", &signature));
        assert!(!is_signed(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=", &signature) && !is_signed(b"e=other-error", &signature));
    }

    #[test]
    fn a_challenge_of_another_exchange_or_with_few_rounds_is_refused() {
        let first = ClientFirst::new("u=s,er", "abc");
        assert_eq!(first.message(), "n,,n=u=3Ds=2Cer,r=abc");
        for challenge in ["r=abd1,s=QQ==,i=4096", "r=abc,s=QQ==,i=4096", "r=abc1,s=QQ==,i=1", "r=abc1,s=!,i=4096", "r=abc1,i=4096", ""] {
            assert!(Scram::SHA_512.answer(&first, challenge.as_bytes(), "p").is_none(), "{challenge}");
        }
    }
}
