//! The one spelling of JSON, and the digests over it and over the destroyed keys.

use serde_json::Value;

use crate::ids::KeyId;

/// JSON with keys sorted by their bytes, no white space; numbers as they are.
#[must_use]
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by(|a, b| a.0.cmp(b.0));
            out.push(b'{');
            for (i, (key, member)) in members.into_iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(Value::String(key.clone()).to_string().as_bytes());
                out.push(b':');
                write_canonical(member, out);
            }
            out.push(b'}');
        }
        Value::Array(elements) => {
            out.push(b'[');
            for (i, element) in elements.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_canonical(element, out);
            }
            out.push(b']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => out.extend_from_slice(value.to_string().as_bytes()),
    }
}

/// SHA-256 over the sorted ids of keys (16 bytes each), lower-case hex, as [`super::Subjects::key_ids_sha256`] has it.
#[must_use]
pub fn key_digest(sorted: &[KeyId]) -> String {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    sorted.iter().for_each(|key| context.update(&key.0));
    hex::encode(context.finish())
}

/// `certificate.keys`: the sorted ids of the destroyed keys, in lower-case hex, one a line. They stand in the header of every sealed block,
/// so whoever finds such a block somewhere sees whether this certificate covers it.
#[must_use]
pub fn key_file(sorted: &[KeyId]) -> Vec<u8> {
    sorted.iter().flat_map(|key| format!("{}\n", hex::encode(key.0)).into_bytes()).collect()
}

/// SHA-256 of `value` in canonical form, lower-case hex.
#[must_use]
pub fn digest(value: &Value) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, &canonical(value)))
}
