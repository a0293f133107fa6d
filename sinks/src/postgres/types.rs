//! Values in PostgreSQL's binary form that the driver has no type for, or only by way of a copy.

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo};
use sqlx::{Encode, Postgres, Type};
use sunder_schemas::time::Timestamp;
use uuid::Uuid;

use crate::cells::HexToken;

/// A UUID: 16 bytes (`uuid_send` in PostgreSQL's `uuid.c`).
#[derive(Debug, Clone, Copy)]
pub(super) struct PgUuid(pub(super) Uuid);

/// An instant: microseconds since 2000-01-01 in 64 bits (`timestamptz_send` in PostgreSQL's `timestamp.c`).
#[derive(Debug, Clone, Copy)]
pub(super) struct PgInstant(pub(super) Timestamp);

/// Milliseconds from 1970-01-01 to 2000-01-01.
const EPOCH_2000_MS: i64 = 946_684_800_000;

/// Type and its array by their object ids, which are fixed (PostgreSQL's `pg_type.dat`): nothing has to be looked up.
macro_rules! pg_type {
    ($name:ty, $type:literal, $array:literal, |$value:ident, $buf:ident| $put:expr) => {
        impl Type<Postgres> for $name {
            fn type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid($type))
            }
        }

        impl PgHasArrayType for $name {
            fn array_type_info() -> PgTypeInfo {
                PgTypeInfo::with_oid(Oid($array))
            }
        }

        impl Encode<'_, Postgres> for $name {
            fn encode_by_ref(&self, $buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let $value = self;
                $put;
                Ok(IsNull::No)
            }
        }
    };
}
pg_type!(PgUuid, 2950, 2951, |value, buf| buf.extend_from_slice(value.0.as_bytes()));
pg_type!(PgInstant, 1184, 1185, |value, buf| {
    let micros = value.0.0.saturating_sub(EPOCH_2000_MS).saturating_mul(1000);
    buf.extend_from_slice(&micros.to_be_bytes());
});
pg_type!(HexToken, 25, 1009, |value, buf| buf.extend_from_slice(value.as_str().as_bytes()));
