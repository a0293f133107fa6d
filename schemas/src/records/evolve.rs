//! Reading records of other versions of our schemas.
//!
//! The body is resolved from its writer's schema to ours by `apache-avro` and written again as ours, so the records themselves are only
//! ever read in one way. Slow, and only for what older or newer programs wrote.

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema_compatibility::SchemaCompatibility;
use apache_avro::writer::datum::GenericDatumWriter;

use super::schema::Version;

/// Why a body of another schema version cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EvolveError {
    /// The writer's schema is of another record, or of one that ours cannot read.
    #[error("the writer's schema is not one that {0} can read")]
    Foreign(&'static str),
    /// The body is not what its schema says.
    #[error("the body is not what its schema says")]
    Body,
}

/// The name of the record a schema describes; empty where it is no record.
fn name_of(schema: &Schema) -> String {
    match schema {
        Schema::Record(record) => record.name.to_string(),
        _ => String::new(),
    }
}

/// Whether `ours` can read what `writer` wrote: the same record by name, and compatible by Avro's rules.
///
/// # Errors
/// [`EvolveError::Foreign`].
pub fn check(writer: &Schema, ours: &'static Version) -> Result<(), EvolveError> {
    let reader = ours.schema();
    if name_of(writer) != name_of(reader) || SchemaCompatibility::can_read(writer, reader).is_err() {
        return Err(EvolveError::Foreign("this program's schema"));
    }
    Ok(())
}

/// The body of our version of the schema that says what `body`, written with `writer`, says.
///
/// # Errors
/// [`EvolveError`].
pub fn resolve(writer: &Schema, ours: &'static Version, body: &[u8]) -> Result<Vec<u8>, EvolveError> {
    let reader = ours.schema();
    let mut rest = body;
    let value = GenericDatumReader::builder(writer)
        .reader_schema(reader)
        .build()
        .and_then(|r| r.read_value(&mut rest))
        .map_err(|_| EvolveError::Body)?;
    if !rest.is_empty() {
        return Err(EvolveError::Body);
    }
    GenericDatumWriter::builder(reader).build().and_then(|w| w.write_value_to_vec(value)).map_err(|_| EvolveError::Body)
}
