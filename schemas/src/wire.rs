//! The Confluent frame around an Avro body: a zero byte, the schema's id as four bytes big-endian, the body.

/// First byte of a framed value.
pub const FRAME_MAGIC: u8 = 0;
/// First byte of the newer form, where a 16-byte GUID names the schema (Confluent's `__value_schema_id`).
pub const FRAME_MAGIC_GUID: u8 = 1;
/// Bytes before the body.
pub const FRAME_LEN: usize = 5;

/// A value that does not carry a frame this program can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Too short, or another first byte.
    #[error("the value is not framed")]
    NotFramed,
    /// The newer form: the schema is named by a GUID, which this program does not look up.
    #[error("the value names its schema by a GUID")]
    Guid,
}

/// Starts a value in `out`: what is appended after it is the body.
pub fn begin(id: u32, out: &mut Vec<u8>) {
    out.push(FRAME_MAGIC);
    out.extend(id.to_be_bytes());
}

/// Makes `id` the schema of the value that was begun in `out`.
pub fn rename(id: u32, out: &mut [u8]) {
    if let Some(place) = out.get_mut(1..FRAME_LEN) {
        place.copy_from_slice(&id.to_be_bytes());
    }
}

/// The schema's id and the body of a framed value.
///
/// # Errors
/// [`FrameError`].
pub const fn open(value: &[u8]) -> Result<(u32, &[u8]), FrameError> {
    match value {
        [FRAME_MAGIC, a, b, c, d, body @ ..] => Ok((u32::from_be_bytes([*a, *b, *c, *d]), body)),
        [FRAME_MAGIC_GUID, rest @ ..] if rest.len() >= 16 => Err(FrameError::Guid),
        _ => Err(FrameError::NotFramed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_opens_to_what_was_framed() {
        let mut value = Vec::new();
        begin(7, &mut value);
        value.extend(b"body");
        assert_eq!(open(&value), Ok((7, b"body".as_slice())));
        rename(9, &mut value);
        assert_eq!(open(&value), Ok((9, b"body".as_slice())));
        assert_eq!(open(b""), Err(FrameError::NotFramed));
        assert_eq!(open(b"\0\0\0\0"), Err(FrameError::NotFramed));
        assert_eq!(open(b"{\"a\":1}"), Err(FrameError::NotFramed));
        assert_eq!(open(&[1; 20]), Err(FrameError::Guid));
    }
}
