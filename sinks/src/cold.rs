//! The cold store: fields under a legal hold, in a table of their own beside the vault's, under tokens of holds and keys of holds.
//!
//! No topic feeds it; what is in it was put there before an order's key went, and goes when the hold ends: the vault deletes from and
//! searches both its tables, so a hold's end is proved as any other.

use async_trait::async_trait;
use sunder_retention::hold::ColdStore;
use sunder_retention::store::StoreError;
use sunder_schemas::ids::{EntityToken, SellerId};
use sunder_schemas::records::{Cell, PiiRecord, Record as _};

use crate::SinkError;
use crate::cells::Cells;
use crate::vault::{HELD, SEALED, Vault};

/// Stands in the place of a topic's incarnation in a row that came from none.
const NO_TOPIC: &str = "hold";

#[async_trait]
impl ColdStore for Vault {
    async fn sealed(&self, seller: &SellerId, order: EntityToken) -> Result<Vec<PiiRecord>, StoreError> {
        self.store.backend.sealed(SEALED, seller, order).await.map_err(SinkError::into_store_error)
    }

    async fn hold(&self, rows: &[PiiRecord]) -> Result<(), StoreError> {
        let refused = || SinkError::Options { store: "vault", code: "a held row does not fit the table" }.into_store_error();
        let table = self.store.tables.get(HELD).ok_or_else(refused)?;
        let mut cells = Cells::new(table, self.store.backend.dialect(), rows.len());
        for row in rows {
            row.cells(&mut |cell| cells.push(cell));
            cells.push(Cell::Text(NO_TOPIC));
            cells.push(Cell::Int(0));
            cells.push(Cell::Int(0));
            cells.end_row().map_err(|_| refused())?;
        }
        self.store.backend.put_row(HELD, cells).await.map_err(SinkError::into_store_error)
    }

    async fn held(&self, seller: &SellerId, hold: EntityToken) -> Result<Vec<PiiRecord>, StoreError> {
        self.store.backend.sealed(HELD, seller, hold).await.map_err(SinkError::into_store_error)
    }
}
